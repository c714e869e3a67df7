#include <algorithm>
#include <array>
#include <cmath>

#include <meo/kernels/parts/packet.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace packet_test {

using namespace meo;
using namespace meo::detail;

template <class S>
using Lanes = std::array<S, std::size_t(PacketOf<S>::size)>;

template <class S>
Lanes<S> lanes_of(const Packet<S>& packet) {
  Lanes<S> lanes{};
  store<S>(lanes.data(), packet);
  return lanes;
}

/// Quotients, for what is drawn is double, whose products are exact in a long double of 113 bits.
template <class S>
Lanes<S> random_lanes(test::Generator& rng) {
  const Matrix<S> row = test::random_normal<S>(rng, 1, PacketOf<S>::size) / S(3);
  Lanes<S> lanes{};
  std::copy(row.data(), row.data() + row.size(), lanes.begin());
  return lanes;
}

TEST_CASE("a scalar without packets is a packet of one", "[packet]") {
  CHECK(PacketOf<long double>::size == 1);
  STATIC_REQUIRE(std::is_same_v<Packet<long double>, long double>);
}

TEMPLATE_TEST_CASE("a packet loads from and stores to any address of its scalar", "[packet]", float, double,
                   long double) {
  using S = TestType;
  constexpr Index size = PacketOf<S>::size;
  for (Index start = 0; start < size; ++start) {
    std::array<S, 2 * size> from;
    for (Index i = 0; i < 2 * size; ++i) from[std::size_t(i)] = S(i + 1);
    std::array<S, 2 * size> to{};
    store<S>(to.data() + start, load<S>(from.data() + start));
    for (Index i = 0; i < 2 * size; ++i) {
      CHECK(to[std::size_t(i)] == (i >= start && i < start + size ? S(i + 1) : S(0)));
    }
  }
}

TEMPLATE_TEST_CASE("broadcast fills every lane", "[packet]", float, double, long double) {
  for (const TestType lane : lanes_of<TestType>(broadcast<TestType>(TestType(-2.5)))) {
    CHECK(lane == TestType(-2.5));
  }
}

// The kernels' promise of bits that do not depend on lanes, tiles or threads rests on this.
TEMPLATE_TEST_CASE("multiply_add rounds once or twice, the same in every lane and at every call", "[packet]",
                   float, double, long double) {
  using S = TestType;
  test::Generator rng(1);
  bool may_be_fused = true, may_be_separate = true;
  for (int draw = 0; draw < 100; ++draw) {
    const Lanes<S> a = random_lanes<S>(rng), b = random_lanes<S>(rng), c = random_lanes<S>(rng);
    const Lanes<S> sums = lanes_of<S>(multiply_add(load<S>(a.data()), load<S>(b.data()), load<S>(c.data())));
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const volatile S product = a[i] * b[i];  // volatile: the compiler may not fuse it
      may_be_fused = may_be_fused && sums[i] == std::fma(a[i], b[i], c[i]);
      may_be_separate = may_be_separate && sums[i] == product + c[i];
    }
  }
  CHECK(may_be_fused != may_be_separate);
}

}  // namespace packet_test
}  // namespace

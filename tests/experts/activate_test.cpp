#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include <meo/experts/activate.hpp>
#include <meo/experts/any_activation.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/vector_math.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/random.hpp"

namespace {
namespace activate_test {

using namespace meo;
using namespace meo::test;

/// A user's: no form on packets.
struct Cubed {
  template <class S>
  S operator()(const S& x) const {
    return x * x * x;
  }
  template <class S>
  S derivative(const S& x) const {
    return S(3) * x * x;
  }
};

/// Takes what converts to it, as a functor that knows a packet from a scalar must.
struct Anything {
  template <class T>
  T operator()(const T& x) const {
    return x;
  }
  template <class T>
  T packets(const T& x) const {
    return x;
  }
};

template <class S>
constexpr bool all_on_packets = detail::PacketActivation<Relu, S>&& detail::PacketActivation<Gelu, S>&&
    detail::PacketActivation<GeluTanh, S>&& detail::PacketActivation<Silu, S>;
static_assert(all_on_packets<float> && all_on_packets<double>);
static_assert(!detail::PacketActivation<Gelu, long double>);
static_assert(!detail::PacketActivation<Cubed, float> && !detail::PacketActivation<Anything, float>);

/// Values from −30 to 30, and those that are no ordinary numbers among them.
template <class S>
std::vector<S> arguments(Index count) {
  using L = std::numeric_limits<S>;
  const S special[] = {S(-0.0), L::infinity(), -L::infinity(), L::quiet_NaN(), L::denorm_min(), -L::max()};
  Generator rng(91);
  const Matrix<S> values = S(30) * random_matrix<S>(rng, 1, count);
  std::vector<S> x(values.data(), values.data() + count);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (i % 11 == 3) x[i] = special[i / 11 % std::size(special)];
  }
  return x;
}

template <class S>
Eigen::Map<const Matrix<S>> row(const std::vector<S>& values) {
  return {values.data(), 1, static_cast<Index>(values.size())};
}

/// Every length up to three packets and one more, at every offset up to a packet: what comes out has the bits
/// that the functor gives for the value alone, and nothing beyond the ends is touched.
template <class S, class Activation>
void check_everywhere(const Activation& f) {
  constexpr Index size = detail::PacketOf<S>::size, most = 3 * size + 1;
  const std::vector<S> x = arguments<S>(size + most), factor = arguments<S>(2 * (size + most));
  const S sentinel = -7;
  for (Index begin = 0; begin < size; ++begin) {
    for (Index count = 0; count <= most; ++count) {
      CAPTURE(begin, count);
      const auto is_within = [&](Index i) { return i >= begin && i < begin + count; };
      std::vector<S> plain(x.size(), sentinel), gated = plain, in_place = x, d_plain = plain, d_gated = plain,
                                                d_factor = plain;
      auto expected_plain = plain, expected_gated = plain, expected_in_place = x, expected_d_plain = plain,
           expected_d_gated = plain, expected_d_factor = plain;
      const S* const factors = factor.data() + size + most;
      for (Index i = 0; i < Index(x.size()); ++i) {
        if (!is_within(i)) continue;
        const auto k = static_cast<std::size_t>(i);
        const S value = f(x[k]), slope = f.derivative(x[k]), d = factor[k];
        d_plain[k] = d_gated[k] = d;
        expected_plain[k] = expected_in_place[k] = value;
        expected_gated[k] = value * factors[i];
        expected_d_plain[k] = d * slope;
        expected_d_factor[k] = d * value;
        expected_d_gated[k] = d * factors[i] * slope;
      }
      detail::activate(f, x.data() + begin, static_cast<const S*>(nullptr), count, plain.data() + begin);
      detail::activate(f, x.data() + begin, factors + begin, count, gated.data() + begin);
      detail::activate(f, in_place.data() + begin, static_cast<const S*>(nullptr), count,
                       in_place.data() + begin);
      detail::activate_backward(f, x.data() + begin, static_cast<const S*>(nullptr), count,
                                d_plain.data() + begin, static_cast<S*>(nullptr));
      detail::activate_backward(f, x.data() + begin, factors + begin, count, d_gated.data() + begin,
                                d_factor.data() + begin);
      REQUIRE(bit_difference(row(plain), row(expected_plain)) == "");
      REQUIRE(bit_difference(row(gated), row(expected_gated)) == "");
      REQUIRE(bit_difference(row(in_place), row(expected_in_place)) == "");
      REQUIRE(bit_difference(row(d_plain), row(expected_d_plain)) == "");
      REQUIRE(bit_difference(row(d_gated), row(expected_d_gated)) == "");
      REQUIRE(bit_difference(row(d_factor), row(expected_d_factor)) == "");
    }
  }
}

TEMPLATE_TEST_CASE("an activation of an array is that of each value, to the bit, wherever it stands",
                   "[activation]", float, double, long double) {
  check_everywhere<TestType>(Relu());
  check_everywhere<TestType>(Identity());
  check_everywhere<TestType>(Gelu());
  check_everywhere<TestType>(GeluTanh());
  check_everywhere<TestType>(Silu());
  check_everywhere<TestType>(Cubed());
}

TEMPLATE_TEST_CASE("matrices are activated value by value, in their place too", "[activation]", float,
                   double) {
  using S = TestType;
  Generator rng(92);
  const AnyActivation f = AnyActivation::Kind::gelu;
  const Matrix<S> wide = S(3) * random_matrix<S>(rng, 5, 13), d = random_matrix<S>(rng, 5, 7);
  Matrix<S> expected(5, 7), expected_gradient = d, y = Matrix<S>::Zero(5, 9), gradient = d;
  for (Index r = 0; r < 5; ++r) {
    const S* const none = nullptr;
    detail::activate(f, wide.row(r).data() + 2, none, 7, expected.row(r).data());
    detail::activate_backward(f, wide.row(r).data() + 2, none, 7, expected_gradient.row(r).data(),
                              static_cast<S*>(nullptr));
  }
  activate<S>(f, wide.middleCols(2, 7), y.leftCols(7));
  CHECK(bit_difference(y.leftCols(7), expected) == "");
  CHECK(y.rightCols(2).isZero(0));
  activate_backward<S>(f, wide.middleCols(2, 7), gradient);
  CHECK(bit_difference(gradient, expected_gradient) == "");
  Matrix<S> in_place = wide.middleCols(2, 7);
  activate<S>(f, in_place, in_place);
  CHECK(bit_difference(in_place, expected) == "");
  CHECK(error_lacks<std::invalid_argument>([&] { activate<S>(f, wide, y); },
                                           {"meo: y: expected 5 x 13, got 5 x 9"}) == "");
  CHECK(error_lacks<std::invalid_argument>([&] { activate_backward<S>(f, wide, y); },
                                           {"meo: gradient: expected 5 x 13, got 5 x 9"}) == "");
}

TEST_CASE("lambdas and functions are activations", "[activation]") {
  const std::vector<float> x = {-2, -1, 0, 1, 2};
  std::vector<float> y(5);
  const float* const none = nullptr;
  const float offset = 3;
  detail::activate([offset](float v) { return v + offset; }, x.data(), none, 5, y.data());
  CHECK(y == std::vector<float>{1, 2, 3, 4, 5});
  detail::activate([](const auto& v) { return v * v; }, x.data(), none, 5, y.data());
  CHECK(y == std::vector<float>{4, 1, 0, 1, 4});
  detail::activate(static_cast<float (*)(float)>(std::fabs), x.data(), none, 5, y.data());
  CHECK(y == std::vector<float>{2, 1, 0, 1, 2});
}

TEMPLATE_TEST_CASE("exponentials of an array are those of each value, to the bit, wherever it stands",
                   "[vector_math]", float, double) {
  using S = TestType;
  constexpr Index size = detail::PacketOf<S>::size, most = 3 * size + 1;
  std::vector<S> x = arguments<S>(most);
  for (S& value : x) value = -std::abs(value);
  for (Index count = 0; count <= most; ++count) {
    std::vector<S> actual = x, expected = x;
    detail::exponentials(actual.data(), count);
    for (Index i = 0; i < count; ++i) detail::exponentials(&expected[static_cast<std::size_t>(i)], 1);
    REQUIRE(bit_difference(row(actual), row(expected)) == "");
  }
}

}  // namespace activate_test
}  // namespace

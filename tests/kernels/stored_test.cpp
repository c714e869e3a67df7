// What is stored is what is computed with: every number that 8 and 16 bits can be, and the scales of 8.

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include <meo/kernels/parts/stored.hpp>
#include <meo/kernels/storage.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace stored_test {

using namespace meo;
using namespace meo::detail;

template <class S>
std::array<S, std::size_t(PacketOf<S>::size)> lanes_of(const Packet<S>& packet) {
  std::array<S, std::size_t(PacketOf<S>::size)> lanes{};
  store<S>(lanes.data(), packet);
  return lanes;
}

template <class Storage>
Storage from_bits(std::uint32_t bits) {
  if constexpr (sizeof(Storage) == 1) return std::bit_cast<Storage>(static_cast<std::uint8_t>(bits));
  else return Eigen::numext::bit_cast<Storage>(static_cast<std::uint16_t>(bits));
}

TEMPLATE_TEST_CASE("every number of 8 and of 16 bits is loaded as itself, from any address", "[stored]",
                   std::int8_t, Eigen::bfloat16, Eigen::half) {
  constexpr std::size_t size = PacketOf<float>::size;
  constexpr std::uint32_t count = 1u << 8 * sizeof(TestType);
  std::array<TestType, size + 1> stored;
  for (std::uint32_t first = 0; first < count; first += std::uint32_t(size)) {
    for (std::size_t i = 0; i <= size; ++i)
      stored[i] = from_bits<TestType>((first + std::uint32_t(i)) % count);
    const auto lanes = lanes_of<float>(load_stored<float>(stored.data() + 1));
    for (std::size_t i = 0; i < size; ++i) {
      const float expected = static_cast<float>(stored[i + 1]);
      const bool same = std::isnan(expected) ? std::isnan(lanes[i])
                                             : std::bit_cast<std::uint32_t>(lanes[i]) ==
                                                   std::bit_cast<std::uint32_t>(expected);
      if (!same) FAIL("bits " << first + i + 1 << ": expected " << expected << ", got " << lanes[i]);
    }
  }
  SUCCEED();
}

TEMPLATE_TEST_CASE("what is stored is loaded as what is computed", "[stored]", float, double, long double) {
  using S = TestType;
  std::array<float, std::size_t(PacketOf<S>::size) + 1> stored;
  for (std::size_t i = 0; i < stored.size(); ++i) stored[i] = 0.1f * float(i + 1);
  const auto lanes = lanes_of<S>(load_stored<S>(stored.data() + 1));
  for (std::size_t i = 0; i < lanes.size(); ++i) CHECK(lanes[i] == S(stored[i + 1]));
}

TEST_CASE("what is stored in a wider type is rounded once", "[stored]") {
  std::array<double, std::size_t(PacketOf<float>::size)> stored;
  stored.fill(0.1);
  for (const float lane : lanes_of<float>(load_stored<float>(stored.data()))) CHECK(lane == 0.1f);
}

TEMPLATE_TEST_CASE("floats are stored in 16 bits as a cast rounds them", "[stored]", Eigen::bfloat16,
                   Eigen::half) {
  constexpr std::size_t size = PacketOf<float>::size;
  std::array<float, size> values;
  std::array<TestType, size + 1> stored;
  // Every exponent and sign with fractions around ties, and what is not finite.
  for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 32; bits += std::uint64_t{size} * 2039) {
    for (std::size_t i = 0; i < size; ++i)
      values[i] = std::bit_cast<float>(static_cast<std::uint32_t>(bits + (i % 2 == 0 ? i : i << 11)));
    store_as<float>(stored.data() + 1, load<float>(values.data()));
    for (std::size_t i = 0; i < size; ++i) {
      const auto expected = static_cast<TestType>(values[i]);
      const bool same = std::isnan(values[i]) ? std::isnan(static_cast<float>(stored[i + 1]))
                                              : Eigen::numext::bit_cast<std::uint16_t>(stored[i + 1]) ==
                                                    Eigen::numext::bit_cast<std::uint16_t>(expected);
      if (!same) FAIL("expected " << expected << " of " << values[i] << ", got " << stored[i + 1]);
    }
  }
  SUCCEED();
}

TEST_CASE("floats are stored in 8 bits as the nearest integers, ties to even", "[stored]") {
  constexpr std::size_t size = PacketOf<float>::size;
  std::array<float, size> values;
  std::array<std::int8_t, size> stored;
  for (int quarters = -4 * 127; quarters <= 4 * 127 - int(size); ++quarters) {
    for (std::size_t i = 0; i < size; ++i) values[i] = float(quarters + int(i)) / 4;
    store_as<float>(stored.data(), load<float>(values.data()));
    for (std::size_t i = 0; i < size; ++i) REQUIRE(stored[i] == int(std::nearbyint(values[i])));
  }
}

TEST_CASE("quantized weights are loaded with the scales of their columns", "[stored]") {
  constexpr std::size_t size = PacketOf<float>::size;
  std::array<std::int8_t, size> stored;
  std::array<float, 2 * size> scales;
  for (std::size_t i = 0; i < size; ++i) stored[i] = static_cast<std::int8_t>(i - 2);
  for (std::size_t i = 0; i < 2 * size; ++i) scales[i] = 1.0f + float(i);
  const auto lanes = lanes_of<float>(load_weights<float>(stored.data(), scales.data(), Index(size)));
  for (std::size_t i = 0; i < size; ++i) CHECK(lanes[i] == float(stored[i]) * scales[size + i]);
}

/// The number in units of the 17th bit of its leading one.
template <class S>
S in_units(const S& scale) {
  int exponent = 0;
  return std::ldexp(std::frexp(scale, &exponent), 17);
}

TEMPLATE_TEST_CASE("a scale is the smallest of 17 bits by which 127 reaches the largest weight", "[stored]",
                   float, double) {
  using S = TestType;
  test::Generator rng(61);
  for (int i = 0; i < 20000; ++i) {
    // Among them whole multiples of 127 and what is next to them, where a rounded quotient misleads.
    const S scale_of_it =
        std::ldexp(std::round(test::uniform<S>(rng) * S(1 << 16)) + S(1 << 16), i % 60 - 40);
    S largest = S(127) * scale_of_it;
    if (i % 3 == 1) largest = std::nextafter(largest, S(0));
    if (i % 3 == 2) largest = std::nextafter(largest, std::numeric_limits<S>::infinity());
    const S scale = quantum_scale(largest);
    const S units = in_units(scale);
    REQUIRE(units == std::round(units));
    REQUIRE(S(127) * scale >= largest);
    const S unit = scale / units;
    const S below = scale - (units == S(1 << 16) ? unit / 2 : unit);
    REQUIRE(S(127) * below < largest);
    for (int q = -127; q <= 127; ++q) {
      const S weight = S(q) * scale;
      REQUIRE(weight / scale == S(q));  // no bit of the product was lost
      REQUIRE(quantized(weight, scale) == q);
    }
  }
}

TEST_CASE("no weights but zeros have the scale 0, and are stored as 0", "[stored]") {
  CHECK(quantum_scale(0.0f) == 0.0f);
  CHECK(quantized(0.0f, 0.0f) == 0);
  CHECK(quantized(-0.0f, 0.0f) == 0);
}

TEST_CASE("weights at both ends of what a float is have scales", "[stored]") {
  for (const float largest : {std::numeric_limits<float>::max(), std::numeric_limits<float>::min(),
                              std::numeric_limits<float>::denorm_min(), 3e-42f}) {
    CAPTURE(largest);
    const float scale = quantum_scale(largest);
    CHECK(std::isfinite(scale));
    CHECK(scale > 0);
    const int q = quantized(largest, scale);
    CHECK(q <= 127);
    CHECK(std::isfinite(float(q) * scale));
    CHECK(std::abs(float(q) * scale - largest) <= scale / 2);
  }
}

}  // namespace stored_test
}  // namespace

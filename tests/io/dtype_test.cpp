#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include <meo/io/dtype.hpp>

#include "support/catch.hpp"

namespace {
namespace dtype_test {

using meo::io::DType;
using meo::io::dtype_of;
namespace detail = meo::io::detail;

static_assert(dtype_of<double> == DType::F64);
static_assert(dtype_of<float> == DType::F32);
static_assert(dtype_of<long double> == DType::F64);
static_assert(dtype_of<Eigen::half> == DType::F16);
static_assert(dtype_of<Eigen::bfloat16> == DType::BF16);
static_assert(dtype_of<std::int8_t> == DType::I8);
static_assert(dtype_of<std::int16_t> == DType::I16);
static_assert(dtype_of<std::int32_t> == DType::I32);
static_assert(dtype_of<std::int64_t> == DType::I64);
static_assert(dtype_of<std::uint8_t> == DType::U8);
static_assert(dtype_of<std::uint16_t> == DType::U16);
static_assert(dtype_of<std::uint32_t> == DType::U32);
static_assert(dtype_of<std::uint64_t> == DType::U64);

static_assert(!meo::io::Element<bool>);
static_assert(!meo::io::Element<char>);
static_assert(!meo::io::Element<char32_t>);
static_assert(!meo::io::Element<void*>);

// The value of a pattern from the definition of the formats: sign · 2^(e − bias) · 1.fraction, and
// subnormals.
double value_of(std::uint16_t pattern, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (pattern & 0x8000) != 0 ? -1 : 1;
  const int exponent = (pattern & 0x7fff) >> fraction_bits;
  const int fraction = pattern & ((1 << fraction_bits) - 1);
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

struct F16 {
  using Format = detail::F16Format;
  static constexpr int exponent_bits = 5, fraction_bits = 10;
};
struct BF16 {
  using Format = detail::BF16Format;
  static constexpr int exponent_bits = 8, fraction_bits = 7;
};

TEST_CASE("names and sizes of the element types", "[io][dtype]") {
  const std::pair<const char*, std::size_t> types[] = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"I16", 2},
      {"I8", 1},  {"U64", 8}, {"U32", 4}, {"U16", 2},  {"U8", 1},  {"BOOL", 1}};
  for (const auto& [name, size] : types) {
    const DType dtype = meo::io::dtype_from_name(name);
    CHECK(dtype != DType::unknown);
    CHECK(to_string(dtype) == name);
    CHECK(meo::io::size_of(dtype) == size);
  }
  CHECK(meo::io::dtype_from_name("F8_E4M3") == DType::unknown);
  CHECK(meo::io::dtype_from_name("f32") == DType::unknown);
  CHECK(meo::io::dtype_from_name("") == DType::unknown);
  CHECK(to_string(DType::unknown) == "unknown");
  CHECK(meo::io::size_of(DType::unknown) == 0);
}

TEST_CASE("numbers lie in files lowest byte first", "[io][dtype]") {
  const std::array bytes{std::byte{0x01}, std::byte{0x23}, std::byte{0x45}, std::byte{0x67}};
  CHECK(detail::load<std::uint32_t>(bytes.data()) == 0x67452301);
  std::array<std::byte, 4> stored{};
  detail::store(std::uint32_t{0x67452301}, stored.data());
  CHECK(stored == bytes);
}

TEMPLATE_TEST_CASE("every 16-bit float is decoded exactly and encoded back", "[io][dtype]", F16, BF16) {
  using Format = typename TestType::Format;
  std::size_t wrong = 0;
  for (unsigned i = 0; i < 0x10000; ++i) {
    const auto pattern = static_cast<std::uint16_t>(i);
    const double expected = value_of(pattern, TestType::exponent_bits, TestType::fraction_bits);
    const float value = Format::decode(pattern);
    if (std::isnan(expected)) {
      wrong += !std::isnan(value) || !std::isnan(Format::decode(Format::encode(value)));
    } else {
      wrong += double{value} != expected || std::signbit(value) != std::signbit(expected);
      wrong += Format::encode(value) != pattern || Format::encode(expected) != pattern;
    }
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("what lies between two 16-bit floats is rounded to nearest even", "[io][dtype]", F16,
                   BF16) {
  using Format = typename TestType::Format;
  constexpr int infinity_pattern = ((1 << TestType::exponent_bits) - 1) << TestType::fraction_bits;
  constexpr double infinity = std::numeric_limits<double>::infinity();
  std::size_t wrong = 0;
  for (int i = 0; i < infinity_pattern; ++i) {
    const auto lower = static_cast<std::uint16_t>(i);
    const auto upper = static_cast<std::uint16_t>(i + 1);
    const double low = value_of(lower, TestType::exponent_bits, TestType::fraction_bits);
    // As if the exponent had no end: halfway to the number after the largest begins infinity.
    const double high = i + 1 < infinity_pattern
                            ? value_of(upper, TestType::exponent_bits, TestType::fraction_bits)
                            : std::ldexp(1.0, 1 << (TestType::exponent_bits - 1));
    const double middle = low + (high - low) / 2;
    wrong += Format::encode(middle) != (lower % 2 == 0 ? lower : upper);
    wrong += Format::encode(std::nextafter(middle, 0)) != lower;
    wrong += Format::encode(std::nextafter(middle, infinity)) != upper;
    wrong += Format::encode(-std::nextafter(middle, infinity)) != (upper | 0x8000);
  }
  CHECK(wrong == 0);
  CHECK(Format::encode(std::numeric_limits<double>::max()) == infinity_pattern);
  CHECK(Format::encode(std::numeric_limits<double>::denorm_min()) == 0);
  CHECK(Format::encode(-std::numeric_limits<double>::denorm_min()) == 0x8000);
  CHECK(std::isnan(Format::decode(Format::encode(std::numeric_limits<double>::quiet_NaN()))));
  // A NaN that is known by a bit that 16 bits have no room for.
  CHECK(std::isnan(Format::decode(Format::encode(std::bit_cast<double>(0x7ff0000000000001)))));
}

}  // namespace dtype_test
}  // namespace

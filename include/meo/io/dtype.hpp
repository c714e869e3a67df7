#pragma once

/// The element types of tensors in files, and how each of them is turned into a number and back.
///
/// F16 is IEEE 754 binary16; BF16 is the upper half of a binary32.

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <Eigen/Core>

#include <meo/abi.hpp>
#include <meo/compiled.hpp>
#include <meo/finite.hpp>

namespace meo::inline MEO_ABI::io {

/// Named as in the files; unknown stands for the types of newer versions of the format, which cannot be read.
enum class DType { F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL, unknown };

template <class T>
concept Integer = std::integral<T> && !std::same_as<T, bool> && sizeof(T) <= 8 &&
                  (std::same_as<T, std::make_signed_t<T>> || std::same_as<T, std::make_unsigned_t<T>>);

template <class S>
concept FloatLike = !std::integral<S> && std::default_initializable<S> &&
                    std::constructible_from<S, double> && std::constructible_from<double, S>;

/// What tensors are read into and written from: integers, and any other scalar that converts from and to
/// double. bool and the character types are not among them; a BOOL tensor holds the integers 0 and 1.
template <class S>
concept Element = Integer<S> || FloatLike<S>;

namespace detail {

struct DTypeFacts {
  DType dtype;
  std::string_view name;
  std::size_t size;
};

/// In the order of the enumeration.
inline constexpr std::array<DTypeFacts, 13> dtype_facts{{
    {DType::F64, "F64", 8},
    {DType::F32, "F32", 4},
    {DType::F16, "F16", 2},
    {DType::BF16, "BF16", 2},
    {DType::I64, "I64", 8},
    {DType::I32, "I32", 4},
    {DType::I16, "I16", 2},
    {DType::I8, "I8", 1},
    {DType::U64, "U64", 8},
    {DType::U32, "U32", 4},
    {DType::U16, "U16", 2},
    {DType::U8, "U8", 1},
    {DType::BOOL, "BOOL", 1},
}};

}  // namespace detail

/// The name that files have for it, as "F32".
constexpr std::string_view to_string(DType dtype) {
  return dtype == DType::unknown ? "unknown" : detail::dtype_facts[static_cast<std::size_t>(dtype)].name;
}

/// Bytes of an element; 0 if unknown.
constexpr std::size_t size_of(DType dtype) {
  return dtype == DType::unknown ? 0 : detail::dtype_facts[static_cast<std::size_t>(dtype)].size;
}

/// The type of that name, unknown if there is none.
constexpr DType dtype_from_name(std::string_view name) {
  for (const auto& facts : detail::dtype_facts) {
    if (facts.name == name) return facts.dtype;
  }
  return DType::unknown;
}

namespace detail {

template <class S>
constexpr DType natural_dtype() {
  if constexpr (Integer<S>) {
    constexpr DType of_size[] = {DType::I8, DType::I16, DType::I32, DType::I64};
    constexpr DType of_size_unsigned[] = {DType::U8, DType::U16, DType::U32, DType::U64};
    constexpr int size = std::countr_zero(sizeof(S));
    return std::is_signed_v<S> ? of_size[size] : of_size_unsigned[size];
  }
  if constexpr (std::same_as<S, float>) return DType::F32;
  if constexpr (std::same_as<S, Eigen::half>) return DType::F16;
  if constexpr (std::same_as<S, Eigen::bfloat16>) return DType::BF16;
  return DType::F64;
}

}  // namespace detail

/// The type that holds every S; F64 for scalars that none holds.
template <Element S>
inline constexpr DType dtype_of = detail::natural_dtype<S>();

namespace detail {

/// Files are little-endian, whatever the host is.
template <class T>
T load(const std::byte* bytes) {
  std::array<std::byte, sizeof(T)> raw;
  std::copy_n(bytes, sizeof(T), raw.begin());
  if constexpr (std::endian::native == std::endian::big) std::reverse(raw.begin(), raw.end());
  return std::bit_cast<T>(raw);
}

template <class T>
void store(T value, std::byte* bytes) {
  auto raw = std::bit_cast<std::array<std::byte, sizeof(T)>>(value);
  if constexpr (std::endian::native == std::endian::big) std::reverse(raw.begin(), raw.end());
  std::copy(raw.begin(), raw.end(), bytes);
}

/// The nearest number of a 16-bit format, ties to even, from a double: going through float would round twice.
template <int ExponentBits, int FractionBits>
constexpr std::uint16_t round_to_16_bits(double value) {
  constexpr int smallest_normal = 2 - (1 << (ExponentBits - 1));  // its exponent
  constexpr std::uint64_t infinity = ((std::uint64_t{1} << ExponentBits) - 1) << FractionBits;
  constexpr std::uint64_t quiet = std::uint64_t{1} << (FractionBits - 1);

  const auto bits = std::bit_cast<std::uint64_t>(value);
  const std::uint64_t sign = bits >> 63 << 15;
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
  const std::uint64_t fraction = bits & ((std::uint64_t{1} << 52) - 1);
  if (exponent == 1024 && fraction != 0) {
    return static_cast<std::uint16_t>(sign | infinity | quiet | fraction >> (52 - FractionBits));
  }

  // Below the smallest normal number every step of the exponent costs a bit of the significand.
  const std::uint64_t significand = fraction | std::uint64_t{1} << 52;
  const int lost_bits = (std::min)(52 - FractionBits + (std::max)(smallest_normal - exponent, 0), 63);
  const std::uint64_t kept = significand >> lost_bits;
  const std::uint64_t lost = significand - (kept << lost_bits);
  const std::uint64_t half = std::uint64_t{1} << (lost_bits - 1);
  const bool up = lost > half || (lost == half && kept % 2 == 1);
  // The leading one that kept includes is carried into the exponent, and so is rounding up to a power of two.
  const auto biased = static_cast<std::uint64_t>((std::max)(exponent - smallest_normal, 0));
  return static_cast<std::uint16_t>(sign |
                                    (std::min)((biased << FractionBits) + kept + (up ? 1 : 0), infinity));
}

// A format has the type Raw that lies in the file and decode(Raw), the number. A floating format has
// encode(number) as well and the bits of infinity, an integer format holds(integer), whether the integer is
// one of its values.

template <std::floating_point T>
struct FloatFormat {
  using Raw = T;
  static constexpr auto infinity = [] {
    if constexpr (sizeof(T) == 8) return std::uint64_t{0x7ff0000000000000};
    else return std::uint32_t{0x7f800000};
  }();
  static T decode(T raw) { return raw; }
  template <class S>
  static T encode(const S& value) {
    return static_cast<T>(value);
  }
};

struct F16Format {
  using Raw = std::uint16_t;
  static constexpr std::uint16_t infinity = 0x7c00;
  static float decode(std::uint16_t raw) {
    const std::uint32_t sign = std::uint32_t{raw} >> 15 << 31;
    const std::uint32_t exponent = raw >> 10 & 0x1f;
    const std::uint32_t fraction = raw & 0x3ff;
    if (exponent == 0) return (sign == 0 ? 0x1p-24f : -0x1p-24f) * static_cast<float>(fraction);
    const std::uint32_t float_exponent = exponent == 0x1f ? 0xff : exponent - 15 + 127;
    return std::bit_cast<float>(sign | float_exponent << 23 | fraction << 13);
  }
  template <class S>
  static std::uint16_t encode(const S& value) {
    return round_to_16_bits<5, 10>(static_cast<double>(value));
  }
};

struct BF16Format {
  using Raw = std::uint16_t;
  static constexpr std::uint16_t infinity = 0x7f80;
  static float decode(std::uint16_t raw) { return std::bit_cast<float>(std::uint32_t{raw} << 16); }
  template <class S>
  static std::uint16_t encode(const S& value) {
    return round_to_16_bits<8, 7>(static_cast<double>(value));
  }
};

template <Integer T>
struct IntegerFormat {
  using Raw = T;
  static T decode(T raw) { return raw; }
  static bool holds(Integer auto value) { return std::in_range<T>(value); }
};

struct BoolFormat {
  using Raw = std::uint8_t;
  static std::uint8_t decode(std::uint8_t raw) { return raw; }
  static bool holds(Integer auto value) { return value == 0 || value == 1; }
};

/// Calls visit with the format of a dtype that is not unknown.
template <class Visitor>
void with_format(DType dtype, Visitor&& visit) {
  switch (dtype) {
    case DType::F64:
      return visit(FloatFormat<double>{});
    case DType::F32:
      return visit(FloatFormat<float>{});
    case DType::F16:
      return visit(F16Format{});
    case DType::BF16:
      return visit(BF16Format{});
    case DType::I64:
      return visit(IntegerFormat<std::int64_t>{});
    case DType::I32:
      return visit(IntegerFormat<std::int32_t>{});
    case DType::I16:
      return visit(IntegerFormat<std::int16_t>{});
    case DType::I8:
      return visit(IntegerFormat<std::int8_t>{});
    case DType::U64:
      return visit(IntegerFormat<std::uint64_t>{});
    case DType::U32:
      return visit(IntegerFormat<std::uint32_t>{});
    case DType::U16:
      return visit(IntegerFormat<std::uint16_t>{});
    case DType::U8:
      return visit(IntegerFormat<std::uint8_t>{});
    case DType::BOOL:
      return visit(BoolFormat{});
    case DType::unknown:
      return;
  }
}

template <class Format>
concept HoldsIntegers = requires {
  Format::holds(0);
};

/// out = the number that raw stands for; false, and out is left alone, if raw or that number is no valid
/// value.
template <class Format, Element S>
bool read_number(typename Format::Raw raw, S& out) {
  const auto number = Format::decode(raw);
  if constexpr (HoldsIntegers<Format>) {
    if (!Format::holds(number)) return false;
    if constexpr (Integer<S>) {
      if (!std::in_range<S>(number)) return false;
    }
  }
  out = static_cast<S>(number);
  return true;
}

/// The other way.
template <class Format, Element S>
bool write_number(const S& number, typename Format::Raw& out) {
  if constexpr (HoldsIntegers<Format>) {
    if (!Format::holds(number)) return false;
    out = static_cast<typename Format::Raw>(number);
  } else {
    out = Format::encode(number);
  }
  return true;
}

/// out = the numbers that lie in the bytes. Returns how many come before the first that read_number refuses;
/// from there on out is left alone.
template <class Format, Element S>
std::size_t read_numbers(const std::byte* bytes, std::span<S> out) {
  using Raw = typename Format::Raw;
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (!read_number<Format>(load<Raw>(bytes + i * sizeof(Raw)), out[i])) return i;
  }
  return out.size();
}

/// The other way.
template <class Format, Element S>
std::size_t write_numbers(std::span<const S> numbers, std::byte* out) {
  typename Format::Raw raw{};
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (!write_number<Format>(numbers[i], raw)) return i;
    store(raw, out + i * sizeof(raw));
  }
  return numbers.size();
}

/// read_numbers of a format, and write_numbers.
template <Element S>
using ReadNumbers = std::size_t (*)(const std::byte*, std::span<S>);
template <Element S>
using WriteNumbers = std::size_t (*)(std::span<const S>, std::byte*);

/// read_numbers for a type that is not unknown; null if that are floats and S is an integer.
template <Element S>
ReadNumbers<S> reader_of(DType dtype) {
  ReadNumbers<S> read = nullptr;
  with_format(dtype, [&]<class Format>(Format) {
    if constexpr (HoldsIntegers<Format> || !Integer<S>) read = read_numbers<Format, S>;
  });
  return read;
}

/// write_numbers; null if S is no integer and the type holds only those.
template <Element S>
WriteNumbers<S> writer_of(DType dtype) {
  WriteNumbers<S> write = nullptr;
  with_format(dtype, [&]<class Format>(Format) {
    if constexpr (!HoldsIntegers<Format> || Integer<S>) write = write_numbers<Format, S>;
  });
  return write;
}

/// The largest finite number of S, if that is a double.
template <FloatLike S>
double largest_finite() {
  using Limits = std::numeric_limits<S>;
  if constexpr (Limits::is_specialized && Limits::max_exponent < std::numeric_limits<double>::max_exponent) {
    return static_cast<double>((Limits::max)());
  }
  return (std::numeric_limits<double>::max)();
}

/// The place of the first number in the bytes that is not finite or beyond ±largest, and the number; nothing
/// if there is none.
MEO_IO_INLINE std::optional<std::pair<std::size_t, double>> first_unfit(DType dtype,
                                                                        std::span<const std::byte> bytes,
                                                                        double largest);

/// By the bits as well.
MEO_IO_INLINE const char* text_of_not_finite(const double& number);

/// An integer that lies in the bytes.
MEO_IO_INLINE std::string integer_text(DType dtype, const std::byte* bytes);

/// The integers that a type holds.
MEO_IO_INLINE std::string range_of(DType dtype);

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE std::optional<std::pair<std::size_t, double>> first_unfit(DType dtype,
                                                                        std::span<const std::byte> bytes,
                                                                        double largest) {
  if (dtype == DType::BOOL) return std::nullopt;
  const auto read = reader_of<double>(dtype);
  const std::size_t element_size = size_of(dtype);
  std::array<double, 256> numbers;
  for (std::size_t begin = 0; begin < bytes.size() / element_size; begin += numbers.size()) {
    const std::size_t count = (std::min)(numbers.size(), bytes.size() / element_size - begin);
    read(bytes.data() + begin * element_size, std::span(numbers).first(count));
    for (std::size_t i = 0; i < count; ++i) {
      // By the bits, because with -ffast-math compilers take every number for finite.
      if (!meo::detail::is_finite(numbers[i]) || numbers[i] < -largest || numbers[i] > largest) {
        return std::pair(begin + i, numbers[i]);
      }
    }
  }
  return std::nullopt;
}

MEO_IO_INLINE const char* text_of_not_finite(const double& number) {
  constexpr auto infinity = std::bit_cast<std::uint64_t>(std::numeric_limits<double>::infinity());
  const auto bits = std::bit_cast<std::uint64_t>(number);
  return bits == infinity ? "inf" : bits << 1 == infinity << 1 ? "-inf" : "nan";
}

MEO_IO_INLINE std::string integer_text(DType dtype, const std::byte* bytes) {
  std::uint64_t number = 0;
  bool negative = false;
  with_format(dtype, [&]<class Format>(Format) {
    if constexpr (HoldsIntegers<Format>) {
      const auto integer = Format::decode(load<typename Format::Raw>(bytes));
      negative = std::cmp_less(integer, 0);
      number = static_cast<std::uint64_t>(integer);
    }
  });
  return negative ? std::to_string(static_cast<std::int64_t>(number)) : std::to_string(number);
}

MEO_IO_INLINE std::string range_of(DType dtype) {
  if (dtype == DType::BOOL) return "0 to 1";
  const bool is_signed = to_string(dtype).front() == 'I';
  const std::uint64_t largest = ~std::uint64_t{0} >> (64 - 8 * size_of(dtype) + (is_signed ? 1 : 0));
  const std::int64_t smallest = is_signed ? -1 - static_cast<std::int64_t>(largest) : 0;
  return std::to_string(smallest) + " to " + std::to_string(largest);
}

#endif

#define MEO_INSTANCES(instance, Scalar)                  \
  instance ReadNumbers<Scalar> reader_of<Scalar>(DType); \
  instance WriteNumbers<Scalar> writer_of<Scalar>(DType);
MEO_IO_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace detail

}  // namespace meo::io

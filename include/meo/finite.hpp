#pragma once

/// Whether a number is finite, whatever the compiler has been told to assume: with -ffast-math comparisons
/// and differences that NaN or an infinity would betray are folded away, the bits are not.

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// The bits of the exponent, which are all set in infinities and NaN.
template <class Scalar>
inline constexpr int exponent_bits = 0;  // known of no other
template <>
inline constexpr std::uint64_t exponent_bits<double> = 0x7ff0'0000'0000'0000;
template <>
inline constexpr std::uint32_t exponent_bits<float> = 0x7f80'0000;
template <>
inline constexpr std::uint16_t exponent_bits<Eigen::bfloat16> = 0x7f80;
template <>
inline constexpr std::uint16_t exponent_bits<Eigen::half> = 0x7c00;

/// By reference: a compiler that assumes finite numbers may assume so of arguments that it passes by value.
/// Scalars of which the bits are unknown need no more than − and ==.
template <class Scalar>
bool is_finite(const Scalar& x) {
  if constexpr (exponent_bits<Scalar> != 0) {
    constexpr auto mask = exponent_bits<Scalar>;
    return (std::bit_cast<std::remove_const_t<decltype(mask)>>(x) & mask) != mask;
  } else if constexpr (std::same_as<Scalar, long double>) {
    // Its format is the platform's. The fraction of a finite number fits a double, that of others is x
    // itself.
    int exponent = 0;
    const auto fraction = static_cast<double>(std::frexp(x, &exponent));
    return is_finite(fraction);
  } else if constexpr (requires { x.derivatives(); }) {
    return is_finite(x.value());  // automatic differentiation
  } else {
    return x - x == Scalar(0);
  }
}

}  // namespace meo::detail

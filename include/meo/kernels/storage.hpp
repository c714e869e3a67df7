#pragma once

/// What weights are stored as, under the scalar that is computed with: the scalar itself, another type that
/// holds fractions, or an integer of 8 bits with a scale.

#include <cmath>
#include <cstdint>
#include <type_traits>

#include <meo/finite.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Whether weights are stored as what is computed with. Else a weight is converted, exactly, wherever it is
/// read; biases are few, and stay scalars.
template <class Scalar, class Storage>
inline constexpr bool stores_scalars = std::is_same_v<Scalar, std::remove_const_t<Storage>>;

/// Whether a weight is stored as an integer q of −127 … 127, and is q · s with one scale s for each output of
/// an expert.
template <class Storage>
inline constexpr bool is_quantized = std::is_same_v<std::remove_const_t<Storage>, std::int8_t>;

inline constexpr int largest_quantum = 127;

/// The smallest scale of 17 bits by which no weight of the size `largest` is beyond 127, or the largest for
/// which 127 is finite: with so few bits all products q · s are exact in a scalar of 24 bits or more. So
/// weights read back and stored again are the same, and an expert of 8 bits is, to the bit, the expert of
/// scalars that it reads as.
template <class Scalar>
Scalar quantum_scale(const Scalar& largest) {
  using std::ceil;
  using std::frexp;
  using std::ldexp;
  if (!(largest > Scalar(0))) return Scalar(0);
  constexpr int bits = 17;
  int exponent = 0;
  const Scalar fraction = frexp(largest / Scalar(largest_quantum), &exponent);
  const auto in_units = [&](const Scalar& units) { return Scalar(ldexp(units, exponent - bits)); };
  const Scalar units = ceil(ldexp(fraction, bits));
  // The quotient was rounded, perhaps down to a number of 17 bits.
  if (in_units(units) * Scalar(largest_quantum) < largest) return in_units(units + Scalar(1));
  if (!is_finite(Scalar(in_units(units) * Scalar(largest_quantum)))) return in_units(units - Scalar(1));
  return in_units(units);
}

/// The q of the nearest q · scale to a weight, of which none is beyond quantum_scale's; ties to even.
template <class Scalar>
std::int8_t quantized(const Scalar& weight, const Scalar& scale) {
  using std::nearbyint;
  return scale > Scalar(0) ? static_cast<std::int8_t>(nearbyint(weight / scale)) : std::int8_t{0};
}

}  // namespace meo::detail

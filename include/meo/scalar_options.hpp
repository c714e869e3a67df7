#pragma once

/// Options are given in double and computed with in the scalar of a layer or of an optimiser, which may hold
/// less.

#include <string_view>

#include <meo/errors.hpp>
#include <meo/finite.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Throws std::invalid_argument unless Scalar holds `value` as a finite number.
template <class Scalar>
void require_fits(double value, std::string_view name) {
  require(is_finite(static_cast<Scalar>(value)), name, ": expected a number that the scalar holds, got ",
          value);
}

/// Throws std::invalid_argument unless `value` is finite and at least 0, in Scalar as well.
template <class Scalar>
void require_not_negative(double value, std::string_view name) {
  require(is_finite(value) && value >= 0, name, ": expected a finite number of at least 0, got ", value);
  require_fits<Scalar>(value, name);
}

/// Throws std::invalid_argument unless `value` is finite and above 0, in Scalar as well.
template <class Scalar>
void require_positive(double value, std::string_view name) {
  require(is_finite(value) && value > 0, name, ": expected a finite number above 0, got ", value);
  require_fits<Scalar>(value, name);
  require(static_cast<Scalar>(value) > Scalar(0), name,
          ": expected a number that the scalar does not round to 0, got ", value);
}

}  // namespace meo::detail

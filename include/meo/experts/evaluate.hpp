#pragma once

/// How a block evaluates an activation: in float for scalars of 16 bits, whose own arithmetic would round at
/// every step, where the functor takes floats; else as it is.

#include <type_traits>

#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

template <class Activation, class Scalar>
inline constexpr bool is_evaluated_in_float =
    is_16_bit<Scalar>&& std::is_invocable_r_v<float, const Activation&, const float&>;

template <class Activation, class Scalar>
Scalar evaluate(const Activation& activation, const Scalar& x) {
  if constexpr (is_evaluated_in_float<Activation, Scalar>)
    return static_cast<Scalar>(activation(static_cast<float>(x)));
  else return activation(x);
}

template <class Activation, class Scalar>
Scalar evaluate_derivative(const Activation& activation, const Scalar& x) {
  if constexpr (is_evaluated_in_float<Activation, Scalar>)
    return static_cast<Scalar>(activation.derivative(static_cast<float>(x)));
  else return activation.derivative(x);
}

}  // namespace meo::detail

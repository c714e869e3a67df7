#pragma once

/// How a block evaluates an activation: in float for scalars of 16 bits, whose own arithmetic would round at
/// every step, where the functor takes floats; else as it is.

#include <concepts>

#include <meo/experts/gated_activation.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

template <class Activation, class Scalar>
inline constexpr bool is_evaluated_in_float = is_16_bit<Scalar> && (PlainActivation<Activation, float> ||
                                                                    GatedActivation<Activation, float>);

/// Of one input or two.
template <class Activation, class Scalar, std::same_as<Scalar>... Further>
Scalar evaluate(const Activation& activation, const Scalar& x, const Further&... further) {
  if constexpr (is_evaluated_in_float<Activation, Scalar>)
    return static_cast<Scalar>(activation(static_cast<float>(x), static_cast<float>(further)...));
  else return activation(x, further...);
}

template <class Activation, class Scalar>
Scalar evaluate_derivative(const Activation& activation, const Scalar& x) {
  if constexpr (is_evaluated_in_float<Activation, Scalar>)
    return static_cast<Scalar>(activation.derivative(static_cast<float>(x)));
  else return activation.derivative(x);
}

template <class Activation, class Scalar>
GatedDerivative<Scalar> evaluate_derivative(const Activation& activation, const Scalar& x,
                                            const Scalar& linear) {
  if constexpr (is_evaluated_in_float<Activation, Scalar>) {
    const auto wide = activation.derivative(static_cast<float>(x), static_cast<float>(linear));
    return {static_cast<Scalar>(wide.activated), static_cast<Scalar>(wide.linear)};
  } else {
    const auto slopes = activation.derivative(x, linear);
    return {slopes.activated, slopes.linear};
  }
}

}  // namespace meo::detail

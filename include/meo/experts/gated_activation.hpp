#pragma once

/// Activations of gated blocks that are functions of both inputs, hidden = f(activated, linear), where others
/// are f(activated) · linear: `activated` is the output of the block's `up`, that of `gate_proj` in files of
/// public models, and `linear` the output of `gate_up`, their `up_proj`.
///
/// Any functor of two scalars serves; to be trained through it needs a member `derivative` of the same two
/// that gives a GatedDerivative.

#include <concepts>
#include <type_traits>

#include <meo/experts/activation.hpp>
#include <meo/kernels/vector_math.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// The partial derivatives of a gated activation by its two inputs.
template <class Scalar>
struct GatedDerivative {
  Scalar activated;  ///< by the first
  Scalar linear;     ///< by the second
};

namespace detail {

/// Activation is a function of one scalar.
template <class Activation, class Scalar>
concept PlainActivation = std::is_invocable_r_v<Scalar, const Activation&, const Scalar&>;

/// Activation is a function of two scalars, and only of two.
template <class Activation, class Scalar>
concept GatedActivation = !PlainActivation<Activation, Scalar> &&
                          std::is_invocable_r_v<Scalar, const Activation&, const Scalar&, const Scalar&>;

/// There is a backward through Activation.
template <class Activation, class Scalar>
concept DifferentiableActivation = (PlainActivation<Activation, Scalar> &&
                                    requires(const Activation& f, const Scalar& x) {
                                      { f.derivative(x) } -> std::convertible_to<Scalar>;
                                    }) ||
                                   (GatedActivation<Activation, Scalar> &&
                                    requires(const Activation& f, const Scalar& x) {
                                      { f.derivative(x, x).activated } -> std::convertible_to<Scalar>;
                                      { f.derivative(x, x).linear } -> std::convertible_to<Scalar>;
                                    });

/// A gated activation's value and derivatives; the compiler drops those that are not used.
template <class P>
struct GatedValueAndSlopes {
  P value;
  P activated;
  P linear;
};

}  // namespace detail

/// The activation of gpt-oss (OpenAI 2025, arXiv 2508.10925): a · σ(α a) · (u + 1), with a = min(activated,
/// limit) and u = linear held within ±limit. As PyTorch's clamp has them, derivatives are those of the inside
/// at the limits, and 0 beyond. NaN stays NaN.
struct GptOssSwiglu {
  double alpha = 1.702;  ///< α, above 0
  double limit = 7;      ///< above 0

  /// The function.
  template <class Scalar>
  Scalar operator()(const Scalar& activated, const Scalar& linear) const {
    if constexpr (detail::VectorMath<Scalar>) {
      return detail::first<Scalar>(
          packets<Scalar>(detail::broadcast(activated), detail::broadcast(linear)).value);
    } else if constexpr (detail::is_16_bit<Scalar>) {
      return static_cast<Scalar>((*this)(static_cast<float>(activated), static_cast<float>(linear)));
    } else {
      return value_at(scaled(activated)) * shifted(linear);
    }
  }

  /// Its derivatives.
  template <class Scalar>
  GatedDerivative<Scalar> derivative(const Scalar& activated, const Scalar& linear) const {
    if constexpr (detail::VectorMath<Scalar>) {
      const auto at = packets<Scalar>(detail::broadcast(activated), detail::broadcast(linear));
      return {detail::first<Scalar>(at.activated), detail::first<Scalar>(at.linear)};
    } else if constexpr (detail::is_16_bit<Scalar>) {
      const auto wide = derivative(static_cast<float>(activated), static_cast<float>(linear));
      return {static_cast<Scalar>(wide.activated), static_cast<Scalar>(wide.linear)};
    } else {
      const Scalar most(limit), z = scaled(activated);
      const bool is_held = linear > most || linear < -most;
      return {activated > most ? Scalar(0) : Scalar(Silu().derivative(z) * shifted(linear)),
              is_held ? Scalar(0) : value_at(z)};
    }
  }

  /// All of them on packets.
  template <detail::VectorMath Scalar>
  MEO_INLINE detail::GatedValueAndSlopes<detail::Packet<Scalar>> packets(
      const detail::Packet<Scalar>& activated, const detail::Packet<Scalar>& linear) const {
    const auto most = detail::broadcast(static_cast<Scalar>(limit)),
               least = detail::broadcast(static_cast<Scalar>(-limit));
    const auto silu = detail::silu<Scalar>(
        detail::multiply(detail::minimum(activated, most), detail::broadcast(static_cast<Scalar>(alpha))));
    const auto value = detail::multiply(silu.value, detail::broadcast(static_cast<Scalar>(1 / alpha)));
    const auto factor =
        detail::add(detail::minimum(detail::maximum(linear, least), most), detail::broadcast(Scalar(1)));
    const auto is_held = detail::bit_or(detail::less(most, linear), detail::less(linear, least));
    return {detail::multiply(value, factor),
            detail::bit_clear(detail::multiply(silu.slope, factor), detail::less(most, activated)),
            detail::bit_clear(value, is_held)};
  }

 private:
  /// α a
  template <class Scalar>
  Scalar scaled(const Scalar& activated) const {
    const Scalar most(limit);
    return (activated > most ? most : activated) * Scalar(alpha);
  }
  /// a σ(α a)
  template <class Scalar>
  Scalar value_at(const Scalar& scaled) const {
    return Silu()(scaled) / Scalar(alpha);
  }
  /// u + 1
  template <class Scalar>
  Scalar shifted(const Scalar& linear) const {
    const Scalar most(limit), least(-limit);
    return (linear > most ? most : linear < least ? least : linear) + Scalar(1);
  }
};

}  // namespace meo

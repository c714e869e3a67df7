#pragma once

/// Activations of whole arrays and matrices, forward and backward, for float and double packet by packet
/// where the activation has a form on packets.

#include <algorithm>
#include <concepts>

#include <meo/errors.hpp>
#include <meo/experts/activation.hpp>
#include <meo/experts/evaluate.hpp>
#include <meo/experts/gated_activation.hpp>
#include <meo/kernels/vector_math.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

/// Activation computes values and slopes of packets of Scalar.
template <class Activation, class Scalar>
concept PacketActivation = VectorMath<Scalar> && requires(const Activation& f, const Packet<Scalar>& x) {
  { f.template packets<Scalar>(x) } -> std::same_as<ValueAndSlope<Packet<Scalar>>>;
};

/// Activation stands for another that is known only when the program runs, and visit calls a function with
/// it.
template <class Activation>
concept ChosenActivation = requires(const Activation& f) {
  f.visit([](const auto&) {});
};

/// The same of an activation of two inputs.
template <class Activation, class Scalar>
concept PacketGatedActivation = VectorMath<Scalar> && GatedActivation<Activation, Scalar> &&
    requires(const Activation& f, const Packet<Scalar>& x) {
  { f.template packets<Scalar>(x, x) } -> std::same_as<GatedValueAndSlopes<Packet<Scalar>>>;
};

/// y = f(activated, linear). y may be either of them. An element's bits do not depend on where in an array it
/// stands.
template <class Activation, class Scalar>
void activate_gated(const Activation& f, const Scalar* activated, const Scalar* linear, Index count,
                    Scalar* y) {
  Index i = 0;
  if constexpr (PacketGatedActivation<Activation, Scalar>) {
    constexpr Index size = PacketOf<Scalar>::size;
    for (; i + size <= count; i += size) {
      store<Scalar>(y + i,
                    f.template packets<Scalar>(load<Scalar>(activated + i), load<Scalar>(linear + i)).value);
    }
  }
  for (; i < count; ++i) y[i] = evaluate(f, activated[i], linear[i]);
}

/// Gradients of activate_gated(f, activated, linear, count, y): from that of y to that of `activated` in
/// place, and to that of `linear`.
template <class Activation, class Scalar>
void activate_gated_backward(const Activation& f, const Scalar* activated, const Scalar* linear, Index count,
                             Scalar* gradient, Scalar* d_linear) {
  Index i = 0;
  if constexpr (PacketGatedActivation<Activation, Scalar>) {
    constexpr Index size = PacketOf<Scalar>::size;
    for (; i + size <= count; i += size) {
      const auto at = f.template packets<Scalar>(load<Scalar>(activated + i), load<Scalar>(linear + i));
      const Packet<Scalar> d = load<Scalar>(gradient + i);
      store<Scalar>(d_linear + i, multiply(d, at.linear));
      store<Scalar>(gradient + i, multiply(d, at.activated));
    }
  }
  for (; i < count; ++i) {
    const GatedDerivative<Scalar> slopes = evaluate_derivative(f, activated[i], linear[i]);
    d_linear[i] = gradient[i] * slopes.linear;
    gradient[i] = gradient[i] * slopes.activated;
  }
}

/// y = f(x) · factor, the factor only where there is one; of an activation of two inputs, of which the factor
/// is one, y = f(x, factor). y may be x. An element's bits do not depend on where in an array it stands.
template <class Activation, class Scalar>
void activate(const Activation& f, const Scalar* x, const Scalar* factor, Index count, Scalar* y) {
  if constexpr (GatedActivation<Activation, Scalar>) {
    activate_gated(f, x, factor, count, y);
  } else if constexpr (ChosenActivation<Activation>) {
    f.visit([&](const auto& chosen) { activate(chosen, x, factor, count, y); });
  } else if constexpr (PacketActivation<Activation, Scalar>) {
    constexpr Index size = PacketOf<Scalar>::size;
    const Index whole = count - count % size;
    for (Index i = 0; i < whole; i += size) {
      Packet<Scalar> value = f.template packets<Scalar>(load<Scalar>(x + i)).value;
      if (factor != nullptr) value = multiply(value, load<Scalar>(factor + i));
      store<Scalar>(y + i, value);
    }
    if (whole == count) return;
    Scalar last[size] = {}, last_factor[size] = {};
    std::copy_n(x + whole, count - whole, last);
    if (factor != nullptr) std::copy_n(factor + whole, count - whole, last_factor);
    activate(f, last, factor != nullptr ? last_factor : nullptr, size, last);
    std::copy_n(last, count - whole, y + whole);
  } else {
    for (Index i = 0; i < count; ++i) {
      y[i] = evaluate(f, x[i]);
      if (factor != nullptr) y[i] = y[i] * factor[i];
    }
  }
}

/// Gradients of activate(f, x, factor, count, y): from that of y to that of x in place, and with a factor to
/// its own, d_factor.
template <class Activation, class Scalar>
void activate_backward(const Activation& f, const Scalar* x, const Scalar* factor, Index count,
                       Scalar* gradient, Scalar* d_factor) {
  if constexpr (GatedActivation<Activation, Scalar>) {
    activate_gated_backward(f, x, factor, count, gradient, d_factor);
  } else if constexpr (ChosenActivation<Activation>) {
    f.visit([&](const auto& chosen) { activate_backward(chosen, x, factor, count, gradient, d_factor); });
  } else if constexpr (PacketActivation<Activation, Scalar>) {
    constexpr Index size = PacketOf<Scalar>::size;
    const Index whole = count - count % size;
    for (Index i = 0; i < whole; i += size) {
      const auto at_x = f.template packets<Scalar>(load<Scalar>(x + i));
      Packet<Scalar> d = load<Scalar>(gradient + i);
      if (factor != nullptr) {
        store<Scalar>(d_factor + i, multiply(d, at_x.value));
        d = multiply(d, load<Scalar>(factor + i));
      }
      store<Scalar>(gradient + i, multiply(d, at_x.slope));
    }
    if (whole == count) return;
    Scalar last[size] = {}, last_factor[size] = {}, last_gradient[size] = {}, last_d_factor[size];
    std::copy_n(x + whole, count - whole, last);
    std::copy_n(gradient + whole, count - whole, last_gradient);
    if (factor != nullptr) std::copy_n(factor + whole, count - whole, last_factor);
    activate_backward(f, last, factor != nullptr ? last_factor : nullptr, size, last_gradient, last_d_factor);
    std::copy_n(last_gradient, count - whole, gradient + whole);
    if (factor != nullptr) std::copy_n(last_d_factor, count - whole, d_factor + whole);
  } else {
    for (Index i = 0; i < count; ++i) {
      const Scalar slope = evaluate_derivative(f, x[i]);
      if (factor == nullptr) {
        gradient[i] = gradient[i] * slope;
      } else {
        d_factor[i] = gradient[i] * evaluate(f, x[i]);
        gradient[i] = gradient[i] * factor[i] * slope;
      }
    }
  }
}

}  // namespace detail

/// y = f(x), value by value, on as many threads as OpenMP is set to. x, y: rows × columns; y may be x. Throws
/// std::invalid_argument for a y of another shape. Activation: as that of FeedForward, of one input.
template <class Scalar, detail::PlainActivation<Scalar> Activation>
void activate(const Activation& f, const MatrixView<Scalar>& x, MatrixRef<Scalar> y) {
  detail::require_shape(y, x.rows(), x.cols(), "y");
  detail::parallel_ranges(x.rows(), detail::max_threads(), [&](Index begin, Index end, Index) {
    const Scalar* const no_factor = nullptr;
    for (Index r = begin; r < end; ++r) detail::activate(f, x.row(r), no_factor, x.cols(), y.row(r).data());
  });
}

/// From the gradient of f(x) to that of x, in place; as activate.
template <class Scalar, detail::PlainActivation<Scalar> Activation>
void activate_backward(const Activation& f, const MatrixView<Scalar>& x, MatrixRef<Scalar> gradient) {
  detail::require_shape(gradient, x.rows(), x.cols(), "gradient");
  detail::parallel_ranges(x.rows(), detail::max_threads(), [&](Index begin, Index end, Index) {
    const Scalar* const no_factor = nullptr;
    Scalar* const no_gradient = nullptr;
    for (Index r = begin; r < end; ++r)
      detail::activate_backward(f, x.row(r), no_factor, x.cols(), gradient.row(r).data(), no_gradient);
  });
}

}  // namespace meo

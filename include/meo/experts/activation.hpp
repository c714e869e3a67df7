#pragma once

/// Activations of feed-forward blocks, with their derivatives. Any other functor Scalar → Scalar serves as
/// well; to be trained through it needs a member `derivative`, Scalar → Scalar, too.

#include <cmath>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// max(x, 0); NaN stays NaN.
struct Relu {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    return x < Scalar(0) ? Scalar(0) : x;
  }
  /// 0 at 0, as PyTorch has it.
  template <class Scalar>
  Scalar derivative(const Scalar& x) const {
    return x > Scalar(0) ? Scalar(1) : Scalar(0);
  }
};

/// x Φ(x), the exact form by erf (Hendrycks and Gimpel 2016, arXiv 1606.08415).
struct Gelu {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    using std::erf;
    return Scalar(0.5) * x * (Scalar(1) + erf(x * Scalar(0.70710678118654752440L)));
  }
  /// Φ(x) + x φ(x)
  template <class Scalar>
  Scalar derivative(const Scalar& x) const {
    using std::erfc;
    using std::exp;
    return Scalar(0.5) * erfc(-x * Scalar(0.70710678118654752440L)) +
           x * Scalar(0.39894228040143267794L) * exp(Scalar(-0.5) * x * x);
  }
};

/// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), the approximation of the same paper.
struct GeluTanh {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    using std::tanh;
    return Scalar(0.5) * x *
           (Scalar(1) + tanh(Scalar(0.79788456080286535588L) * (x + Scalar(0.044715L) * x * x * x)));
  }
  template <class Scalar>
  Scalar derivative(const Scalar& x) const {
    using std::tanh;
    const Scalar square = x * x;
    const Scalar t = tanh(Scalar(0.79788456080286535588L) * (x + Scalar(0.044715L) * square * x));
    const Scalar slope = Scalar(0.79788456080286535588L) * (Scalar(1) + Scalar(0.134145L) * square);
    return Scalar(0.5) * (Scalar(1) + t) + Scalar(0.5) * x * (Scalar(1) - t * t) * slope;
  }
};

/// x / (1 + exp(−x))
struct Silu {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    using std::exp;
    return x / (Scalar(1) + exp(-x));
  }
  template <class Scalar>
  Scalar derivative(const Scalar& x) const {
    using std::exp;
    const Scalar sigmoid = Scalar(1) / (Scalar(1) + exp(-x));
    return sigmoid * (Scalar(1) + x * (Scalar(1) - sigmoid));
  }
};

/// x
struct Identity {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    return x;
  }
  template <class Scalar>
  Scalar derivative(const Scalar&) const {
    return Scalar(1);
  }
};

}  // namespace meo::inline MEO_ABI

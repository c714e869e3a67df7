#pragma once

/// Activations of feed-forward blocks. Any other functor Scalar → Scalar serves as well.

#include <cmath>

#include <meo/types.hpp>

namespace meo {

/// max(x, 0); NaN stays NaN.
struct Relu {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    return x < Scalar(0) ? Scalar(0) : x;
  }
};

/// x Φ(x), the exact form by erf (Hendrycks and Gimpel 2016, arXiv 1606.08415).
struct Gelu {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    using std::erf;
    return Scalar(0.5) * x * (Scalar(1) + erf(x * Scalar(0.70710678118654752440L)));
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
};

/// x / (1 + exp(−x))
struct Silu {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    using std::exp;
    return x / (Scalar(1) + exp(-x));
  }
};

/// x
struct Identity {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    return x;
  }
};

}  // namespace meo

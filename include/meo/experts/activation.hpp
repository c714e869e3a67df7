#pragma once

/// Activations of feed-forward blocks, with their derivatives. Any other functor Scalar → Scalar serves as
/// well; to be trained through it needs a member `derivative`, Scalar → Scalar, too.
///
/// Those here are right over the whole range of the scalar: at ±0, below the normal numbers, at the largest
/// ones, and at ±∞, where the smooth ones are x and −0 and their derivatives 1 and 0. NaN stays NaN, though
/// Relu's derivative is 0 there.
///
/// Blocks evaluate them on packets for float and double, and a call by itself gives the same bits. Their
/// largest errors then, over all x and with any instruction set, in units in the last place; below the normal
/// numbers that is the smallest number above 0. The derivatives pass through 0 for one x < 0 each, about
/// −0.75 and Silu's −1.28, as differences of two terms: their units are those of the terms' sum.
///
/// | activation | float | double |
/// |------------|------:|-------:|
/// | Gelu       |   6.5 |    7.5 |
/// | Gelu'      |   6.0 |    6.0 |
/// | GeluTanh   |   4.0 |    4.0 |
/// | GeluTanh'  |   6.5 |    6.0 |
/// | Silu       |   4.0 |    4.0 |
/// | Silu'      |   4.5 |    5.0 |
///
/// 16-bit scalars are computed in float and rounded once more. With any other scalar the error in the tail x
/// → −∞ is that of the scalar's exp or erfc for an argument that was rounded.

#include <cmath>

#include <meo/kernels/vector_math.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

/// x S(x) with S(x) + S(−x) = 1, by the tail Q(a) = S(−a), a ≥ 0; see vector_math.hpp. Tail has three static
/// members: `tail`, Q; `tail_slope`, G = Q + a Q'; and `packets`, value and slope of the whole.
template <class Tail>
struct SmoothActivation {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    if constexpr (VectorMath<Scalar>) {
      return first<Scalar>(packets<Scalar>(broadcast(x)).value);
    } else if constexpr (is_16_bit<Scalar>) {
      return static_cast<Scalar>((*this)(static_cast<float>(x)));
    } else {
      if (x > Scalar(0)) return x - tail_part(x);
      return -tail_part(Scalar(-x));  // so that -0 stays -0
    }
  }

  template <class Scalar>
  Scalar derivative(const Scalar& x) const {
    if constexpr (VectorMath<Scalar>) {
      return first<Scalar>(packets<Scalar>(broadcast(x)).slope);
    } else if constexpr (is_16_bit<Scalar>) {
      return static_cast<Scalar>(derivative(static_cast<float>(x)));
    } else {
      if (x > Scalar(0)) return Scalar(1) - Tail::tail_slope(x);
      return Tail::tail_slope(Scalar(-x));
    }
  }

  template <VectorMath Scalar>
  static MEO_INLINE ValueAndSlope<Packet<Scalar>> packets(const Packet<Scalar>& x) {
    return Tail::template packets<Scalar>(x);
  }

 private:
  /// a Q(a), also at ∞.
  template <class Scalar>
  static Scalar tail_part(const Scalar& a) {
    const Scalar tail = Tail::tail(a);
    return tail == Scalar(0) ? tail : Scalar(a * tail);
  }
};

struct NormalTail {
  template <class Scalar>
  static Scalar tail(const Scalar& a) {
    using std::erfc;
    return Scalar(0.5) * erfc(a * constant<Scalar>(0.7071067811865475244008443621048490393L));
  }
  template <class Scalar>
  static Scalar tail_slope(const Scalar& a) {
    using std::exp;
    const Scalar density =
        constant<Scalar>(0.3989422804014326779399460599343818685L) * exp(Scalar(-0.5) * a * a);
    return density == Scalar(0) ? density : Scalar(tail(a) - a * density);
  }
  template <VectorMath Scalar>
  static MEO_INLINE ValueAndSlope<Packet<Scalar>> packets(const Packet<Scalar>& x) {
    return gelu<Scalar>(x);
  }
};

/// Q = 1 / (1 + exp(u)), and G, which takes a u' too.
template <class Scalar>
Scalar logistic_tail(const Scalar& u) {
  using std::exp;
  const Scalar e = exp(-u);
  return e / (Scalar(1) + e);
}
template <class Scalar>
Scalar logistic_tail_slope(const Scalar& u, const Scalar& a_slope) {
  using std::exp;
  const Scalar e = exp(-u);
  if (e == Scalar(0)) return e;
  const Scalar complement = Scalar(1) / (Scalar(1) + e);
  return e * complement * (Scalar(1) - a_slope * complement);
}

struct LogisticTail {
  template <class Scalar>
  static Scalar tail(const Scalar& a) {
    return logistic_tail(a);
  }
  template <class Scalar>
  static Scalar tail_slope(const Scalar& a) {
    return logistic_tail_slope(a, a);
  }
  template <VectorMath Scalar>
  static MEO_INLINE ValueAndSlope<Packet<Scalar>> packets(const Packet<Scalar>& x) {
    return silu<Scalar>(x);
  }
};

/// 1 + tanh(z) = 2 / (1 + exp(−2z))
struct TanhTail {
  template <class Scalar>
  static Scalar tail(const Scalar& a) {
    return logistic_tail(exponent(a));
  }
  template <class Scalar>
  static Scalar tail_slope(const Scalar& a) {
    const Scalar a_slope = a * (constant<Scalar>(1.595769121605730711759784239737527474L) *
                                (Scalar(1) + constant<Scalar>(0.134145L) * a * a));
    return logistic_tail_slope(exponent(a), a_slope);
  }
  template <VectorMath Scalar>
  static MEO_INLINE ValueAndSlope<Packet<Scalar>> packets(const Packet<Scalar>& x) {
    return gelu_tanh<Scalar>(x);
  }

 private:
  template <class Scalar>
  static Scalar exponent(const Scalar& a) {
    return constant<Scalar>(1.595769121605730711759784239737527474L) *
           (a * (Scalar(1) + constant<Scalar>(0.044715L) * a * a));
  }
};

}  // namespace detail

/// max(x, 0); NaN stays NaN.
struct Relu {
  /// The function, its derivative, and both on packets.
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    return x < Scalar(0) ? Scalar(0) : x;
  }
  /// 0 at 0, as PyTorch has it.
  template <class Scalar>
  Scalar derivative(const Scalar& x) const {
    return x > Scalar(0) ? Scalar(1) : Scalar(0);
  }
  template <detail::VectorMath Scalar>
  static MEO_INLINE detail::ValueAndSlope<detail::Packet<Scalar>> packets(const detail::Packet<Scalar>& x) {
    const auto zero = detail::broadcast(Scalar(0)), one = detail::broadcast(Scalar(1));
    return {detail::bit_clear(x, detail::less(x, zero)), detail::bit_and(one, detail::less(zero, x))};
  }
};

/// x Φ(x), the exact form by erf (Hendrycks and Gimpel 2016, arXiv 1606.08415); derivative Φ(x) + x φ(x).
struct Gelu : detail::SmoothActivation<detail::NormalTail> {};

/// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), the approximation of the same paper.
struct GeluTanh : detail::SmoothActivation<detail::TanhTail> {};

/// x / (1 + exp(−x))
struct Silu : detail::SmoothActivation<detail::LogisticTail> {};

/// x
struct Identity {
  /// The function and its derivative.
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    return x;
  }
  template <class Scalar>
  Scalar derivative(const Scalar&) const {
    return Scalar(1);
  }
};

}  // namespace meo

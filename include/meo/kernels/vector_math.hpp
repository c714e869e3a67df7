#pragma once

/// Exponentials, and the smooth activations that are made of them, on packets of float and double: right over
/// the whole range of the type, and the same bits for a value wherever in a packet it stands.
///
/// A smooth activation is f(x) = x S(x) with S(x) + S(−x) = 1. With a = |x| and the tail Q(a) = S(−a), which
/// falls from 1/2 to 0,
///
///   f(x)  = max(x, 0) − a Q(a)
///   f'(x) = 1 − G(a) for x > 0, G(a) for x < 0,   G(a) = Q(a) + a Q'(a),
///
/// where nothing cancels but in G about its zero. Q is 2^−e times something smooth: e is taken in two parts,
/// for an error of e is one of the result's last digits times e, and what follows is held too large by a
/// factor, 1 / down, so that a result below the normal numbers is rounded once, when it is scaled down.

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>

#include <meo/kernels/parts/packet.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Scalars that there are vector functions for; others are computed one by one, with functions of their own.
template <class Scalar>
concept VectorMath = std::same_as<Scalar, float> || std::same_as<Scalar, double>;

/// The polynomial with these coefficients, that of the highest power first.
template <class Scalar, std::same_as<Scalar>... Rest>
MEO_INLINE Packet<Scalar> polynomial(const Packet<Scalar>& x, Scalar leading, Rest... rest) {
  Packet<Scalar> sum = broadcast(leading);
  ((sum = multiply_add(sum, x, broadcast<Scalar>(rest))), ...);
  return sum;
}

/// Numbers that depend on the precision. Constants in two parts are a scalar, _rest what it is short of.
/// Beyond the largest_… of an activation a Q(a) and G(a) round to 0.
template <class Scalar>
struct VectorConstants;

template <>
struct VectorConstants<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr float down = 0x1p-64F;
  /// n + rounder has n in its low bits, as the exponent of 2^n / down is stored.
  static constexpr float rounder = 0x1.8p23F + 127 + 64;
  /// Clears the lower half of a mantissa.
  static constexpr float upper_half = std::bit_cast<float>(0xFFFFF000U);

  static constexpr float log2_e = 0x1.715476p+0F, log2_e_rest = 0x1.4ae0c0p-26F;
  static constexpr float log2_e_rest_ratio = 0x1.cab1b8p-27F;  ///< log2_e_rest / log2_e
  static constexpr float normal_density_at_0 = 0x1.988454p-2F;
  static constexpr float largest_silu = 109;
  static constexpr float largest_gelu = 14.6F;

  /// GeluTanh is x / (1 + exp(−u)), u = √(8/π) (x + 0.044715 x³); these are the factors of x and x³, the
  /// first two times log2 e.
  static constexpr float tanh_linear = 0x1.26aecp+1F, tanh_linear_rest = 0x1.0de73ap-22F;
  static constexpr float tanh_cubic = 0x1.a5a7dp-4F, tanh_cubic_rest = -0x1.151aaep-29F;
  static constexpr float tanh_slope = 0x1.988454p+0F, tanh_slope_square = 0x1.b6676cp-3F;  ///< of u in x
  static constexpr float largest_gelu_tanh = 10.9F;

  /// 2^r for |r| ≤ 1/2, error 2^-28 of it.
  static MEO_INLINE Packet<float> exp2(const Packet<float>& r) {
    return polynomial(r, 0x1.3f9a62p-13F, 0x1.5f0baep-10F, 0x1.3b30a8p-7F, 0x1.c6af76p-5F, 0x1.ebfbd8p-3F,
                      0x1.62e43p-1F, 1.0F);
  }

  /// Φ(−a) exp(a²/2) = numerator / denominator for 0 ≤ a ≤ largest_gelu, error 2^-25.5 of it.
  static MEO_INLINE Packet<float> normal_tail_numerator(const Packet<float>& a, const Packet<float>& square) {
    return multiply_add(a, polynomial(square, 0x1.4db4ecp-5F, 0x1.c13ba2p-2F),
                        polynomial(square, 0x1.0ec3f4p-8F, 0x1.77e32p-3F, 0.5F));
  }
  static MEO_INLINE Packet<float> normal_tail_denominator(const Packet<float>& a,
                                                          const Packet<float>& square) {
    return multiply_add(a, polynomial(square, 0x1.5359b2p-7F, 0x1.e18fp-2F, 0x1.ace002p+0F),
                        polynomial(square, 0x1.a243e2p-4F, 0x1.3429cep+0F, 1.0F));
  }
};

template <>
struct VectorConstants<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr double down = 0x1p-128;
  static constexpr double rounder = 0x1.8p52 + 1023 + 128;
  static constexpr double upper_half = std::bit_cast<double>(0xFFFFFFFFF8000000U);

  static constexpr double log2_e = 0x1.71547652b82fep+0, log2_e_rest = 0x1.777d0ffda0d24p-56;
  static constexpr double log2_e_rest_ratio = 0x1.0444d0e734faap-56;
  static constexpr double normal_density_at_0 = 0x1.9884533d43651p-2;
  static constexpr double largest_silu = 752;
  static constexpr double largest_gelu = 38.7;

  static constexpr double tanh_linear = 0x1.26aec21bce74p+1, tanh_linear_rest = 0x1.94bb4a166d0c5p-47;
  static constexpr double tanh_cubic = 0x1.a5a7cf7572a98p-4, tanh_cubic_rest = -0x1.b91c940e4cfcfp-58;
  static constexpr double tanh_slope = 0x1.9884533d43651p+0, tanh_slope_square = 0x1.b6676bf7450fp-3;
  static constexpr double largest_gelu_tanh = 21.6;

  /// Error 2^-57.
  static MEO_INLINE Packet<double> exp2(const Packet<double>& r) {
    return polynomial(r, 0x1.e94671be2ee2ap-32, 0x1.e61c7fa174687p-28, 0x1.b525405b9e315p-24,
                      0x1.62bfc6e84f313p-20, 0x1.ffcbfc58a49e5p-17, 0x1.4309130f243f6p-13,
                      0x1.5d87fe78a141fp-10, 0x1.3b2ab6fb9ff81p-7, 0x1.c6b08d704a121p-5, 0x1.ebfbdff82c5a5p-3,
                      0x1.62e42fefa39efp-1, 1.0);
  }

  /// Error 2^-53.2.
  static MEO_INLINE Packet<double> normal_tail_numerator(const Packet<double>& a,
                                                         const Packet<double>& square) {
    return multiply_add(a,
                        polynomial(square, 0x1.7314959eca552p-20, 0x1.00b033f9739b0p-11, 0x1.8296ed36b38f6p-6,
                                   0x1.2813537ebbd8bp-2, 0x1.8ca3574c676f8p-1),
                        polynomial(square, 0x1.37e25a14c726bp-15, 0x1.0b9fa880a6d7ep-8, 0x1.8fd0dc19c6c3ep-4,
                                   0x1.3002bfe851889p-1, 0.5));
  }
  static MEO_INLINE Packet<double> normal_tail_denominator(const Packet<double>& a,
                                                           const Packet<double>& square) {
    return multiply_add(a,
                        polynomial(square, 0x1.86e38c61a2c85p-14, 0x1.5278684db12fdp-7, 0x1.04d69c6cdd0fbp-2,
                                   0x1.b6a78cb8f8a80p+0, 0x1.2c72c075848fap+1),
                        polynomial(square, 0x1.d1148ff27776ap-19, 0x1.429e92be896c2p-10, 0x1.ee83cdce82a60p-5,
                                   0x1.901e81e31fe69p-1, 0x1.47ba77bffa4b0p+1, 1.0));
  }
};

/// a · b + c with the product unrounded, for a c that takes almost all of it away.
template <class Scalar>
MEO_INLINE Packet<Scalar> exact_multiply_add(const Packet<Scalar>& a, const Packet<Scalar>& b,
                                             Packet<Scalar> c) {
  if constexpr (has_fused_multiply_add<Scalar>) {
    return multiply_add(a, b, c);
  } else {
    const auto mask = broadcast(VectorConstants<Scalar>::upper_half);
    const auto a_high = bit_and(a, mask), b_high = bit_and(b, mask);
    const auto a_low = subtract(a, a_high), b_low = subtract(b, b_high);
    // Products of halves are exact; the order of the sums counts, and is kept from -ffast-math.
    hide<Scalar>(c);
    auto high = add(multiply(a_high, b_high), c);
    hide<Scalar>(high);
    auto sum = add(high, add(multiply(a_high, b_low), multiply(a_low, b)));
    hide<Scalar>(sum);
    return sum;
  }
}

/// 2^(a b + c d) / down, with the product a b unrounded. a b is at most 0 and, as all largest_… see to, no
/// farther from it than that the result is a normal number; c d is small against 1.
template <class Scalar>
MEO_INLINE Packet<Scalar> scaled_exp2(const Packet<Scalar>& a, const Packet<Scalar>& b,
                                      const Packet<Scalar>& c, const Packet<Scalar>& d) {
  using Constants = VectorConstants<Scalar>;
  const auto rounder = broadcast(Constants::rounder);
  auto rounded = multiply_add(a, b, rounder);
  hide<Scalar>(rounded);
  const auto remainder = multiply_add(c, d, exact_multiply_add<Scalar>(a, b, subtract(rounder, rounded)));
  return multiply(Constants::exp2(remainder), shift_bits_up<Scalar, Constants::mantissa_bits>(rounded));
}

/// exp(x) / down for x from −largest_silu to 0.
template <class Scalar>
MEO_INLINE Packet<Scalar> scaled_exp(const Packet<Scalar>& x) {
  using Constants = VectorConstants<Scalar>;
  return scaled_exp2<Scalar>(x, broadcast(Constants::log2_e), x, broadcast(Constants::log2_e_rest));
}

/// exp of `count` values of at most 0, in place, −∞ among them; with scalars that there are no vector
/// functions for by their own. Largest error in units in the last place, over all x ≤ 0:
///
/// | function     | float | double |
/// |--------------|------:|-------:|
/// | exponentials |   1.5 |    1.5 |
template <class Scalar>
void exponentials(Scalar* values, Index count) {
  if constexpr (VectorMath<Scalar>) {
    using Constants = VectorConstants<Scalar>;
    constexpr Index size = PacketOf<Scalar>::size;
    const auto least = broadcast(-Constants::largest_silu), down = broadcast(Constants::down);
    const Index whole = count - count % size;
    for (Index i = 0; i < whole; i += size) {
      auto e = scaled_exp<Scalar>(maximum(load<Scalar>(values + i), least));
      hide<Scalar>(e);
      store<Scalar>(values + i, multiply(e, down));
    }
    if (whole == count) return;
    Scalar last[size] = {};
    std::copy_n(values + whole, count - whole, last);
    exponentials(last, size);
    std::copy_n(last, count - whole, values + whole);
  } else {
    using std::exp;
    for (Index i = 0; i < count; ++i) values[i] = exp(values[i]);
  }
}

/// A function's value and derivative; the compiler drops the one that is not used.
template <class P>
struct ValueAndSlope {
  P value;
  P slope;
};

/// |x|, at most `largest`; NaN where x is.
template <class Scalar>
MEO_INLINE Packet<Scalar> bounded_magnitude(const Packet<Scalar>& x, Scalar largest) {
  return minimum(bit_clear(x, broadcast(Scalar(-0.0))), broadcast(largest));
}

/// f and f' at x from a Q(a) / down and G(a) / down.
template <class Scalar>
MEO_INLINE ValueAndSlope<Packet<Scalar>> from_tail(const Packet<Scalar>& x, Packet<Scalar> tail,
                                                   Packet<Scalar> tail_slope) {
  const auto minus_down = broadcast(-VectorConstants<Scalar>::down), half = broadcast(Scalar(0.5));
  const auto sign = bit_and(x, broadcast(Scalar(-0.0)));
  auto step = add(bit_or(half, sign), half);
  // What -ffast-math would take apart.
  hide<Scalar>(tail);
  hide<Scalar>(tail_slope);
  hide<Scalar>(step);
  return {bit_or(multiply_add(tail, minus_down, maximum(x, broadcast(Scalar(0)))), sign),
          multiply_add(bit_xor(tail_slope, sign), minus_down, step)};
}

/// x Φ(x).
template <class Scalar>
MEO_INLINE ValueAndSlope<Packet<Scalar>> gelu(const Packet<Scalar>& x) {
  using Constants = VectorConstants<Scalar>;
  const auto a = bounded_magnitude(x, Constants::largest_gelu);
  const auto minus_a = bit_or(a, broadcast(Scalar(-0.0)));
  const auto square = multiply(a, a);
  const auto excess = exact_multiply_add<Scalar>(minus_a, a, square);  // of `square` over a²
  const auto factor = broadcast(Constants::log2_e / 2);
  const auto rest = multiply_add(square, broadcast(-Constants::log2_e_rest_ratio), excess);
  const auto e = scaled_exp2<Scalar>(square, broadcast(-Constants::log2_e / 2), factor, rest);
  const auto ratio =
      divide(Constants::normal_tail_numerator(a, square), Constants::normal_tail_denominator(a, square));
  return from_tail<Scalar>(
      x, multiply(a, multiply(e, ratio)),
      multiply(e, multiply_add(minus_a, broadcast(Constants::normal_density_at_0), ratio)));
}

/// From e = exp(−u) / down: Q = 1 / (1 + exp(u)), and G = Q (1 − a u' (1 − Q)), where −a u' is given.
template <class Scalar>
MEO_INLINE ValueAndSlope<Packet<Scalar>> logistic_unit(const Packet<Scalar>& x, const Packet<Scalar>& a,
                                                       const Packet<Scalar>& e,
                                                       const Packet<Scalar>& minus_a_slope) {
  const auto one = broadcast(Scalar(1));
  const auto complement =
      divide(one, multiply_add(e, broadcast(VectorConstants<Scalar>::down), one));  // 1 − Q
  const auto tail = multiply(e, complement);
  return from_tail<Scalar>(x, multiply(a, tail),
                           multiply(tail, multiply_add(minus_a_slope, complement, one)));
}

/// x / (1 + exp(−x)).
template <class Scalar>
MEO_INLINE ValueAndSlope<Packet<Scalar>> silu(const Packet<Scalar>& x) {
  const auto a = bounded_magnitude(x, VectorConstants<Scalar>::largest_silu);
  const auto minus_a = bit_or(a, broadcast(Scalar(-0.0)));
  return logistic_unit<Scalar>(x, a, scaled_exp<Scalar>(minus_a), minus_a);
}

/// x / (1 + exp(−u)), u = √(8/π) (x + 0.044715 x³).
template <class Scalar>
MEO_INLINE ValueAndSlope<Packet<Scalar>> gelu_tanh(const Packet<Scalar>& x) {
  using Constants = VectorConstants<Scalar>;
  const auto a = bounded_magnitude(x, Constants::largest_gelu_tanh);
  const auto minus_a = bit_or(a, broadcast(Scalar(-0.0)));
  const auto square = multiply(a, a);
  const auto excess = exact_multiply_add<Scalar>(minus_a, a, square);
  // −u log2 e = a (v + rest)
  const auto linear = broadcast(-Constants::tanh_linear), cubic = broadcast(-Constants::tanh_cubic);
  auto v = multiply_add(square, cubic, linear);
  hide<Scalar>(v);
  auto rest =
      multiply_add(square, broadcast(-Constants::tanh_cubic_rest), broadcast(-Constants::tanh_linear_rest));
  rest = multiply_add(excess, broadcast(Constants::tanh_cubic), rest);
  rest = add(rest, exact_multiply_add<Scalar>(square, cubic, subtract(linear, v)));
  const auto e = scaled_exp2<Scalar>(a, v, a, rest);
  const auto slope =
      multiply_add(square, broadcast(Constants::tanh_slope_square), broadcast(Constants::tanh_slope));
  return logistic_unit<Scalar>(x, a, e, multiply(minus_a, slope));
}

}  // namespace meo::detail

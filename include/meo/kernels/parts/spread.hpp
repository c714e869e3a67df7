#pragma once

/// What the gradient of merged experts gives to one of them: dW_i += Σ_q g_qi dŴ_q and ⟨dŴ_q, W_i⟩, the
/// gradient of g_qi, over the merges q that have selected it.

#include <algorithm>

#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/parts/unroll.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Merges whose gradients an expert takes at a time: with four, sums, weights and a packet of each operand
/// stay within 16 registers, with eight within 32.
inline constexpr int spread_merges = num_registers >= 32 ? 8 : 4;

/// One merge that selected the expert.
template <class Scalar>
struct SpreadTerm {
  const Scalar* merged_gradient;  ///< dŴ_q
  Scalar weight;                  ///< g_qi
  Scalar* product;                ///< += ⟨dŴ_q, W_i⟩
};

/// gradient += Σ_{t < Terms} g_t dŴ_t, products_t += ⟨dŴ_t, weights⟩ over `size` values, a multiple of NR.
template <int Terms, class Scalar>
void spread_block(const SpreadTerm<Scalar>* terms, const Scalar* weights, Index size, Scalar* gradient) {
  constexpr int packet = PacketOf<Scalar>::size;
  Packet<Scalar> gates[Terms], products[Terms];
  const Scalar* merged[Terms];
  MEO_UNROLL_ALL
  for (int t = 0; t < Terms; ++t) {
    gates[t] = broadcast<Scalar>(terms[t].weight);
    products[t] = broadcast<Scalar>(Scalar(0));
    merged[t] = terms[t].merged_gradient;
  }
  for (Index at = 0; at < size; at += packet) {
    const Packet<Scalar> weight = load<Scalar>(weights + at);
    Packet<Scalar> sums = load<Scalar>(gradient + at);
    MEO_UNROLL_ALL
    for (int t = 0; t < Terms; ++t) {
      const Packet<Scalar> value = load<Scalar>(merged[t] + at);
      sums = multiply_add(gates[t], value, sums);
      products[t] = multiply_add(weight, value, products[t]);
    }
    store<Scalar>(gradient + at, sums);
  }
  MEO_UNROLL_ALL
  for (int t = 0; t < Terms; ++t) *terms[t].product += sum<Scalar>(products[t]);
}

template <int Terms, class Scalar>
void spread_at_most(Index count, const SpreadTerm<Scalar>* terms, const Scalar* weights, Index size,
                    Scalar* gradient) {
  if constexpr (Terms > 0) {
    if (count == Terms) spread_block<Terms>(terms, weights, size, gradient);
    else spread_at_most<Terms - 1>(count, terms, weights, size, gradient);
  }
}

/// The same for any number of merges.
template <class Scalar>
void spread(const SpreadTerm<Scalar>* terms, Index count, const Scalar* weights, Index size,
            Scalar* gradient) {
  for (Index first = 0; first < count; first += spread_merges) {
    spread_at_most<spread_merges>(std::min<Index>(spread_merges, count - first), terms + first, weights, size,
                                  gradient);
  }
}

}  // namespace meo::detail

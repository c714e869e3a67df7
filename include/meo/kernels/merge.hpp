#pragma once

/// The merge Ŵ = Σ_i g_i W_i over packed panels (He et al. 2023, equation 4).

#include <algorithm>

#include <meo/kernels/packet.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/unroll.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// The K selected experts of one merge, by ascending expert, with their gate weights.
template <class Scalar>
struct MergeTerms {
  const Index* experts;
  const Scalar* weights;
};

/// Experts whose weights are held in registers at a time, beside the accumulators.
inline constexpr int merge_terms = 8;

/// merged (+)= Σ_{i < Terms} g_i · panel_i over `size` values, a multiple of NR. Adds to `merged` if
/// Continue.
template <int Terms, bool Continue, class Scalar, class Storage>
void merge_block(const Storage* const* panels, const Scalar* weights, Index size, Scalar* merged) {
  constexpr int packet = PacketOf<Scalar>::size;
  Packet<Scalar> gates[Terms];
  unroll<Terms>([&](auto t) MEO_INLINE_LAMBDA { gates[t] = broadcast<Scalar>(weights[t]); });
  const auto merge_packets = [&](Index at, auto packets) MEO_INLINE_LAMBDA {
    Packet<Scalar> sums[packets];
    unroll<packets>([&](auto p) MEO_INLINE_LAMBDA {
      sums[p] = Continue ? load<Scalar>(merged + at + p * packet) : broadcast<Scalar>(Scalar(0));
    });
    unroll<Terms>([&](auto t) MEO_INLINE_LAMBDA {
      unroll<packets>([&](auto p) MEO_INLINE_LAMBDA {
        sums[p] = multiply_add(gates[t], load_stored<Scalar>(panels[t] + at + p * packet), sums[p]);
      });
    });
    unroll<packets>([&](auto p) MEO_INLINE_LAMBDA { store<Scalar>(merged + at + p * packet, sums[p]); });
  };
  constexpr int pair = 2 * Tile<Scalar>::packets;
  Index at = 0;
  for (; at + pair * packet <= size; at += pair * packet)
    merge_packets(at, std::integral_constant<int, pair>{});
  for (; at < size; at += Tile<Scalar>::columns) {
    merge_packets(at, std::integral_constant<int, Tile<Scalar>::packets>{});
  }
}

template <int Terms, bool Continue, class Scalar, class Storage>
void merge_at_most(Index terms, const Storage* const* panels, const Scalar* weights, Index size,
                   Scalar* merged) {
  if constexpr (Terms > 0) {
    if (terms == Terms) return merge_block<Terms, Continue>(panels, weights, size, merged);
    merge_at_most<Terms - 1, Continue>(terms, panels, weights, size, merged);
  }
}

/// merged = Σ_{i < top_k} g_i · panel(expert_i) over rows `row` … `row + rows − 1` of panel p.
template <class Scalar, class Storage>
void merge_rows(const PanelBank<Scalar, Storage>& bank, Index p, Index row, Index rows,
                MergeTerms<Scalar> terms, Index top_k, Scalar* merged) {
  constexpr Index columns = Tile<Scalar>::columns;
  for (Index first = 0; first < top_k; first += merge_terms) {
    const Index count = std::min<Index>(merge_terms, top_k - first);
    const Storage* panels[merge_terms] = {};
    for (Index t = 0; t < count; ++t) panels[t] = bank.panel(p, terms.experts[first + t]) + row * columns;
    const Scalar* weights = terms.weights + first;
    if (first == 0) merge_at_most<merge_terms, false>(count, panels, weights, rows * columns, merged);
    else merge_at_most<merge_terms, true>(count, panels, weights, rows * columns, merged);
  }
}

}  // namespace meo::detail

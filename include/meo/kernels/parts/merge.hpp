#pragma once

/// The merge Ŵ = Σ_i g_i W_i over packed panels (He et al. 2023, equation 4).

#include <algorithm>
#include <array>

#include <meo/kernels/pairs.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/parts/stored.hpp>
#include <meo/kernels/parts/unroll.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Experts that are added at a time: their weights are held in registers beside the accumulators, and more
/// streams than these outrun what fetches them into L1.
inline constexpr int merge_terms = 8;

/// Values of a merged panel that are summed up in registers at a time.
template <class Scalar>
inline constexpr int merge_packets = 2 * Tile<Scalar>::packets;

/// merged[at …] (+)= Σ_{i < Terms} g_i · panel_i[at …], `Packets` packets of them, in whole rows of NR. Adds
/// to `merged` if `add`. scales: NR of each panel.
template <int Terms, int Packets, class Scalar, class Storage>
MEO_INLINE void merge_values(const Storage* const* panels, const Scalar* const* scales,
                             const Packet<Scalar>* gates, Index at, bool add, Scalar* merged) {
  constexpr int size = PacketOf<Scalar>::size, packets_of_row = Tile<Scalar>::packets;
  Packet<Scalar> sums[Packets];
  MEO_UNROLL_ALL
  for (int p = 0; p < Packets; ++p)
    sums[p] = add ? load<Scalar>(merged + at + p * size) : broadcast<Scalar>(Scalar(0));
  MEO_UNROLL_ALL
  for (int t = 0; t < Terms; ++t) {
    MEO_UNROLL_ALL
    for (int p = 0; p < Packets; ++p) {
      const Packet<Scalar> weights =
          load_weights<Scalar>(panels[t] + at + p * size, scales[t], p % packets_of_row * size);
      sums[p] = multiply_add(gates[t], weights, sums[p]);
    }
  }
  MEO_UNROLL_ALL
  for (int p = 0; p < Packets; ++p) store<Scalar>(merged + at + p * size, sums[p]);
}

/// merged (+)= Σ_{i < Terms} g_i · panel_i over `size` values, a multiple of NR. Adds to `merged` if `add`.
template <int Terms, class Scalar, class Storage>
void merge_block(const Storage* const* panels, const Scalar* const* scales, const Scalar* weights, bool add,
                 Index size, Scalar* merged) {
  Packet<Scalar> gates[Terms];
  const Storage* from[Terms];
  MEO_UNROLL_ALL
  for (int t = 0; t < Terms; ++t) {
    gates[t] = broadcast<Scalar>(weights[t]);
    from[t] = panels[t];
  }
  constexpr Index step = merge_packets<Scalar> * PacketOf<Scalar>::size;
  Index at = 0;
  for (; at + step <= size; at += step)
    merge_values<Terms, merge_packets<Scalar>>(from, scales, gates, at, add, merged);
  for (; at < size; at += Tile<Scalar>::columns)
    merge_values<Terms, Tile<Scalar>::packets>(from, scales, gates, at, add, merged);
}

template <int Terms, class Scalar, class Storage>
void merge_at_most(Index terms, const Storage* const* panels, const Scalar* const* scales,
                   const Scalar* weights, bool add, Index size, Scalar* merged) {
  if constexpr (Terms > 0) {
    if (terms == Terms) return merge_block<Terms>(panels, scales, weights, add, size, merged);
    merge_at_most<Terms - 1>(terms, panels, scales, weights, add, size, merged);
  }
}

/// Rows of one panel of every expert, as a merge reads them.
template <class Scalar, class Storage = Scalar>
struct MergeSource {
  const Storage* rows;  ///< of expert 0
  Index expert_stride;
  const Scalar* scales = nullptr;  ///< of expert 0, NR; null unless weights are quantized
  Index scales_stride = 0;         ///< from an expert's to the next's

  const Storage* expert(Index e) const { return rows + e * expert_stride; }
  const Scalar* expert_scales(Index e) const { return scales + e * scales_stride; }
};

/// Rows of a bank's panel from that of input `row` on; −1 is that of biases, where it stands in the panel.
template <class Scalar, class Storage>
MergeSource<Scalar, Storage> merge_source(const PanelBank<Scalar, const Storage>& bank, Index panel,
                                          Index row) {
  MergeSource<Scalar, Storage> source{bank.weights(panel, 0) + row * Tile<Scalar>::columns,
                                      bank.panel_size()};
  if constexpr (is_quantized<Storage>) {
    source.scales = bank.scales(panel, 0);
    source.scales_stride = bank.head_size();
  }
  return source;
}

/// Merges that are formed at a time if they have the same experts: their sums fill registers as a tile does.
template <class Scalar>
inline constexpr int merge_group = Tile<Scalar>::rows;

template <class Scalar>
using MergeGroup = std::array<MergeTerms<Scalar>, merge_group<Scalar>>;

/// merged_m[at …] = Σ_{i < count} g_mi · W_i[at …] for a group of merges of the same experts, NR values of
/// each: a product of gate weights with experts. With FetchAhead asks for the values that are `ahead` further
/// on.
template <bool FetchAhead, class Scalar, class Storage>
MEO_INLINE void merge_tile(const MergeSource<Scalar, Storage>& source, const MergeGroup<Scalar>& terms,
                           Index count, Index at, Index ahead, Scalar* merged, Index merged_stride) {
  constexpr int merges = merge_group<Scalar>;
  constexpr int packets = Tile<Scalar>::packets;
  constexpr int size = PacketOf<Scalar>::size;
  Packet<Scalar> sums[merges][packets];
  MEO_UNROLL_ALL
  for (int m = 0; m < merges; ++m) {
    MEO_UNROLL_ALL
    for (int p = 0; p < packets; ++p) sums[m][p] = broadcast<Scalar>(Scalar(0));
  }
  const auto add_term = [&](Index i) MEO_INLINE_LAMBDA {
    const Storage* const from = source.expert(terms[0].experts[i]) + at;
    const Scalar* const scales = source.expert_scales(terms[0].experts[i]);
    Packet<Scalar> weights[packets];
    MEO_UNROLL_ALL
    for (int p = 0; p < packets; ++p) {
      weights[p] = in_register<Scalar>(load_weights<Scalar>(from + p * size, scales, p * size));
      if constexpr (FetchAhead) prefetch(from + ahead + p * size);
    }
    MEO_UNROLL_ALL
    for (int m = 0; m < merges; ++m) {
      const Packet<Scalar> gate = broadcast<Scalar>(terms[static_cast<std::size_t>(m)].weights[i]);
      MEO_UNROLL_ALL
      for (int p = 0; p < packets; ++p) sums[m][p] = multiply_add(gate, weights[p], sums[m][p]);
    }
  };
  MEO_UNROLL(4)
  for (Index i = 0; i < count; ++i) add_term(i);
  MEO_UNROLL_ALL
  for (int m = 0; m < merges; ++m) {
    MEO_UNROLL_ALL
    for (int p = 0; p < packets; ++p) store<Scalar>(merged + m * merged_stride + at + p * size, sums[m][p]);
  }
}

/// merged_m = Σ_{i < count} g_mi · rows of expert_i, `size` values each, a multiple of NR, for a group of
/// merges of the same experts. The first group to read rows has them fetched: too many experts are read at
/// once for the hardware to see what it could fetch. 64 terms ahead are some thousand cycles, longer than
/// memory takes. Into L2: with 32 experts the whole product takes 2 % less on Zen 4 than with lines asked for
/// into L1, of which too many are on their way then.
template <class Scalar, class Storage>
void merge_rows_of_group(const MergeSource<Scalar, Storage>& source, const MergeGroup<Scalar>& terms,
                         Index count, bool is_first, Index size, Scalar* merged, Index merged_stride) {
  constexpr Index columns = Tile<Scalar>::columns;
  const Index ahead = (std::max<Index>)(64 / count, 1) * columns;
  if (is_first) {
    for (Index at = 0; at < size; at += columns)
      merge_tile<true>(source, terms, count, at, ahead, merged, merged_stride);
  } else {
    for (Index at = 0; at < size; at += columns)
      merge_tile<false>(source, terms, count, at, ahead, merged, merged_stride);
  }
}

/// merged = Σ_{i < count} g_i · rows of expert_i, `size` values, a multiple of NR.
template <class Scalar, class Storage>
void merge_rows(const MergeSource<Scalar, Storage>& source, MergeTerms<Scalar> terms, Index count, Index size,
                Scalar* merged) {
  for (Index first = 0; first < count; first += merge_terms) {
    const Index some = (std::min<Index>)(merge_terms, count - first);
    const Storage* panels[merge_terms] = {};
    const Scalar* scales[merge_terms] = {};
    for (Index t = 0; t < some; ++t) {
      panels[t] = source.expert(terms.experts[first + t]);
      scales[t] = source.expert_scales(terms.experts[first + t]);
    }
    const Scalar* weights = terms.weights + first;
    merge_at_most<merge_terms>(some, panels, scales, weights, first > 0, size, merged);
  }
}

}  // namespace meo::detail

#pragma once

/// Ŵ = Σ_i g_i W_i and b̂ = Σ_i g_i b_i formed whole, for products that use them again and again.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include <meo/compiled.hpp>
#include <meo/finite.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/pairs.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/merge.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/kernels/storage.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Stores a panel's weights, in_features × NR. What is quantized has a scale for each column; one with a
/// weight that is not finite gets the scale NaN, so that this output is NaN and no other.
template <class Scalar, class Storage>
void store_weights(const Scalar* weights, const PanelBank<Scalar, Storage>& bank, Index p) {
  constexpr Index columns = Tile<Scalar>::columns;
  Storage* to = bank.weights(p, 0);
  const Scalar* const end = weights + bank.in_features * columns;
  if constexpr (is_quantized<Storage>) {
    using std::abs;
    std::array<Scalar, columns> largest{}, scales;
    std::array<bool, columns> is_storable;
    is_storable.fill(true);
    for (const Scalar* row = weights; row < end; row += columns) {
      for (std::size_t c = 0; c < columns; ++c) {
        largest[c] = (std::max)(largest[c], Scalar(abs(row[c])));
        is_storable[c] = is_storable[c] & is_finite(row[c]);
      }
    }
    for (std::size_t c = 0; c < columns; ++c)
      scales[c] = is_storable[c] ? quantum_scale(largest[c]) : std::numeric_limits<Scalar>::quiet_NaN();
    for (const Scalar* row = weights; row < end; row += columns, to += columns) {
      for (std::size_t c = 0; c < columns; ++c) to[c] = quantized(row[c], scales[c]);
    }
    std::copy(scales.begin(), scales.end(), bank.scales(p, 0));
  } else {
    std::transform(weights, end, to, [](const Scalar& weight) { return static_cast<Storage>(weight); });
  }
}

/// Scalars that merge_experts needs for each thread.
template <class Scalar, class Storage>
Index merge_experts_scratch_size(const PanelBank<Scalar, Storage>& merged) {
  return stores_scalars<Scalar, Storage> ? 0 : merged.in_features * merged.columns;
}

/// merged: a bank of one expert of the same shape, overwritten; without terms with zeros. Its values are the
/// chains of multiply-adds, in the order of the terms, that merged_product forms, and then stored; a single
/// expert of weight 1 that is stored as scalars is copied, as merged_product uses it where it lies.
template <class Scalar, class Storage, class MergedStorage>
void merge_experts(const PanelBank<Scalar, const Storage>& bank, MergeTerms<Scalar> terms,
                   const PanelBank<Scalar, MergedStorage>& merged, Scratch<Scalar> scratch,
                   const Blocks& limits = machine_blocks()) {
  constexpr Index columns = Tile<Scalar>::columns;
  const Index size = bank.in_features * columns;
  // What is summed up of the first experts is in L1 when the next are added.
  const Index strip = terms.count <= merge_terms ? size : merged_strip_rows<Scalar>(limits) * columns;
  const Index scratch_size = merge_experts_scratch_size(merged);
  const bool copies = stores_scalars<Scalar, Storage> && terms.are_one_expert();
  /// All of a source's rows, or zeros.
  const auto merge_all = [&](const auto& source, Index values, Scalar* to) {
    if (terms.count == 0) std::fill_n(to, values, Scalar(0));
    else if (copies) std::copy_n(source.expert(terms.experts[0]), values, to);
    else merge_rows(source, terms, terms.count, values, to);
  };
  parallel_ranges(bank.num_panels(), scratch.threads, [&](Index begin, Index end, Index thread) {
    for (Index p = begin; p < end; ++p) {
      if (bank.has_bias) {
        const MergeSource<Scalar> biases{bank.biases(p, 0), bank.bias_expert_stride()};
        merge_all(biases, columns, merged.biases(p, 0));
      }
      Scalar* weights = scratch.data + thread * scratch_size;
      if constexpr (stores_scalars<Scalar, MergedStorage>) weights = merged.weights(p, 0);
      for (Index at = 0; at < size; at += strip) {
        const auto source = merge_source<Scalar, Storage>(bank, p, at / columns);
        merge_all(source, (std::min)(strip, size - at), weights + at);
      }
      if constexpr (!stores_scalars<Scalar, MergedStorage>) store_weights(weights, merged, p);
    }
  });
}

#define MEO_INSTANCES(instance, Scalar)                                                   \
  instance void merge_experts(const PanelBank<Scalar, const Scalar>&, MergeTerms<Scalar>, \
                              const PanelBank<Scalar, Scalar>&, Scratch<Scalar>, const Blocks&);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

#pragma once

/// Ŵ = Σ_i g_i W_i and b̂ = Σ_i g_i b_i formed whole, for products that use them again and again.

#include <algorithm>

#include <meo/compiled.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/pairs.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/merge.hpp>
#include <meo/kernels/storage.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// merged: a bank of one expert of the same shape, overwritten; without terms with zeros. Its values are the
/// chains of multiply-adds, in the order of the terms, that merged_product forms; a single expert of weight 1
/// that is stored as scalars is copied, as merged_product uses it where it lies.
template <class Scalar, class Storage>
void merge_experts(const PanelBank<Scalar, const Storage>& bank, MergeTerms<Scalar> terms,
                   const PanelBank<Scalar, Scalar>& merged, const Blocks& limits = machine_blocks()) {
  constexpr Index columns = Tile<Scalar>::columns;
  const Index size = bank.depth() * columns;
  // What is summed up of the first experts is in L1 when the next are added.
  const Index strip = terms.count <= merge_terms ? size : merged_strip_rows<Scalar>(limits) * columns;
  parallel_ranges(bank.num_panels(), max_threads(), [&](Index begin, Index end, Index) {
    for (Index p = begin; p < end; ++p) {
      Scalar* to = merged.panel(p, 0);
      if (terms.count == 0) {
        std::fill_n(to, merged.depth() * columns, Scalar(0));
        continue;
      }
      if constexpr (stores_scalars<Scalar, Storage>) {
        if (terms.are_one_expert()) {
          std::copy_n(bank.panel(p, terms.experts[0]), size, to);
          continue;
        }
      } else if (bank.has_bias) {
        const MergeSource<Scalar> biases{bank.biases(p, 0), bank.bias_expert_stride()};
        merge_rows(biases, terms, terms.count, columns, to);
        to += columns;
      }
      for (Index at = 0; at < size; at += strip) {
        const auto source = merge_source<Scalar, Storage>(bank, p, at / columns - bank.bias_rows());
        merge_rows(source, terms, terms.count, (std::min)(strip, size - at), to + at);
      }
    }
  });
}

#define MEO_INSTANCES(instance, Scalar)                                                   \
  instance void merge_experts(const PanelBank<Scalar, const Scalar>&, MergeTerms<Scalar>, \
                              const PanelBank<Scalar, Scalar>&, const Blocks&);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

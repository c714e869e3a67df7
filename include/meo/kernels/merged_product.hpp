#pragma once

/// y_t = x_t Ŵ_bᵀ + b̂_b for the tokens t of every sequence b, with Ŵ_b = Σ_i g_bi W_i formed panel by panel
/// in scratch.
///
///     for each panel p                              parallel; a panel of the bank is read from memory once
///       for each Q merges
///         for each block of depth                   one block unless D is very large
///           merge: scratch[q] = Σ_i g_qi panel_i    stays in L2
///           for each sequence of each merge: y tile = start + x tile · scratch[q]

#include <algorithm>
#include <span>

#include <meo/kernels/blocking.hpp>
#include <meo/kernels/merge.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/multiply.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// Scalars of scratch that merged_product needs for each thread.
template <class Scalar, class Storage>
Index merge_scratch_size(const PanelBank<Scalar, Storage>& bank, Index merges) {
  const MergeBlocks blocks = merge_blocks<Scalar>(bank.depth(), merges);
  return blocks.merges * blocks.depth * Tile<Scalar>::columns;
}

template <class Scalar, class Storage>
class MergedProduct {
 public:
  using Bank = PanelBank<Scalar, const Storage>;

  MergedProduct(const Bank& bank, const MergePlan<Scalar>& plan, std::span<const Index> offsets,
                const Scalar* x, Index x_stride, Scalar* y, Index y_stride)
      : bank_(bank), plan_(plan), offsets_(offsets), x_(x), x_stride_(x_stride), y_(y), y_stride_(y_stride) {}

  /// Panel p of every sequence. scratch: merge_scratch_size(bank, num_merges) scalars.
  void run_panel(Index p, Scalar* scratch) const {
    if (plan_.top_k == 1) {
      // The softmax over one logit is 1, so the merged expert is the expert itself, where it lies.
      if constexpr (std::same_as<Scalar, Storage>) {
        for (Index m = 0; m < plan_.num_merges(); ++m) {
          multiply(p, m, 0, bank_.depth(), bank_.panel(p, plan_.terms(m).experts[0]));
        }
        return;
      }
    }
    const MergeBlocks blocks = merge_blocks<Scalar>(bank_.depth(), plan_.num_merges());
    for (Index m0 = 0; m0 < plan_.num_merges(); m0 += blocks.merges) {
      const Index merges = std::min(blocks.merges, plan_.num_merges() - m0);
      for (Index row = 0; row < bank_.depth(); row += blocks.depth) {
        const Index rows = std::min(blocks.depth, bank_.depth() - row);
        merge(p, m0, merges, row, rows, scratch);
        for (Index q = 0; q < merges; ++q) multiply(p, m0 + q, row, rows, scratch + q * rows * columns);
      }
    }
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  /// Merges Q at a time over a strip of the panel that stays in L1 for all of them.
  void merge(Index p, Index m0, Index merges, Index row, Index rows, Scalar* scratch) const {
    const Index strip_rows = merge_strip_rows<Scalar>(plan_.top_k);
    for (Index strip = 0; strip < rows; strip += strip_rows) {
      const Index count = std::min(strip_rows, rows - strip);
      for (Index q = 0; q < merges; ++q) {
        merge_rows(bank_, p, row + strip, count, plan_.terms(m0 + q), plan_.top_k,
                   scratch + (q * rows + strip) * columns);
      }
    }
  }

  /// The product of all rows of merge m with rows `row` … of its panel, which starts with the biases if row
  /// is 0.
  void multiply(Index p, Index m, Index row, Index rows, const Scalar* panel) const {
    const bool starts_with_bias = bank_.has_bias && row == 0;
    const Scalar* starts = row > 0 ? nullptr : bank_.has_bias ? panel : zero_row<Scalar>.data();
    const Index first_input = row - (bank_.has_bias && row > 0 ? 1 : 0);
    if (starts_with_bias) {
      panel += columns;
      --rows;
    }
    for (Index i = plan_.begin(m); i < plan_.begin(m + 1); ++i) {
      const auto b = static_cast<std::size_t>(plan_.sequence(i));
      const StoreRows<Scalar> product{x_ + offsets_[b] * x_stride_ + first_input, x_stride_,
                                      y_ + offsets_[b] * y_stride_ + p * columns, y_stride_, starts};
      multiply_panel(product, offsets_[b + 1] - offsets_[b], panel, rows, bank_.valid_columns(p));
    }
  }

  const Bank& bank_;
  const MergePlan<Scalar>& plan_;
  std::span<const Index> offsets_;
  const Scalar* x_;
  Index x_stride_;
  Scalar* y_;
  Index y_stride_;
};

/// The whole product. x: tokens × in_features at x_stride; y: tokens × out_features at y_stride, not
/// overlapping x; scratch: `threads` times merge_scratch_size(bank, plan.num_merges()) scalars.
template <class Scalar, class Storage>
void merged_product(const PanelBank<Scalar, const Storage>& bank, const MergePlan<Scalar>& plan,
                    std::span<const Index> offsets, const Scalar* x, Index x_stride, Scalar* y,
                    Index y_stride, Scalar* scratch, Index threads) {
  const MergedProduct<Scalar, Storage> product(bank, plan, offsets, x, x_stride, y, y_stride);
  const Index scratch_size = merge_scratch_size(bank, plan.num_merges());
  parallel_ranges(bank.num_panels(), threads, [&](Index begin, Index end, Index thread) {
    for (Index p = begin; p < end; ++p) product.run_panel(p, scratch + thread * scratch_size);
  });
}

}  // namespace meo::detail

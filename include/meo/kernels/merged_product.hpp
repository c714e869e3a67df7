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
      : bank_(bank),
        plan_(plan),
        blocks_(merge_blocks<Scalar>(bank.depth(), plan.num_merges())),
        offsets_(offsets),
        x_(x),
        x_stride_(x_stride),
        y_(y),
        y_stride_(y_stride) {}

  /// Panels begin … end − 1 of every sequence. scratch: merge_scratch_size(bank, num_merges) scalars.
  void run(Index begin, Index end, Scalar* scratch) const {
    if (plan_.num_merges() == 0) return;
    for (Block block = first(begin); block.panel < end;) {
      const Block next = after(block);
      PrefetchQueue ahead;
      if (next.panel < end) look_ahead(block, next, ahead);
      if (!uses_experts_in_place()) merge(block, scratch);
      for (Index q = 0; q < block.merges; ++q) multiply(block, q, scratch, ahead);
      block = next;
    }
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  /// What is merged at a time: rows of one panel, for Q merges.
  struct Block {
    Index panel;
    Index first_merge;
    Index merges;
    Index row;
    Index rows;
  };

  /// The softmax over one logit is 1, so with K = 1 the merged expert is the expert itself, where it lies. A
  /// routing from elsewhere may have another weight.
  bool uses_experts_in_place() const {
    return std::same_as<Scalar, Storage> && plan_.top_k == 1 && plan_.has_unit_weights;
  }

  Block block_at(Index panel, Index first_merge, Index row) const {
    return {panel, first_merge, std::min(blocks_.merges, plan_.num_merges() - first_merge), row,
            std::min(blocks_.depth, bank_.depth() - row)};
  }
  Block first(Index panel) const { return block_at(panel, 0, 0); }
  Block after(const Block& block) const {
    if (block.row + block.rows < bank_.depth()) {
      return block_at(block.panel, block.first_merge, block.row + block.rows);
    }
    if (block.first_merge + block.merges < plan_.num_merges()) {
      return block_at(block.panel, block.first_merge + block.merges, 0);
    }
    return first(block.panel + 1);
  }

  /// While `block` is multiplied with, the experts' rows that `next` will merge are fetched.
  void look_ahead(const Block& block, const Block& next, PrefetchQueue& ahead) const {
    const Index bytes = next.rows * columns * static_cast<Index>(sizeof(Storage));
    for (Index q = 0; q < next.merges; ++q) {
      const Index* const experts = plan_.terms(next.first_merge + q).experts;
      for (Index i = 0; i < plan_.top_k; ++i) ahead.add(rows_of(next, experts[i]), bytes);
    }
    Index steps = 0;
    for (Index i = plan_.begin(block.first_merge); i < plan_.begin(block.first_merge + block.merges); ++i) {
      steps += prefetch_steps<Scalar>(length(plan_.sequence(i)), block.rows);
    }
    ahead.spread(steps);
  }

  const Storage* rows_of(const Block& block, Index expert) const {
    return bank_.panel(block.panel, expert) + block.row * columns;
  }

  /// Merges strip by strip: a strip of the experts stays in L1 for all Q merges.
  void merge(const Block& block, Scalar* scratch) const {
    const Index strip_rows = merge_strip_rows<Scalar>(plan_.top_k);
    for (Index strip = 0; strip < block.rows; strip += strip_rows) {
      const Index count = std::min(strip_rows, block.rows - strip);
      for (Index q = 0; q < block.merges; ++q) {
        merge_rows(bank_, block.panel, block.row + strip, count, plan_.terms(block.first_merge + q),
                   plan_.top_k, scratch + (q * block.rows + strip) * columns);
      }
    }
  }

  /// The block's part of the product for all sequences of its q-th merge.
  void multiply(const Block& block, Index q, const Scalar* scratch, PrefetchQueue& ahead) const {
    const Index m = block.first_merge + q;
    const Scalar* panel = scratch + q * block.rows * columns;
    if constexpr (std::same_as<Scalar, Storage>) {
      if (uses_experts_in_place()) panel = rows_of(block, plan_.terms(m).experts[0]);
    }
    // The first row of a panel holds the biases, if any; they start the sums. Later blocks go on from y.
    const Index bias_rows = bank_.has_bias ? 1 : 0;
    const bool is_first = block.row == 0;
    const Scalar* const starts = !is_first ? nullptr : bank_.has_bias ? panel : zero_row<Scalar>.data();
    const Index skipped = is_first ? bias_rows : 0;
    const Index first_input = is_first ? 0 : block.row - bias_rows;
    for (Index i = plan_.begin(m); i < plan_.begin(m + 1); ++i) {
      const Index b = plan_.sequence(i);
      const StoreRows<Scalar> rows{x_ + offset(b) * x_stride_ + first_input, x_stride_,
                                   y_ + offset(b) * y_stride_ + block.panel * columns, y_stride_, starts};
      multiply_panel(rows, length(b), panel + skipped * columns, block.rows - skipped,
                     bank_.valid_columns(block.panel), ahead);
    }
  }

  Index offset(Index b) const { return offsets_[static_cast<std::size_t>(b)]; }
  Index length(Index b) const { return offset(b + 1) - offset(b); }

  const Bank& bank_;
  const MergePlan<Scalar>& plan_;
  MergeBlocks blocks_;
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
    product.run(begin, end, scratch + thread * scratch_size);
  });
}

}  // namespace meo::detail

#pragma once

/// The gradient of x through merged experts: dx_t = dy_t Ŵ_b for the tokens t of every sequence b.
///
///     for each block of inputs                              parallel
///       for each group of panels of outputs
///         for each Q merges
///           merge the block's rows of these panels and turn them on their side   stays in L2
///           for each sequence of each merge: dx tile += dy tile · turned panel

#include <algorithm>
#include <span>

#include <meo/kernels/gradient_blocking.hpp>
#include <meo/kernels/input_gradient.hpp>
#include <meo/kernels/merge.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/outer_product.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/transpose.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::detail {

template <class Scalar>
class MergedInputGradient {
 public:
  using Bank = PanelBank<Scalar, const Scalar>;

  MergedInputGradient(const Bank& bank, const MergePlan<Scalar>& plan, std::span<const Index> offsets,
                      const Scalar* dy, Index dy_stride, Scalar* dx, Index dx_stride)
      : bank_(bank),
        plan_(plan),
        group_(gradient_group<Scalar>(bank.num_panels())),
        panel_stride_(group_ * columns * columns),
        blocks_(blocks(bank, plan.num_merges())),
        strip_rows_(strip_rows(plan.top_k)),
        offsets_(offsets),
        dy_(dy),
        dy_stride_(dy_stride),
        dx_(dx),
        dx_stride_(dx_stride) {}

  static Index scratch_size(const Bank& bank, Index merges, Index top_k) {
    const GradientBlocks all = blocks(bank, merges);
    return all.merges * all.size * gradient_group<Scalar>(bank.num_panels()) * columns * columns +
           strip_rows(top_k) * columns;
  }

  Index input_panels() const { return (bank_.in_features + columns - 1) / columns; }

  /// Panels begin … end − 1 of inputs. scratch: scratch_size scalars.
  void run(Index begin, Index end, Scalar* scratch) const {
    for (Index first = begin; first < end; first += blocks_.size) {
      for (Index output = 0; output < bank_.num_panels(); output += group_) {
        for (Index merge = 0; merge < plan_.num_merges(); merge += blocks_.merges) {
          const Block block{first,  std::min(blocks_.size, end - first),
                            output, std::min(group_, bank_.num_panels() - output),
                            merge,  std::min(blocks_.merges, plan_.num_merges() - merge)};
          turn(block, scratch);
          for (Index q = 0; q < block.merges; ++q) multiply(block, q, scratch);
        }
      }
    }
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  /// Panels of inputs and of outputs, for Q merges.
  struct Block {
    Index first_input_panel;
    Index input_panels;
    Index first_panel;
    Index panels;
    Index first_merge;
    Index merges;
  };

  static GradientBlocks blocks(const Bank& bank, Index merges) {
    const Index unit = gradient_group<Scalar>(bank.num_panels()) * columns * columns;
    return gradient_blocks<Scalar>(unit, 8, (bank.in_features + columns - 1) / columns, merges);
  }

  /// Merged at a time, in whole panels of inputs.
  static Index strip_rows(Index top_k) {
    return std::max<Index>(merge_strip_rows<Scalar>(top_k) / columns, 1) * columns;
  }

  Scalar* turned(const Block& block, Index q, Scalar* scratch) const {
    return scratch + q * block.input_panels * panel_stride_;
  }

  /// Merges strip by strip, so that a strip of the experts stays in L1 for all Q merges.
  void turn(const Block& block, Scalar* scratch) const {
    Scalar* const merged = scratch + blocks_.merges * blocks_.size * panel_stride_;
    const Index first_row = block.first_input_panel * columns;
    const Index inputs = std::min(block.input_panels * columns, bank_.in_features - first_row);
    for (Index g = 0; g < block.panels; ++g) {
      for (Index strip = 0; strip < inputs; strip += strip_rows_) {
        const Index count = std::min(strip_rows_, inputs - strip);
        const Index row = first_row + strip + (bank_.has_bias ? 1 : 0);
        const MergeSource<const Scalar> source{bank_.panel(block.first_panel + g, 0) + row * columns,
                                               bank_.panel_size()};
        for (Index q = 0; q < block.merges; ++q) {
          merge_rows(source, plan_.terms(block.first_merge + q), plan_.top_k, false, count * columns, merged);
          transpose_rows(merged, count,
                         turned(block, q, scratch) + strip / columns * panel_stride_ + g * columns * columns,
                         panel_stride_);
        }
      }
    }
  }

  /// The block's part of dx for all sequences of its q-th merge.
  void multiply(const Block& block, Index q, Scalar* scratch) const {
    const Index first_output = block.first_panel * columns;
    const TurnedPanels<Scalar> panels{turned(block, q, scratch), first_output,
                                      std::min(block.panels * columns, bank_.out_features - first_output),
                                      panel_stride_};
    const Index m = block.first_merge + q;
    for (Index i = plan_.begin(m); i < plan_.begin(m + 1); ++i) {
      const auto b = static_cast<std::size_t>(plan_.sequence(i));
      multiply_turned<Scalar>(panels, block.first_input_panel, block.input_panels, bank_.in_features,
                              {dy_ + offsets_[b] * dy_stride_, dy_stride_}, offsets_[b + 1] - offsets_[b],
                              block.first_panel > 0, dx_ + offsets_[b] * dx_stride_, dx_stride_);
    }
  }

  const Bank& bank_;
  const MergePlan<Scalar>& plan_;
  Index group_;
  Index panel_stride_;
  GradientBlocks blocks_;
  Index strip_rows_;
  std::span<const Index> offsets_;
  const Scalar* dy_;
  Index dy_stride_;
  Scalar* dx_;
  Index dx_stride_;
};

/// Scalars of scratch that merged_input_gradient needs for each thread.
template <class Scalar>
Index merged_input_gradient_scratch_size(const PanelBank<Scalar, const Scalar>& bank, Index merges,
                                         Index top_k) {
  return MergedInputGradient<Scalar>::scratch_size(bank, merges, top_k);
}

/// Writes dx, tokens × in_features at dx_stride, not overlapping dy (tokens × out_features at dy_stride).
/// scratch: `threads` times merged_input_gradient_scratch_size.
template <class Scalar>
void merged_input_gradient(const PanelBank<Scalar, const Scalar>& bank, const MergePlan<Scalar>& plan,
                           std::span<const Index> offsets, const Scalar* dy, Index dy_stride, Scalar* dx,
                           Index dx_stride, Scalar* scratch, Index threads) {
  const MergedInputGradient<Scalar> gradient(bank, plan, offsets, dy, dy_stride, dx, dx_stride);
  const Index scratch_size = merged_input_gradient_scratch_size(bank, plan.num_merges(), plan.top_k);
  parallel_ranges(gradient.input_panels(), threads, [&](Index begin, Index end, Index thread) {
    gradient.run(begin, end, scratch + thread * scratch_size);
  });
}

}  // namespace meo::detail

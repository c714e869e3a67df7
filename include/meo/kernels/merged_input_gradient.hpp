#pragma once

/// The gradient of x through merged experts: dx_t = dy_t Ŵ_b for the tokens t of every sequence b.
///
///     for some panels of outputs                            their dy stays in L3
///       for some panels of inputs                           parallel
///         for each Q merges
///           merge the experts and turn the merged panels    into scratch
///           for each sequence of each merge: dx tile += dy tile · turned panel

#include <algorithm>
#include <array>
#include <span>

#include <meo/compiled.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/input_gradient.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/gradient_blocking.hpp>
#include <meo/kernels/parts/merge_tokens.hpp>
#include <meo/kernels/parts/prefetch.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Belongs to one thread, which computes the panels begin … end − 1 of inputs.
template <class Scalar>
class MergedInputGradient {
 public:
  using Bank = PanelBank<Scalar, const Scalar>;

  /// begin < end; scratch: scratch_size scalars.
  MergedInputGradient(const Bank& bank, const MergePlan<Scalar>& plan, std::span<const Index> offsets,
                      const Rows<const Scalar>& dy, const Rows<Scalar>& dx, Index begin, Index end,
                      Scalar* scratch, const Blocks& limits)
      : bank_(bank),
        plan_(plan),
        blocks_(turned_blocks(bank, plan.num_merges(), limits)),
        tokens_(plan, offsets),
        dy_(dy),
        dx_(dx),
        begin_(begin),
        end_(end),
        scratch_(scratch) {}

  static Index scratch_size(const Bank& bank, Index merges, const Blocks& limits) {
    const TurnedBlocks blocks = turned_blocks(bank, merges, limits);
    return blocks.tokens * packed_gradient_stride<Scalar>(blocks.panels) +
           blocks.merges * TurnedPanels<Scalar>::size(blocks.panels, blocks.input_panels);
  }

  void run() const {
    for (Block block = block_at(choose(0), 0, begin_); block.merges > 0;) {
      const Block next = after(block);
      PrefetchQueue ahead = look_ahead(block, next);
      merge(block);
      multiply(block, ahead);
      block = next;
    }
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  struct Block : TurnedBlock, MergeRange {};

  /// Merges of whose dy the block's outputs fit into scratch.
  MergeRange choose(Index first) const { return tokens_.choose(first, blocks_.merges, blocks_.tokens); }

  Block block_at(const MergeRange& merges, Index panel, Index input_panel) const {
    return {{panel, (std::min)(blocks_.panels, bank_.num_panels() - panel), input_panel,
             (std::min)(blocks_.input_panels, end_ - input_panel)},
            merges};
  }

  Block after(const Block& block) const {
    const Index input_panel = block.first_input_panel + block.input_panels;
    if (input_panel < end_) return block_at(block, block.first_panel, input_panel);
    const Index panel = block.first_panel + block.panels;
    if (panel < bank_.num_panels()) return block_at(block, panel, begin_);
    return block_at(choose(block.first_merge + block.merges), 0, begin_);
  }

  TurnedPanels<Scalar> turned(const Block& block, Index q) const {
    return {bank_, block,
            scratch_ + blocks_.tokens * packed_gradient_stride<Scalar>(blocks_.panels) +
                q * TurnedPanels<Scalar>::size(block.panels, block.input_panels)};
  }

  /// While `block` is multiplied with, the experts' rows that `next` will merge are fetched.
  PrefetchQueue look_ahead(const Block& block, const Block& next) const {
    PrefetchQueue ahead;
    const Index row = next.first_input_panel * columns + (bank_.has_bias ? 1 : 0);
    const Index rows = (std::min)(next.input_panels * columns, bank_.depth() - row);
    std::array<Index, 64> experts;  // as many stretches as the queue has room for
    auto end = experts.begin();
    for (Index m = next.first_merge; m < next.first_merge + next.merges; ++m) {
      const MergeTerms<Scalar> terms = plan_.terms(m);
      for (Index i = 0; i < terms.count && end != experts.end(); ++i) {
        const Index expert = terms.experts[i];
        if (std::find(experts.begin(), end, expert) == end) *end++ = expert;
      }
    }
    for (Index p = next.first_panel; p < next.first_panel + next.panels; ++p) {
      std::for_each(experts.begin(), end, [&](Index expert) {
        ahead.add(bank_.panel(p, expert) + row * columns,
                  rows * columns * static_cast<Index>(sizeof(Scalar)));
      });
    }
    Index intervals = 0;
    for (Index q = 0; q < block.merges; ++q) {
      for_stretches(block.first_merge + q, [&](Index, Index tokens) {
        intervals += prefetch_intervals(tokens, turned(block, q).panels(false));
      });
    }
    ahead.spread(intervals);
    return ahead;
  }

  /// A strip of inputs at a time, whose rows of the experts stay in L1 for all Q merges.
  void merge(const Block& block) const {
    for (Index p = 0; p < block.panels; ++p) {
      for (Index i = 0; i < block.input_panels; ++i) {
        for (Index s = 0; s < TurnedPanels<Scalar>::num_strips; ++s) {
          for (Index q = 0; q < block.merges; ++q)
            turned(block, q).merge(p, i, s, plan_.terms(block.first_merge + q));
        }
      }
    }
  }

  /// The block's part of dx for all tokens of its merges.
  void multiply(const Block& block, PrefetchQueue& ahead) const {
    Scalar* packed = scratch_;
    for (Index q = 0; q < block.merges; ++q) {
      for_stretches(block.first_merge + q, [&](Index first, Index tokens) {
        if (block.first_input_panel == begin_ || !block.tokens_fit)
          turned(block, q).pack(dy_, first, tokens, packed);
        turned(block, q).multiply(packed, tokens, false, dx_.from(first), ahead);
        if (block.tokens_fit) packed += tokens * packed_gradient_stride<Scalar>(block.panels);
      });
    }
  }

  /// Tokens of a merge, few enough to be packed at a time.
  template <class Function>
  void for_stretches(Index merge, const Function& f) const {
    tokens_.for_stretches(merge, packed_gradient_rows, f);
  }

  const Bank& bank_;
  const MergePlan<Scalar>& plan_;
  TurnedBlocks blocks_;
  MergeTokens<Scalar> tokens_;
  const Rows<const Scalar>& dy_;
  const Rows<Scalar>& dx_;
  Index begin_;
  Index end_;
  Scalar* scratch_;
};

/// Scalars of scratch that merged_input_gradient needs for each thread.
template <class Scalar>
Index merged_input_gradient_scratch_size(const PanelBank<Scalar, const Scalar>& bank, Index merges,
                                         const Blocks& limits = {}) {
  return MergedInputGradient<Scalar>::scratch_size(bank, merges, limits);
}

/// Writes dx, tokens × in_features, not overlapping dy, tokens × out_features. scratch:
/// merged_input_gradient_scratch_size.
template <class Scalar>
void merged_input_gradient(const PanelBank<Scalar, const Scalar>& bank, const MergePlan<Scalar>& plan,
                           std::span<const Index> offsets, Rows<const Scalar> dy, Rows<Scalar> dx,
                           Scratch<Scalar> scratch, const Blocks& limits = {}) {
  if (plan.num_merges() == 0) return;
  const Index scratch_size = merged_input_gradient_scratch_size(bank, plan.num_merges(), limits);
  parallel_ranges(num_input_panels(bank), scratch.threads, [&](Index begin, Index end, Index thread) {
    MergedInputGradient<Scalar>(bank, plan, offsets, dy, dx, begin, end, scratch.data + thread * scratch_size,
                                limits)
        .run();
  });
}

#define MEO_INSTANCES(instance, Scalar)                                                                 \
  instance void merged_input_gradient(const PanelBank<Scalar, const Scalar>&, const MergePlan<Scalar>&, \
                                      std::span<const Index>, Rows<const Scalar>, Rows<Scalar>,         \
                                      Scratch<Scalar>, const Blocks&);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

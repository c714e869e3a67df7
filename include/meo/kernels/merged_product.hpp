#pragma once

/// y_t = x_t Ŵ_bᵀ + b̂_b for the tokens t of every sequence b, with Ŵ_b = Σ_i g_bi W_i formed panel by panel
/// in scratch.
///
///     parallel over panels
///       for each chunk of tokens                        its activations stay in L3
///         for each block of depth                       one block unless D is very large
///           for each group of panels                    read from memory once for all merges of the chunk
///             for each Q merges
///               merge: scratch[q] = Σ_i g_qi panels_i
///               for each sequence of each merge: y tile = start + x tile · scratch[q]

#include <algorithm>
#include <array>
#include <span>

#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/merge.hpp>
#include <meo/kernels/parts/multiply.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Scalars of scratch that merged_product needs for each thread, for so many merges of any tokens: no less
/// for more merges, so that a smaller batch never needs more.
template <class Scalar, class Storage>
Index merge_scratch_size(const PanelBank<Scalar, Storage>& bank, Index merges) {
  Index size = 0;
  for (Index q = 1; q <= (std::min)(merges, max_merges_at_once); ++q) {
    const MergeBlocks blocks = merge_blocks<Scalar>(bank.depth(), q, 0);  // without tokens the most panels
    size = (std::max)(
        size, blocks.panels * blocks.merges * padded_rows<Scalar>(blocks.depth) * Tile<Scalar>::columns);
  }
  return size;
}

/// The product for the panels begin … end − 1 of all sequences. Belongs to one thread.
template <class Scalar, class Storage>
class MergedProduct {
 public:
  using Bank = PanelBank<Scalar, const Storage>;

  /// Panels begin … end − 1; begin < end. scratch: merge_scratch_size scalars.
  MergedProduct(const Bank& bank, const MergePlan<Scalar>& plan, std::span<const Index> offsets,
                const Scalar* x, Index x_stride, Scalar* y, Index y_stride, Index begin, Index end,
                Scalar* scratch)
      : bank_(bank),
        plan_(plan),
        blocks_(merge_blocks<Scalar>(bank.depth(), plan.num_merges(), offsets.back())),
        offsets_(offsets),
        x_(x),
        x_stride_(x_stride),
        y_(y),
        y_stride_(y_stride),
        begin_(begin),
        end_(end),
        scratch_(scratch) {}

  void run() const {
    for (Block block = block_at(chunk_from({0, 0}), 0, begin_); block.merges > 0;) {
      const Block next = after(block);
      PrefetchQueue ahead = look_ahead(block, next);
      merge(block);
      for (Index q = 0; q < block.merges; ++q) multiply(block, q, ahead);
      block = next;
    }
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  /// A token: a row of the sequence at a position of the plan.
  struct Cursor {
    Index position;
    Index row;
  };

  /// Tokens that all panels pass over before the next, and the merges that they need.
  struct Chunk {
    Cursor begin;
    Cursor end;
    Index first_merge;
    Index end_merge;
  };

  /// What is merged at a time: rows of a few panels, for Q merges of a chunk.
  struct Block {
    Chunk chunk;
    Index row;
    Index rows;
    Index panel;
    Index panels;
    Index first_merge;
    Index merges;  ///< 0: there is nothing left
  };

  /// Whether the merged expert is one that lies in the bank already.
  bool is_in_place(Index merge) const {
    if constexpr (!std::same_as<Scalar, Storage>) return false;
    return plan_.terms(merge).are_one_expert();
  }

  // -------------------------------------------------------------------------------------------------------------
  // The order of blocks

  /// Whole sequences as far as there is space; a sequence that is longer than a chunk in about equal parts.
  Chunk chunk_from(Cursor begin) const {
    const auto num_sequences = static_cast<Index>(plan_.sequences.size());
    Cursor end = begin;
    for (Index space = blocks_.tokens; end.position < num_sequences;) {
      const Index left = length(plan_.sequence(end.position)) - end.row;
      if (left > space) {
        if (space == blocks_.tokens) end.row += even_part(left, space);
        break;
      }
      end = {end.position + 1, 0};
      space -= left;
    }
    const Index end_position = end.row > 0 ? end.position + 1 : end.position;
    if (begin.position == end_position) return {begin, end, 0, 0};
    return {begin, end, merge_of(begin.position), merge_of(end_position - 1) + 1};
  }

  Index merge_of(Index position) const {
    const auto& begins = plan_.merge_begins;
    return static_cast<Index>(std::upper_bound(begins.begin(), begins.end(), position) - begins.begin()) - 1;
  }

  Block block_at(const Chunk& chunk, Index row, Index panel) const {
    return block_at(chunk, row, panel, chunk.first_merge);
  }
  Block block_at(const Chunk& chunk, Index row, Index panel, Index merge) const {
    return {
        chunk,
        row,
        (std::min)(blocks_.depth, bank_.depth() - row),
        panel,
        (std::min)(blocks_.panels, end_ - panel),
        merge,
        (std::min)(even_part(chunk.end_merge - chunk.first_merge, blocks_.merges), chunk.end_merge - merge)};
  }

  Block after(const Block& block) const {
    const Index merge = block.first_merge + block.merges;
    if (merge < block.chunk.end_merge) return block_at(block.chunk, block.row, block.panel, merge);
    const Index panel = block.panel + block.panels;
    if (panel < end_) return block_at(block.chunk, block.row, panel);
    const Index row = block.row + block.rows;
    if (row < bank_.depth()) return block_at(block.chunk, row, begin_);
    return block_at(chunk_from(block.chunk.end), 0, begin_);
  }

  // -------------------------------------------------------------------------------------------------------------
  // The work on a block

  /// Calls f(token, count) for the tokens of a merge that belong to a chunk, in stretches of one sequence.
  template <class Function>
  void for_tokens(const Chunk& chunk, Index merge, const Function& f) const {
    const Index first = (std::max)(plan_.begin(merge), chunk.begin.position);
    const Index last = (std::min)(plan_.begin(merge + 1) - 1, chunk.end.position);
    for (Index i = first; i <= last; ++i) {
      const Index sequence = plan_.sequence(i);
      const Index row = i == chunk.begin.position ? chunk.begin.row : 0;
      const Index end = i == chunk.end.position ? chunk.end.row : length(sequence);
      if (row < end) f(offset(sequence) + row, end - row);
    }
  }

  /// While `block` is multiplied with, the experts' rows that `next` will merge are fetched.
  PrefetchQueue look_ahead(const Block& block, const Block& next) const {
    PrefetchQueue ahead;
    const bool is_whole = next.rows == bank_.depth();
    const Index size = is_whole ? bank_.panel_size() : next.rows * columns;
    for (Index p = next.panel; p < next.panel + next.panels; ++p) {
      for (Index m = next.first_merge; m < next.first_merge + next.merges; ++m) {
        if (m > next.first_merge && plan_.have_same_experts(m - 1, m)) continue;
        const MergeTerms<Scalar> terms = plan_.terms(m);
        for (Index i = 0; i < terms.count; ++i) {
          ahead.add(bank_.panel(p, terms.experts[i]) + next.row * columns,
                    size * static_cast<Index>(sizeof(Storage)));
        }
      }
    }
    Index steps = 0;
    for (Index q = 0; q < block.merges; ++q) {
      const Panels<Scalar> panels = panels_of_merge(block, q);
      for_tokens(block.chunk, block.first_merge + q,
                 [&](Index, Index count) { steps += prefetch_steps(count, panels); });
    }
    ahead.spread(steps);
    return ahead;
  }

  /// Where in scratch the merged panels of the q-th merge begin, and how far they are apart.
  Scalar* merged(const Block& block, Index q) const {
    return scratch_ + q * block.panels * merged_stride(block);
  }
  static Index merged_stride(const Block& block) { return padded_rows<Scalar>(block.rows) * columns; }

  /// Merges of the same experts are formed a few at a time from one pass over the experts, merges of
  /// different experts one by one; strip by strip, so that what has been read stays in a cache for all of
  /// them. Those in place are not formed at all.
  void merge(const Block& block) const {
    const Index last = block.first_merge + block.merges - 1;
    Index most_terms = 0;
    for (Index m = block.first_merge; m <= last; ++m) {
      if (!is_in_place(m)) most_terms = (std::max)(most_terms, plan_.terms(m).count);
    }
    if (most_terms == 0) return;
    // Between two of the same experts, all have them: selections are sorted. Of those of a single expert one
    // may be in place, and a group would form it.
    const bool have_same_experts = most_terms > 1 && plan_.have_same_experts(block.first_merge, last);
    const Index strip_rows = !have_same_experts          ? merge_strip_rows<Scalar>(most_terms)
                             : most_terms <= merge_terms ? block.rows
                                                         : group_strip_rows<Scalar>(most_terms, block.merges);
    for (Index p = 0; p < block.panels; ++p) {
      for (Index strip = 0; strip < block.rows; strip += strip_rows) {
        const Index size = (std::min)(strip_rows, block.rows - strip) * columns;
        const MergeSource<Storage> source{bank_.panel(block.panel + p, 0) + (block.row + strip) * columns,
                                          bank_.panel_size()};
        Scalar* const scratch = merged(block, 0) + p * merged_stride(block) + strip * columns;
        merge_strip(block, have_same_experts, source, size, scratch);
      }
    }
  }

  void merge_strip(const Block& block, bool have_same_experts, MergeSource<Storage> source, Index size,
                   Scalar* scratch) const {
    constexpr Index group = merge_group<Scalar>;
    const Index stride = block.panels * merged_stride(block);
    Index q = 0;
    for (; have_same_experts && q + group <= block.merges; q += group) {
      MergeGroup<Scalar> terms;
      for (Index i = 0; i < group; ++i)
        terms[static_cast<std::size_t>(i)] = plan_.terms(block.first_merge + q + i);
      merge_rows_of_group(source, terms, terms[0].count, q == 0, size, scratch + q * stride, stride);
    }
    for (; q < block.merges; ++q) {
      if (is_in_place(block.first_merge + q)) continue;
      const MergeTerms<Scalar> terms = plan_.terms(block.first_merge + q);
      merge_rows(source, terms, terms.count, size, scratch + q * stride);
    }
  }

  /// The panels of the q-th merge. The first row of a panel holds the biases, if any; they start the sums.
  /// Later blocks go on from y.
  Panels<Scalar> panels_of_merge(const Block& block, Index q) const {
    const Scalar* first = merged(block, q);
    Index stride = merged_stride(block);
    if constexpr (std::same_as<Scalar, Storage>) {
      if (is_in_place(block.first_merge + q)) {
        const Index expert = plan_.terms(block.first_merge + q).experts[0];
        first = bank_.panel(block.panel, expert) + block.row * columns;
        stride = bank_.panel_stride();
      }
    }
    const Index outputs = bank_.valid_columns(block.panel, block.panels);
    if (block.row > 0) return {first, stride, block.rows, outputs, nullptr};
    if (!bank_.has_bias) return {first, stride, block.rows, outputs, zero_row<Scalar>.data()};
    return {first + columns, stride, block.rows - 1, outputs, first, stride};
  }

  /// The block's part of the product for all tokens of its q-th merge.
  void multiply(const Block& block, Index q, PrefetchQueue& ahead) const {
    const Panels<Scalar> panels = panels_of_merge(block, q);
    const Index first_input = block.row == 0 || !bank_.has_bias ? block.row : block.row - 1;
    for_tokens(block.chunk, block.first_merge + q, [&](Index token, Index count) {
      const ProductRows<Scalar> rows{x_ + token * x_stride_ + first_input, x_stride_,
                                     y_ + token * y_stride_ + block.panel * columns, y_stride_};
      multiply_panels(rows, count, panels, ahead);
    });
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
  Index begin_;
  Index end_;
  Scalar* scratch_;
};

/// The whole product. x: tokens × in_features at x_stride; y: tokens × out_features at y_stride, not
/// overlapping x; scratch: `threads` times merge_scratch_size(bank, plan.num_merges())
/// scalars.
template <class Scalar, class Storage>
void merged_product(const PanelBank<Scalar, const Storage>& bank, const MergePlan<Scalar>& plan,
                    std::span<const Index> offsets, const Scalar* x, Index x_stride, Scalar* y,
                    Index y_stride, Scalar* scratch, Index threads) {
  if (plan.num_merges() == 0) return;
  const Index scratch_size = merge_scratch_size(bank, plan.num_merges());
  parallel_ranges(bank.num_panels(), threads, [&](Index begin, Index end, Index thread) {
    MergedProduct<Scalar, Storage>(bank, plan, offsets, x, x_stride, y, y_stride, begin, end,
                                   scratch + thread * scratch_size)
        .run();
  });
}

}  // namespace meo::detail

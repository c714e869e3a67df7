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

#include <meo/compiled.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/merge.hpp>
#include <meo/kernels/parts/merge_tokens.hpp>
#include <meo/kernels/parts/multiply.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Scalars of scratch that merged_product needs for each thread, for so many merges of any tokens: no less
/// for more merges, so that a smaller batch never needs more.
template <class Scalar, class Storage>
Index merged_product_scratch_size(const PanelBank<Scalar, Storage>& bank, Index merges,
                                  const Blocks& limits = {}) {
  Index size = 0;
  for (Index q = 1; q <= (std::min)(merges, limits.merges); ++q) {
    // Without tokens the most panels.
    const MergeBlocks blocks = merge_blocks<Scalar>(bank.depth(), q, 0, limits);
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

  /// Panels begin … end − 1; begin < end. scratch: merged_product_scratch_size scalars.
  MergedProduct(const Bank& bank, const MergePlan<Scalar>& plan, std::span<const Index> offsets,
                const Rows<const Scalar>& x, const Rows<Scalar>& y, Index begin, Index end, Scalar* scratch,
                const Blocks& limits)
      : bank_(bank),
        plan_(plan),
        limits_(limits),
        blocks_(merge_blocks<Scalar>(bank.depth(), plan.num_merges(), offsets.back(), limits)),
        tokens_(plan, offsets),
        x_(x),
        y_(y),
        begin_(begin),
        end_(end),
        scratch_(scratch) {}

  void run() const {
    for (Block block = block_at(chunk_from({}), 0, begin_); block.merges > 0;) {
      const Block next = after(block);
      PrefetchQueue ahead = look_ahead(block, next);
      merge(block);
      for (Index q = 0; q < block.merges; ++q) multiply(block, q, ahead);
      block = next;
    }
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  /// What is merged at a time: rows of a few panels, for Q merges of a chunk.
  struct Block {
    TokenChunk chunk;  ///< that all panels pass over before the next
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

  TokenChunk chunk_from(TokenCursor begin) const { return tokens_.chunk_from(begin, blocks_.tokens); }

  Block block_at(const TokenChunk& chunk, Index row, Index panel) const {
    return block_at(chunk, row, panel, chunk.first_merge);
  }
  Block block_at(const TokenChunk& chunk, Index row, Index panel, Index merge) const {
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

  /// Calls f(token, count) for the tokens of the q-th merge, a sequence at a time.
  template <class Function>
  void for_tokens(const Block& block, Index q, const Function& f) const {
    tokens_.for_sequences(block.chunk.begin, block.chunk.end, block.first_merge + q, f);
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
      for_tokens(block, q, [&](Index, Index count) { steps += prefetch_steps(count, panels); });
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
    const Index strip_rows = !have_same_experts ? merge_strip_rows<Scalar>(most_terms, limits_)
                             : most_terms <= merge_terms
                                 ? block.rows
                                 : group_strip_rows<Scalar>(most_terms, block.merges, limits_);
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
    for_tokens(block, q, [&](Index token, Index count) {
      const ProductRows<Scalar> rows{x_.from(token).from_column(first_input),
                                     y_.from(token).from_column(block.panel * columns)};
      multiply_panels(rows, count, panels, ahead);
    });
  }

  const Bank& bank_;
  const MergePlan<Scalar>& plan_;
  const Blocks& limits_;
  MergeBlocks blocks_;
  MergeTokens<Scalar> tokens_;
  const Rows<const Scalar>& x_;
  const Rows<Scalar>& y_;
  Index begin_;
  Index end_;
  Scalar* scratch_;
};

/// The whole product. x: tokens × in_features; y: tokens × out_features, not overlapping x; scratch:
/// merged_product_scratch_size.
template <class Scalar, class Storage>
void merged_product(const PanelBank<Scalar, const Storage>& bank, const MergePlan<Scalar>& plan,
                    std::span<const Index> offsets, Rows<const Scalar> x, Rows<Scalar> y,
                    Scratch<Scalar> scratch, const Blocks& limits = {}) {
  if (plan.num_merges() == 0) return;
  const Index scratch_size = merged_product_scratch_size(bank, plan.num_merges(), limits);
  parallel_ranges(bank.num_panels(), scratch.threads, [&](Index begin, Index end, Index thread) {
    MergedProduct<Scalar, Storage>(bank, plan, offsets, x, y, begin, end,
                                   scratch.data + thread * scratch_size, limits)
        .run();
  });
}

#define MEO_INSTANCES(instance, Scalar)                                                                   \
  instance void merged_product(const PanelBank<Scalar, const Scalar>&, const MergePlan<Scalar>&,          \
                               std::span<const Index>, Rows<const Scalar>, Rows<Scalar>, Scratch<Scalar>, \
                               const Blocks&);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

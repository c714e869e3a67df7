#pragma once

/// y_t = x_t Ŵ_bᵀ + b̂_b for the tokens t of every sequence b, with Ŵ_b = Σ_i g_bi W_i formed in scratch, a
/// slice of a panel at a time.
///
///     for each chunk of tokens
///       pack its rows of x                              as tiles read them, unless there is a single merge
///       parallel over panels
///         for each group of panels                      their sums stay in L2
///           for each slice of inputs                    its part of x stays in L2
///             for each few panels of the group          read from memory once for all merges of the chunk
///               for each Q merges
///                 merge: scratch[q] = Σ_i g_qi slice_i
///                 for each sequence of each merge: sums tile += x tile · scratch[q]
///                                                       the last slice writes y

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
#include <meo/kernels/parts/packed_rows.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// What merged_product works in.
template <class Scalar>
struct MergedProductMemory {
  Scalar* packed;           ///< merged_product_packed_size
  Scratch<Scalar> scratch;  ///< merged_product_scratch_size
};

/// Scalars that merged_product packs x in; no less for more tokens, though it may need less: none at all for
/// a single merge.
template <class Scalar, class Storage>
Index merged_product_packed_size(const PanelBank<Scalar, Storage>& bank, Index tokens,
                                 const Blocks& limits = machine_blocks()) {
  return packed_rows_size<Scalar>((std::min)(tokens, most_merged_tokens<Scalar>(limits)), bank.in_features,
                                  slice_inputs<Scalar>(bank.in_features, 2, limits));
}

/// Scalars of scratch that merged_product needs for each thread, whatever the merges and their tokens.
template <class Scalar, class Storage>
Index merged_product_scratch_size(const PanelBank<Scalar, Storage>& bank,
                                  const Blocks& limits = machine_blocks()) {
  constexpr Index row_bytes = Tile<Scalar>::columns * Index{sizeof(Scalar)};
  const Index rows = (std::max)(merged_rows<Scalar>(slice_inputs<Scalar>(bank.in_features, 1, limits)),
                                merged_rows<Scalar>(slice_inputs<Scalar>(bank.in_features, 2, limits)));
  const Index merged = (std::max)(rows * row_bytes, limits.merged_bytes);
  const Index sums = (std::max)(row_bytes, limits.sums_bytes);
  return (merged + sums) / Index{sizeof(Scalar)};
}

/// The product for the panels begin … end − 1 of a chunk. Belongs to one thread.
template <class Scalar, class Storage>
class MergedProduct {
 public:
  using Bank = PanelBank<Scalar, const Storage>;

  /// What all threads work on.
  struct Chunk {
    const Bank& bank;
    const MergePlan<Scalar>& plan;
    const MergeTokens<Scalar>& tokens;
    const Blocks& limits;
    const MergeBlocks& blocks;
    const TokenChunk& range;
    const Rows<const Scalar>& x;
    const Scalar* packed;  ///< x, if blocks say so
    const Rows<Scalar>& y;
  };

  /// begin < end. scratch: merged_product_scratch_size scalars.
  MergedProduct(const Chunk& chunk, Index begin, Index end, Scalar* scratch)
      : chunk_(chunk),
        bank_(chunk.bank),
        plan_(chunk.plan),
        blocks_(chunk.blocks),
        end_(end),
        begin_(begin),
        sums_(scratch),
        scratch_(scratch + chunk.blocks.group * chunk.blocks.tokens * columns) {}

  void run() const {
    for (Block block = block_at(begin_, 0, begin_); block.merges > 0;) {
      const Block next = after(block);
      PrefetchQueue ahead = look_ahead(block, next);
      merge(block);
      multiply(block, ahead);
      block = next;
    }
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  /// What is merged at a time: a slice of a few panels of a group, for Q merges.
  struct Block {
    Index group;  ///< its first panel
    Index input;
    Index inputs;
    Index panel;
    Index panels;
    Index first_merge;
    Index merges;       ///< 0: there is nothing left
    Index first_token;  ///< tokens of the chunk that belong to merges before
  };

  /// Whether the merged expert is one that lies in the bank already.
  bool is_in_place(Index merge) const {
    if constexpr (!stores_scalars<Scalar, Storage>) return false;
    return plan_.terms(merge).are_one_expert();
  }

  // -------------------------------------------------------------------------------------------------------------
  // The order of blocks

  Index group_end(Index group) const { return (std::min)(group + blocks_.group, end_); }

  Block block_at(Index group, Index input, Index panel) const {
    return block_at(group, input, panel, chunk_.range.first_merge, 0);
  }
  Block block_at(Index group, Index input, Index panel, Index merge, Index token) const {
    const Index merges = chunk_.range.end_merge - chunk_.range.first_merge;
    return {group,
            input,
            (std::min)(blocks_.inputs, bank_.in_features - input),
            panel,
            (std::min)(blocks_.panels, group_end(group) - panel),
            merge,
            (std::min)(even_part(merges, blocks_.merges), chunk_.range.end_merge - merge),
            token};
  }

  Block after(const Block& block) const {
    const Index merge = block.first_merge + block.merges;
    if (merge < chunk_.range.end_merge) {
      Index token = block.first_token;
      for (Index q = 0; q < block.merges; ++q)
        for_tokens(block, q, [&](Index, Index count) { token += count; });
      return block_at(block.group, block.input, block.panel, merge, token);
    }
    const Index panel = block.panel + block.panels;
    if (panel < group_end(block.group)) return block_at(block.group, block.input, panel);
    const Index input = block.input + block.inputs;
    if (input < bank_.in_features) return block_at(block.group, input, block.group);
    const Index group = group_end(block.group);
    if (group < end_) return block_at(group, 0, group);
    return {};
  }

  // Rows of a panel that a block has: the first may hold the biases.
  Index first_row(const Block& block) const { return block.input == 0 ? 0 : block.input + bank_.bias_rows(); }
  Index rows(const Block& block) const { return block.inputs + (block.input == 0 ? bank_.bias_rows() : 0); }
  /// Rows of biases that are merged with a block, but stand aside.
  Index rows_aside(const Block& block) const {
    return block.input == 0 && bank_.has_bias ? 1 - bank_.bias_rows() : 0;
  }

  // -------------------------------------------------------------------------------------------------------------
  // The work on a block

  /// Calls f(token, count) for the tokens of the q-th merge, a sequence at a time.
  template <class Function>
  void for_tokens(const Block& block, Index q, const Function& f) const {
    chunk_.tokens.for_sequences(chunk_.range.begin, chunk_.range.end, block.first_merge + q, f);
  }

  /// While `block` is multiplied with, the experts' rows that `next` will merge are fetched.
  PrefetchQueue look_ahead(const Block& block, const Block& next) const {
    PrefetchQueue ahead;
    const bool is_whole = rows(next) == bank_.depth();
    const Index size = is_whole ? bank_.panel_size() : rows(next) * columns;
    for (Index p = next.panel; p < next.panel + next.panels; ++p) {
      for (Index m = next.first_merge; m < next.first_merge + next.merges; ++m) {
        if (m > next.first_merge && plan_.have_same_experts(m - 1, m)) continue;
        const MergeTerms<Scalar> terms = plan_.terms(m);
        for (Index i = 0; i < terms.count; ++i) {
          ahead.add(bank_.panel(p, terms.experts[i]) + first_row(next) * columns,
                    size * static_cast<Index>(sizeof(Storage)));
        }
      }
    }
    Index intervals = 0;
    for (Index q = 0; q < block.merges; ++q) {
      const Panels<Scalar> panels = panels_of_merge(block, q);
      for_tokens(block, q, [&](Index, Index count) { intervals += prefetch_intervals(count, panels); });
    }
    ahead.spread(intervals);
    return ahead;
  }

  /// Where in scratch the merged panels of the q-th merge begin, and how far they are apart.
  Scalar* merged(const Block& block, Index q) const {
    return scratch_ + q * block.panels * merged_stride(block);
  }
  Index merged_stride(const Block& block) const { return merged_rows<Scalar>(block.inputs) * columns; }

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
    const Index strip_rows = !have_same_experts ? merge_strip_rows<Scalar>(most_terms, chunk_.limits)
                             : most_terms <= merge_terms
                                 ? rows(block)
                                 : group_strip_rows<Scalar>(most_terms, block.merges, chunk_.limits);
    for (Index p = 0; p < block.panels; ++p) {
      for (Index strip = 0; strip < rows(block); strip += strip_rows) {
        const Index size = (std::min)(strip_rows, rows(block) - strip) * columns;
        const auto source =
            merge_source(bank_, block.panel + p, first_row(block) + strip - bank_.bias_rows());
        Scalar* const scratch =
            merged(block, 0) + p * merged_stride(block) + (rows_aside(block) + strip) * columns;
        merge_strip(block, have_same_experts, source, size, scratch);
      }
      if (rows_aside(block) > 0) merge_biases_aside(block, p);
    }
  }

  void merge_biases_aside(const Block& block, Index p) const {
    const MergeSource<Scalar> source{bank_.biases(block.panel + p, 0), bank_.bias_expert_stride()};
    for (Index q = 0; q < block.merges; ++q) {
      const MergeTerms<Scalar> terms = plan_.terms(block.first_merge + q);
      merge_rows(source, terms, terms.count, columns, merged(block, q) + p * merged_stride(block));
    }
  }

  void merge_strip(const Block& block, bool have_same_experts, const MergeSource<Scalar, Storage>& source,
                   Index size, Scalar* scratch) const {
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

  /// The panels of the q-th merge. Chains start from the biases, if any; those of later slices go on from
  /// their sums, of which `token` is the first.
  Panels<Scalar> panels_of_merge(const Block& block, Index q, Index token = 0) const {
    const Scalar* first = merged(block, q);
    Index stride = merged_stride(block);
    if constexpr (stores_scalars<Scalar, Storage>) {
      if (is_in_place(block.first_merge + q)) {
        const Index expert = plan_.terms(block.first_merge + q).experts[0];
        first = bank_.panel(block.panel, expert) + first_row(block) * columns;
        stride = bank_.panel_stride();
      }
    }
    const Index outputs =
        is_last(block) ? bank_.valid_columns(block.panel, block.panels) : block.panels * columns;
    if (block.input > 0)
      return {first, stride, block.inputs, outputs, sums(block, token), sums_stride(), columns};
    if (!bank_.has_bias) return {first, stride, block.inputs, outputs, zero_row<Scalar>.data()};
    return {first + columns, stride, block.inputs, outputs, first, stride};
  }

  bool is_last(const Block& block) const { return block.input + block.inputs == bank_.in_features; }

  /// The sums of a block's first panel from `token` on, NR of a token, and how far those of panels are apart.
  Scalar* sums(const Block& block, Index token) const {
    return sums_ + (block.panel - block.group) * sums_stride() + token * columns;
  }
  Index sums_stride() const { return blocks_.tokens * columns; }

  /// The block's part of the product for all tokens of its merges.
  void multiply(const Block& block, PrefetchQueue& ahead) const {
    const Index stride = whole_lines<Scalar>(block.inputs);
    // Slices before are whole.
    const Index before =
        chunk_.range.tokens * (block.input / blocks_.inputs) * whole_lines<Scalar>(blocks_.inputs);
    Index token = block.first_token;
    for (Index q = 0; q < block.merges; ++q) {
      for_tokens(block, q, [&](Index row, Index count) {
        ProductRows<Scalar> product{chunk_.x.from(row).from_column(block.input),
                                    {sums(block, token), columns}};
        product.panel_stride = sums_stride();
        if (is_last(block)) {
          product.y = chunk_.y.from(row).from_column(block.panel * columns);
          product.panel_stride = columns;
        }
        const Panels<Scalar> panels = panels_of_merge(block, q, token);
        if (blocks_.packs)
          multiply_packed(chunk_.packed + before + token * stride, product, count, panels, ahead);
        else multiply_panels(product, count, panels, ahead);
        token += count;
      });
    }
  }

  const Chunk& chunk_;
  const Bank& bank_;
  const MergePlan<Scalar>& plan_;
  const MergeBlocks& blocks_;
  Index end_;
  Index begin_;
  Scalar* sums_;
  Scalar* scratch_;
};

/// Packs x for the tokens of a chunk in the order of the plan, a slice of inputs after the other.
template <class Scalar>
void pack_chunk(const MergeTokens<Scalar>& tokens, const TokenChunk& chunk, const Rows<const Scalar>& x,
                Index in_features, Index slice, Scalar* packed) {
  const Index slices = (in_features + slice - 1) / slice;
  parallel_ranges(slices, max_threads(), [&](Index begin, Index end, Index) {
    for (Index s = begin; s < end; ++s) {
      const Index inputs = (std::min)(slice, in_features - s * slice);
      Scalar* to = packed + s * chunk.tokens * whole_lines<Scalar>(slice);
      for (Index m = chunk.first_merge; m < chunk.end_merge; ++m) {
        tokens.for_sequences(chunk.begin, chunk.end, m, [&](Index row, Index count) {
          pack_rows(x.from(row).from_column(s * slice), count, inputs, to);
          to += count * whole_lines<Scalar>(inputs);
        });
      }
    }
  });
}

/// The whole product. x: tokens × in_features; y: tokens × out_features, not overlapping x.
template <class Scalar, class Storage>
void merged_product(const PanelBank<Scalar, const Storage>& bank, const MergePlan<Scalar>& plan,
                    std::span<const Index> offsets, Rows<const Scalar> x, Rows<Scalar> y,
                    const MergedProductMemory<Scalar>& memory, const Blocks& limits = machine_blocks()) {
  if (plan.num_merges() == 0) return;
  const MergeTokens<Scalar> tokens(plan, offsets);
  const MergeBlocks blocks =
      merge_blocks<Scalar>(bank.in_features, plan.num_merges(), offsets.back(), limits);
  const Index scratch_size = merged_product_scratch_size(bank, limits);
  for (TokenChunk range = tokens.chunk_from({}, blocks.tokens); range.tokens > 0;
       range = tokens.chunk_from(range.end, blocks.tokens)) {
    if (blocks.packs) pack_chunk(tokens, range, x, bank.in_features, blocks.inputs, memory.packed);
    const typename MergedProduct<Scalar, Storage>::Chunk chunk{bank,  plan, tokens,        limits, blocks,
                                                               range, x,    memory.packed, y};
    parallel_ranges(bank.num_panels(), memory.scratch.threads, [&](Index begin, Index end, Index thread) {
      MergedProduct<Scalar, Storage>(chunk, begin, end, memory.scratch.data + thread * scratch_size).run();
    });
  }
}

#define MEO_INSTANCES(instance, Scalar)                                                          \
  instance void merged_product(const PanelBank<Scalar, const Scalar>&, const MergePlan<Scalar>&, \
                               std::span<const Index>, Rows<const Scalar>, Rows<Scalar>,         \
                               const MergedProductMemory<Scalar>&, const Blocks&);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

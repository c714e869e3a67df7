#pragma once

/// The gradient of the experts through their merge: with dŴ_m = Σ dy_tᵀ x_t and db̂_m = Σ dy_t over the tokens
/// of merge m,
///
///     dW_i += Σ_m g_mi dŴ_m,   db_i += Σ_m g_mi db̂_m,   dg_mi = ⟨dŴ_m, W_i⟩ + ⟨db̂_m, b_i⟩.
///
/// dŴ is never whole in memory:
///
///     pack x                                               parallel
///     for each panel p                                     parallel
///       for each Q merges
///         for each block of rows of the panel
///           dŴ rows of the Q merges into scratch           while the experts' rows are on their way to L2
///           for each expert                                its rows are read and written once for all Q
///             dW_i += Σ_q g_qi dŴ_q, products with W_i
///
/// Sums over many tokens or many merges are formed in parts (sums.hpp).

#include <algorithm>
#include <array>
#include <span>

#include <meo/compiled.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/gradient_blocking.hpp>
#include <meo/kernels/parts/merge_tokens.hpp>
#include <meo/kernels/parts/outer_product.hpp>
#include <meo/kernels/parts/prefetch.hpp>
#include <meo/kernels/parts/spread.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/parallel.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Panels are summed up in at most so many chunks, a chunk by one thread, and then chunk by chunk: products
/// are the same for any number of threads.
inline constexpr Index max_product_chunks = 64;

inline Index product_chunks(Index num_panels) { return (std::min)(num_panels, max_product_chunks); }

template <class Scalar>
class MergedWeightGradient {
 public:
  using Bank = PanelBank<Scalar, const Scalar>;

  /// packed_x: tokens × padded_inputs, filled by pack.
  MergedWeightGradient(const Bank& bank, const PanelBank<Scalar>& gradients, const MergePlan<Scalar>& plan,
                       std::span<const Index> offsets, const Rows<const Scalar>& dy, Scalar* packed_x,
                       const Blocks& limits)
      : limits_(limits),
        bank_(bank),
        gradients_(gradients),
        plan_(plan),
        tokens_(plan, offsets),
        dy_(dy),
        packed_x_(packed_x) {}

  static Index scratch_size(const Bank& bank, Index merges, Index tokens, const Blocks& limits) {
    const Index rows =
        (std::min)(gradient_inputs<Scalar>(limits), bank.in_features) + (bank.has_bias ? 1 : 0);
    const Index sums = (std::min)(merges, limits.gradient_merges) + depth(tokens, limits);
    return (gradient_tokens<Scalar>(limits) + sums * rows) * columns;
  }

  /// Scalars of memory for the sums over parts of the merges.
  static Index partial_gradients_size(const Bank& bank, Index merges, const Blocks& limits) {
    return pairwise_depth(num_parts(merges, limits.serial_merges)) * bank.panel_stride();
  }

  Index input_tiles() const { return padded_inputs<Scalar>(bank_.in_features) / Tile<Scalar>::rows; }

  /// Tiles begin … end − 1 of all tokens' inputs.
  void pack(const Rows<const Scalar>& x, Index begin, Index end) const {
    const Index input = begin * Tile<Scalar>::rows;
    const Index inputs = (std::min)(end * Tile<Scalar>::rows, bank_.in_features) - input;
    for (Index m = 0; m < plan_.num_merges(); ++m) {
      for_stretches(m, [&](Index first, Index count) {
        pack_inputs(x, first, count, input, inputs, packed_inputs(first, count, input));
      });
    }
  }

  /// Panel p of all experts. products: of each term of each merge, added to; scratch: scratch_size scalars;
  /// partial_gradients: partial_gradients_size.
  void run(Index p, Sum<Scalar>* products, Scalar* scratch, Scalar* partial_gradients) const {
    PairwiseSum<Scalar> parts(bank_.panel_stride(), gradients_.panel(p, 0), partial_gradients);
    Index part_begin = 0;
    for (Block block{choose(0), p, parts.part()}; block.merges > 0;) {
      for (block.input = 0; block.input < bank_.in_features; block.input += block.inputs) {
        block.inputs = (std::min)(gradient_inputs<Scalar>(limits_), bank_.in_features - block.input);
        block.has_bias_row = bank_.has_bias && block.input == 0;
        Scalar* const merged = scratch + gradient_tokens<Scalar>(limits_) * columns;
        merged_gradients(block, scratch, merged);
        spread_to_experts(block, merged, products);
      }
      const Index next = block.first_merge + block.merges;
      if (next - part_begin >= limits_.serial_merges && next < plan_.num_merges()) {
        parts.next();
        std::fill_n(parts.part(), bank_.panel_stride(), Scalar(0));
        part_begin = next;
      }
      block = {choose(next), p, parts.part()};
    }
    parts.next();
    parts.finish();
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  /// Rows of one panel, for Q merges.
  struct Block : MergeRange {
    Index panel;
    Scalar* gradients;  ///< the panel of all experts' gradients, one after another
    Index input = 0;
    Index inputs = 0;
    bool has_bias_row = false;  ///< the first row is that of the biases

    Index rows() const { return inputs + (has_bias_row ? 1 : 0); }
  };

  /// Sums that are kept beside that of a merge of so many tokens: of parts of which any two that follow each
  /// other have more than serial_tokens.
  static Index depth(Index tokens, const Blocks& limits) {
    return pairwise_depth(2 * num_parts(tokens, serial_tokens<Scalar>(limits)));
  }

  Scalar* gradients_of(const Block& block, Index expert) const {
    return block.gradients + expert * bank_.panel_size();
  }

  /// Merges whose dy fits into scratch.
  MergeRange choose(Index first) const {
    return tokens_.choose(first, limits_.gradient_merges, gradient_tokens<Scalar>(limits_));
  }

  /// Tokens of a merge, few enough to be multiplied at a time.
  template <class Function>
  void for_stretches(Index merge, const Function& f) const {
    tokens_.for_stretches(merge, outer_product_tokens<Scalar>(limits_), f);
  }

  Scalar* packed_inputs(Index first_token, Index tokens, Index input) const {
    return packed_x_ + first_token * padded_inputs<Scalar>(bank_.in_features) + input * tokens;
  }

  /// The block's rows of [db̂; dŴᵀ] of all its merges.
  void merged_gradients(const Block& block, Scalar* packed_dy, Scalar* merged) const {
    const Rows<const Scalar> dy = dy_.from_column(block.panel * columns);
    const Index serial = serial_tokens<Scalar>(limits_);
    PrefetchQueue ahead = look_ahead(block);
    const Index size = block.rows() * columns;
    Scalar* const partial_sums = merged + block.merges * size;
    for (Index q = 0; q < block.merges; ++q, merged += size) {
      PairwiseSum<Scalar> parts(size, merged, partial_sums);
      Index stretches = 0, tokens = 0;  // of the part
      for_stretches(block.first_merge + q, [&](Index first, Index count) {
        if (stretches > 0 && tokens + count > serial) {
          parts.next();
          stretches = tokens = 0;
        }
        Scalar* const sum = parts.part();
        if (block.input == 0 || !block.tokens_fit)
          pack_columns(dy, first, count, bank_.valid_columns(block.panel), packed_dy);
        if (block.has_bias_row) column_sums(packed_dy, count, stretches > 0, sum);
        outer_product(packed_inputs(first, count, block.input), block.inputs, packed_dy, count, stretches > 0,
                      sum + (block.has_bias_row ? columns : 0), ahead);
        if (block.tokens_fit) packed_dy += count * columns;
        ++stretches;
        tokens += count;
      });
      parts.next();
      parts.finish();
    }
  }

  /// While dŴ is formed, the experts' rows that it will be spread to are fetched.
  PrefetchQueue look_ahead(const Block& block) const {
    PrefetchQueue ahead;
    const Index bytes = block.rows() * columns * static_cast<Index>(sizeof(Scalar));
    for_experts(block, [&](Index expert, std::span<const Selection> selections) {
      if (selections.empty()) return;
      ahead.add(bank_.panel(block.panel, expert) + first_value(block), bytes);
      ahead.add(gradients_of(block, expert) + first_value(block), bytes);
    });
    Index intervals = 0, stretches = 0;
    for (Index q = 0; q < block.merges; ++q) {
      for_stretches(block.first_merge + q, [&](Index, Index tokens) {
        intervals += tokens / prefetch_interval<Scalar>;
        ++stretches;
      });
    }
    const Index tiles = block.inputs / Tile<Scalar>::rows;
    ahead.spread(intervals * tiles, stretches * tiles);
    return ahead;
  }

  /// Where the block begins in a panel.
  Index first_value(const Block& block) const {
    return (block.input + (bank_.has_bias && !block.has_bias_row ? 1 : 0)) * columns;
  }

  /// The q-th merge of a block has the expert as its i-th.
  struct Selection {
    Index q;
    Index i;
  };

  /// Calls f(expert, selections) for all experts.
  template <class Function>
  void for_experts(const Block& block, const Function& f) const {
    std::array<Index, max_gradient_merges> next{};  // of a merge's experts, which ascend
    std::array<Selection, max_gradient_merges> selections;
    for (Index expert = 0; expert < bank_.num_experts; ++expert) {
      std::size_t count = 0;
      for (Index q = 0; q < block.merges; ++q) {
        Index& i = next[static_cast<std::size_t>(q)];
        const MergeTerms<Scalar> terms = plan_.terms(block.first_merge + q);
        if (i == terms.count || terms.experts[i] != expert) continue;
        selections[count++] = {q, i++};
      }
      f(expert, std::span<const Selection>(selections.data(), count));
    }
  }

  void spread_to_experts(const Block& block, const Scalar* merged, Sum<Scalar>* products) const {
    const Index size = block.rows() * columns;
    for_experts(block, [&](Index expert, std::span<const Selection> selections) {
      std::array<SpreadTerm<Scalar>, max_gradient_merges> terms;
      std::array<Scalar, max_gradient_merges> products_of_block;
      products_of_block.fill(Scalar(0));
      for (std::size_t s = 0; s < selections.size(); ++s) {
        const auto [q, i] = selections[s];
        terms[s] = {merged + q * size, plan_.terms(block.first_merge + q).weights[i], &products_of_block[s]};
      }
      spread(terms.data(), static_cast<Index>(selections.size()),
             bank_.panel(block.panel, expert) + first_value(block), size,
             gradients_of(block, expert) + first_value(block));
      for (std::size_t s = 0; s < selections.size(); ++s) {
        const auto [q, i] = selections[s];
        products[plan_.products_begin(block.first_merge + q) + i] +=
            static_cast<Sum<Scalar>>(products_of_block[s]);
      }
    });
  }

  const Blocks& limits_;
  const Bank& bank_;
  const PanelBank<Scalar>& gradients_;
  const MergePlan<Scalar>& plan_;
  MergeTokens<Scalar> tokens_;
  const Rows<const Scalar>& dy_;
  Scalar* packed_x_;
};

/// Scalars of scratch that merged_weight_gradient needs for each thread, for no more merges and tokens.
template <class Scalar>
Index merged_weight_gradient_scratch_size(const PanelBank<Scalar, const Scalar>& bank, Index merges,
                                          Index tokens, const Blocks& limits = {}) {
  return MergedWeightGradient<Scalar>::scratch_size(bank, merges, tokens, limits);
}

/// Scalars of memory that it needs for each thread beside scratch: one panel of all experts for each of few
/// sums over parts of the merges; none for a batch of one part.
template <class Scalar>
Index partial_gradients_size(const PanelBank<Scalar, const Scalar>& bank, Index merges,
                             const Blocks& limits = {}) {
  return MergedWeightGradient<Scalar>::partial_gradients_size(bank, merges, limits);
}

/// Memory of a merged_weight_gradient.
template <class Scalar>
struct MergedWeightGradientMemory {
  Sum<Scalar>* partial_products;  ///< product_chunks(panels) · terms of all merges
  Scalar* packed_x;               ///< tokens × padded_inputs(in_features)
  Scratch<Scalar> scratch;        ///< merged_weight_gradient_scratch_size
  Scalar* partial_gradients;      ///< scratch.threads times partial_gradients_size
};

/// Adds to the bank of gradients, and writes the gradient of every merge's gate weights, in the order of the
/// plan, to products (see MergePlan::products_begin).
template <class Scalar>
void merged_weight_gradient(const PanelBank<Scalar, const Scalar>& bank, const PanelBank<Scalar>& gradients,
                            const MergePlan<Scalar>& plan, std::span<const Index> offsets,
                            Rows<const Scalar> x, Rows<const Scalar> dy, Scalar* products,
                            const MergedWeightGradientMemory<Scalar>& memory, const Blocks& limits = {}) {
  const Index threads = memory.scratch.threads;
  const MergedWeightGradient<Scalar> gradient(bank, gradients, plan, offsets, dy, memory.packed_x, limits);
  parallel_ranges(gradient.input_tiles(), threads,
                  [&](Index begin, Index end, Index) { gradient.pack(x, begin, end); });
  const Index scratch_size =
      merged_weight_gradient_scratch_size(bank, plan.num_merges(), offsets.back(), limits);
  const Index partial_size = partial_gradients_size(bank, plan.num_merges(), limits);
  const Index pairs = plan.products_begin(plan.num_merges());
  const Index chunks = product_chunks(bank.num_panels());
  parallel_ranges(chunks, threads, [&](Index begin, Index end, Index thread) {
    for (Index chunk = begin; chunk < end; ++chunk) {
      Sum<Scalar>* const chunk_products = memory.partial_products + chunk * pairs;
      std::fill_n(chunk_products, pairs, Sum<Scalar>(0));
      const Index last = bank.num_panels() * (chunk + 1) / chunks;
      for (Index p = bank.num_panels() * chunk / chunks; p < last; ++p) {
        gradient.run(p, chunk_products, memory.scratch.data + thread * scratch_size,
                     memory.partial_gradients + thread * partial_size);
      }
    }
  });
  for (Index i = 0; i < pairs; ++i) {
    Sum<Scalar> product(0);
    for (Index chunk = 0; chunk < chunks; ++chunk) product += memory.partial_products[chunk * pairs + i];
    products[i] = static_cast<Scalar>(product);
  }
}

#define MEO_INSTANCES(instance, Scalar)                                                                      \
  instance void merged_weight_gradient(const PanelBank<Scalar, const Scalar>&, const PanelBank<Scalar>&,     \
                                       const MergePlan<Scalar>&, std::span<const Index>, Rows<const Scalar>, \
                                       Rows<const Scalar>, Scalar*,                                          \
                                       const MergedWeightGradientMemory<Scalar>&, const Blocks&);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

#pragma once

/// The gradient of the experts through their merge: with dŴ_m = Σ dy_tᵀ x_t and db̂_m = Σ dy_t over the tokens
/// of merge m,
///
///     dW_i += Σ_m g_mi dŴ_m,   db_i += Σ_m g_mi db̂_m,   dg_mi = ⟨dŴ_m, W_i⟩ + ⟨db̂_m, b_i⟩.
///
/// dŴ is never whole in memory:
///
///     for each panel p                                     parallel
///       for each block of Q merges and rows of the panel
///         dŴ rows of the Q merges into scratch             stays in L2
///         for each strip of these rows, for each expert    an expert's rows are read and written once for
///         all Q
///           dW_i += Σ_q g_qi dŴ_q, products with W_i

#include <algorithm>
#include <array>
#include <span>

#include <meo/kernels/gradient_blocking.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/outer_product.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/spread.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// Q at most, however small the experts are.
inline constexpr Index max_gradient_merges = 32;

/// Rows of dŴ that are spread at a time: with eight merges they fill half of a small L1.
inline constexpr Index spread_strip_rows = 32;

/// Panels are summed up in at most so many chunks, a chunk by one thread, and then chunk by chunk: products
/// are the same for any number of threads.
inline constexpr Index max_product_chunks = 64;

inline Index product_chunks(Index num_panels) { return std::min(num_panels, max_product_chunks); }

template <class Scalar>
class MergedWeightGradient {
 public:
  using Bank = PanelBank<Scalar, const Scalar>;

  MergedWeightGradient(const Bank& bank, const PanelBank<Scalar>& gradients, const MergePlan<Scalar>& plan,
                       std::span<const Index> offsets, const GatheredRows<Scalar>& x,
                       const GatheredRows<Scalar>& dy)
      : bank_(bank),
        gradients_(gradients),
        plan_(plan),
        blocks_(blocks(bank, plan.num_merges())),
        offsets_(offsets),
        x_(x),
        dy_(dy) {}

  static Index scratch_size(const Bank& bank, Index merges) {
    const GradientBlocks all = blocks(bank, merges);
    return packed_size + all.merges * all.size * columns;
  }

  /// Panel p of all experts. products: merges × K, added to; scratch: scratch_size scalars.
  void run(Index p, Scalar* products, Scalar* scratch) const {
    for (Index first = 0; first < plan_.num_merges(); first += blocks_.merges) {
      for (Index row = 0; row < bank_.depth(); row += blocks_.size) {
        const Block block{p, first, std::min(blocks_.merges, plan_.num_merges() - first), row,
                          std::min(blocks_.size, bank_.depth() - row)};
        Scalar* const merged = scratch + packed_size;
        for (Index q = 0; q < block.merges; ++q)
          merged_gradient(block, q, scratch, merged + q * block.rows * columns);
        for (Index strip = 0; strip < block.rows; strip += spread_strip_rows)
          spread_strip(block, strip, merged, products);
      }
    }
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;
  static constexpr Index tokens = outer_product_tokens<Scalar>();
  static constexpr Index packed_size = tokens * columns;

  /// Rows of one panel, for Q merges.
  struct Block {
    Index panel;
    Index first_merge;
    Index merges;
    Index row;
    Index rows;
  };

  static GradientBlocks blocks(const Bank& bank, Index merges) {
    return gradient_blocks<Scalar>(columns, spread_strip_rows, bank.depth(),
                                   std::min(merges, max_gradient_merges));
  }

  /// The block's rows of [db̂; dŴᵀ] of its q-th merge.
  void merged_gradient(const Block& block, Index q, Scalar* packed, Scalar* merged) const {
    const Index bias_rows = block.row == 0 && bank_.has_bias ? 1 : 0;
    const Index first_input = block.row == 0 ? 0 : block.row - (bank_.has_bias ? 1 : 0);
    GatheredRows<Scalar> dy = dy_;
    dy.data += block.panel * columns;
    const Index m = block.first_merge + q;
    bool add = false;
    for (Index i = plan_.begin(m); i < plan_.begin(m + 1); ++i) {
      const auto b = static_cast<std::size_t>(plan_.sequence(i));
      for (Index first = offsets_[b]; first < offsets_[b + 1]; first += tokens) {
        const Index count = std::min(tokens, offsets_[b + 1] - first);
        pack_columns(dy, first, count, bank_.valid_columns(block.panel), packed);
        if (bias_rows > 0) column_sums(packed, count, add, merged);
        outer_product(x_, first, first_input, block.rows - bias_rows, packed, count, add,
                      merged + bias_rows * columns);
        add = true;
      }
    }
  }

  void spread_strip(const Block& block, Index strip, const Scalar* merged, Scalar* products) const {
    const Index size = std::min(spread_strip_rows, block.rows - strip) * columns;
    const Index at = (block.row + strip) * columns;
    std::array<Index, max_gradient_merges> next{};  // of a merge's experts, which ascend
    for (Index expert = 0; expert < bank_.num_experts; ++expert) {
      std::array<SpreadTerm<Scalar>, max_gradient_merges> terms;
      Index count = 0;
      for (Index q = 0; q < block.merges; ++q) {
        const MergeTerms<Scalar> selected = plan_.terms(block.first_merge + q);
        Index& i = next[static_cast<std::size_t>(q)];
        if (i == plan_.top_k || selected.experts[i] != expert) continue;
        terms[static_cast<std::size_t>(count++)] = {merged + (q * block.rows + strip) * columns,
                                                    selected.weights[i],
                                                    products + (block.first_merge + q) * plan_.top_k + i};
        ++i;
      }
      spread(terms.data(), count, bank_.panel(block.panel, expert) + at, size,
             gradients_.panel(block.panel, expert) + at);
    }
  }

  const Bank& bank_;
  const PanelBank<Scalar>& gradients_;
  const MergePlan<Scalar>& plan_;
  GradientBlocks blocks_;
  std::span<const Index> offsets_;
  GatheredRows<Scalar> x_;
  GatheredRows<Scalar> dy_;
};

/// Scalars of scratch that merged_weight_gradient needs for each thread.
template <class Scalar>
Index merged_weight_gradient_scratch_size(const PanelBank<Scalar, const Scalar>& bank, Index merges) {
  return MergedWeightGradient<Scalar>::scratch_size(bank, merges);
}

/// Adds to the bank of gradients, and writes the gradient of every merge's gate weights, in the order of the
/// plan, to products (merges × K). partial_products: product_chunks(panels) · merges · K scalars; scratch:
/// `threads` times merged_weight_gradient_scratch_size.
template <class Scalar>
void merged_weight_gradient(const PanelBank<Scalar, const Scalar>& bank, const PanelBank<Scalar>& gradients,
                            const MergePlan<Scalar>& plan, std::span<const Index> offsets,
                            const GatheredRows<Scalar>& x, const GatheredRows<Scalar>& dy, Scalar* products,
                            Scalar* partial_products, Scalar* scratch, Index threads) {
  const MergedWeightGradient<Scalar> gradient(bank, gradients, plan, offsets, x, dy);
  const Index scratch_size = merged_weight_gradient_scratch_size(bank, plan.num_merges());
  const Index pairs = plan.num_merges() * plan.top_k;
  const Index chunks = product_chunks(bank.num_panels());
  parallel_ranges(chunks, threads, [&](Index begin, Index end, Index thread) {
    for (Index chunk = begin; chunk < end; ++chunk) {
      Scalar* const chunk_products = partial_products + chunk * pairs;
      std::fill_n(chunk_products, pairs, Scalar(0));
      const Index last = bank.num_panels() * (chunk + 1) / chunks;
      for (Index p = bank.num_panels() * chunk / chunks; p < last; ++p)
        gradient.run(p, chunk_products, scratch + thread * scratch_size);
    }
  });
  std::fill_n(products, pairs, Scalar(0));
  for (Index chunk = 0; chunk < chunks; ++chunk) {
    for (Index i = 0; i < pairs; ++i) products[i] += partial_products[chunk * pairs + i];
  }
}

}  // namespace meo::detail

#pragma once

/// A random batch for merged_product, its result, and what the result must be to the bit.

#include <utility>
#include <vector>

#include <meo/kernels/blocks.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/merged_product.hpp>
#include <meo/types.hpp>

#include "kernels/chain.hpp"
#include "kernels/guarded_matrix.hpp"
#include "kernels/random_experts.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace meo::test {

struct MergedShape {
  Index num_experts;
  Index top_k;
  Index in_features;
  Index out_features;
  bool has_bias;
};

template <class S, class Storage = S>
struct MergedProblem {
  MergedProblem(Generator& rng, const MergedShape& shape, const std::vector<Index>& lengths)
      : experts(rng, shape.num_experts, shape.in_features, shape.out_features, shape.has_bias),
        selections(random_selections<S>(rng, Index(lengths.size()), shape.num_experts, shape.top_k)),
        offsets(offsets_of(lengths)),
        x(random_normal<S>(rng, offsets.back(), shape.in_features)) {}

  RandomExperts<S, Storage> experts;
  Selections<S> selections;
  std::vector<Index> offsets;
  Matrix<S> x;

  Index sequences() const { return Index(offsets.size()) - 1; }
  Index begin(Index b) const { return offsets[std::size_t(b)]; }
  Index length(Index b) const { return begin(b + 1) - begin(b); }

  /// merged_product's y, computed amid guards.
  Matrix<S> computed(Index threads = 1, const detail::Blocks& limits = detail::machine_blocks()) const {
    const auto bank = experts.bank.panels();
    detail::MergePlan<S> plan;
    detail::plan_merges<S>(selections.pairs(), offsets, plan);
    GuardedMatrix<S> input(x), y(x.rows(), bank.out_features),
        packed(1, detail::merged_product_packed_size<S>(bank, x.rows(), limits)),
        scratch(1, threads * detail::merged_product_scratch_size<S>(bank, limits));
    detail::merged_product<S>(bank, plan, offsets, input.inputs(), y.rows(),
                              {packed.data(), {scratch.data(), threads}}, limits);
    CHECK(y.guards_intact());
    CHECK(packed.guards_intact());
    CHECK(scratch.guards_intact());
    return y.values();
  }

  /// The merged weight and bias of sequence b.
  std::pair<Matrix<S>, Vector<S>> merged_expert(Index b) const {
    std::vector<Matrix<S>> weights;
    std::vector<Vector<S>> biases;
    std::vector<S> gates;
    for (const auto& [expert, gate] : selections.ascending(b)) {
      weights.push_back(experts.weights[std::size_t(expert)]);
      biases.push_back(experts.biases[std::size_t(expert)]);
      gates.push_back(gate);
    }
    return {chain_merge(weights, gates), chain_merge(biases, gates)};
  }

  /// y as each sequence's chains of multiply-adds with its merged expert.
  Matrix<S> expected() const {
    Matrix<S> y(x.rows(), experts.bank.out_features());
    for (Index b = 0; b < sequences(); ++b) {
      const auto [weight, bias] = merged_expert(b);
      y.middleRows(begin(b), length(b)) =
          chain_product<S>(x.middleRows(begin(b), length(b)), weight, bias_rows(bias, length(b), y.cols()));
    }
    return y;
  }
};

/// Every edge of tiles, panels and groups of merges, and with tiny blocks of the blocks of depth.
template <class S, class Storage = S>
void check_merged_products(const detail::Blocks& limits = detail::machine_blocks(),
                           const std::vector<Index>& top_ks = {1, 2, 9, 21}) {
  constexpr Index columns = detail::Tile<S>::columns, tile_rows = detail::Tile<S>::rows;
  Generator rng(12);
  for (const bool has_bias : {false, true}) {
    for (const Index top_k : top_ks) {
      for (const Index out_features : {Index{1}, columns - 1, columns, 2 * columns + 3}) {
        for (Index in_features = 1; in_features <= 16; ++in_features) {
          const MergedShape shape{21, top_k, in_features, out_features, has_bias};
          for (const auto& lengths : std::vector<std::vector<Index>>{
                   {}, {0}, {1}, {2 * tile_rows + 1}, {2, 2}, {3, 0, 1, tile_rows + 1, 5, 2}}) {
            INFO("K " << top_k << ", D " << in_features << ", F " << out_features << ", bias " << has_bias
                      << ", " << lengths.size() << " sequences");
            const MergedProblem<S, Storage> problem(rng, shape, lengths);
            CHECK(bit_difference(problem.computed(1, limits), problem.expected()) == "");
          }
        }
      }
    }
  }
}

}  // namespace meo::test

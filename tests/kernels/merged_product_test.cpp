#include <vector>

#include <meo/experts/expert_bank.hpp>
#include <meo/kernels/dense_product.hpp>
#include <meo/kernels/merged_product.hpp>

#include "kernels/merged_problem.hpp"
#include "kernels/threads.hpp"
#include "kernels/tiny_blocks.hpp"
#include "support/block_sizes.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/types.hpp"

namespace {
namespace merged_product_test {

using namespace meo;
using namespace meo::detail;
using namespace meo::test;

TEMPLATE_TEST_CASE("merged_product has the bits of the plain chains, for all shapes around the tile",
                   "[merged_product]", float, double, long double) {
  check_merged_products<TestType>();
}

TEMPLATE_TEST_CASE("merged_product computes in another scalar than it stores", "[merged_product]",
                   (Types<double, float>), (Types<float, Eigen::bfloat16>), (Types<float, Eigen::half>),
                   (Types<float, std::int8_t>), (Types<long double, float>)) {
  check_merged_products<typename TestType::Scalar, typename TestType::Storage>(machine_blocks(), {2, 9});
}

// Deeper than a strip of 20 experts, so that a merge is made of several.
constexpr MergedShape deep{21, 20, 700, 40, true};
const std::vector<Index> ragged{3, 0, 1, 8, 2, 14};

TEMPLATE_TEST_CASE("a single expert is weighted as well", "[merged_product]", float, double, long double) {
  using S = TestType;
  Generator rng(37);
  MergedProblem<S> problem(rng, {3, 1, 7, 20, true}, {2, 3});
  problem.selections = {1, {2, 2}, {S(.5), S(.25)}};
  CHECK(bit_difference(problem.computed(), problem.expected()) == "");
}

TEMPLATE_TEST_CASE("merged_product is within the rounding of a merge and a product", "[merged_product]",
                   float, double, long double) {
  using S = TestType;
  Generator rng(13);
  const MergedProblem<S> problem(rng, deep, ragged);
  const Matrix<S> y = problem.computed();
  for (Index b = 0; b < problem.sequences(); ++b) {
    Matrix<Wide<S>> weight = Matrix<Wide<S>>::Zero(deep.out_features, deep.in_features), magnitude = weight;
    Vector<Wide<S>> bias = Vector<Wide<S>>::Zero(deep.out_features), bias_magnitude = bias;
    for (const auto& [expert, gate] : problem.selections.ascending(b)) {
      const Matrix<Wide<S>> term =
          Wide<S>(gate) * problem.experts.weights[std::size_t(expert)].template cast<Wide<S>>();
      const Vector<Wide<S>> bias_term =
          Wide<S>(gate) * problem.experts.biases[std::size_t(expert)].template cast<Wide<S>>();
      weight += term;
      magnitude += term.cwiseAbs();
      bias += bias_term;
      bias_magnitude += bias_term.cwiseAbs();
    }
    const Matrix<Wide<S>> x =
        problem.x.middleRows(problem.begin(b), problem.length(b)).template cast<Wide<S>>();
    Bounded<S> expected(x.rows(), deep.out_features);
    expected.value = times_transposed(x, weight).rowwise() + bias.transpose();
    expected.error = gamma<S>(deep.top_k + deep.in_features + 1) *
                     (times_transposed(x.cwiseAbs(), magnitude).rowwise() + bias_magnitude.transpose());
    CHECK(disagreement(y.middleRows(problem.begin(b), problem.length(b)), expected) == "");
  }
}

TEMPLATE_TEST_CASE("merged_product is dense_product with the merged experts, to the bit", "[merged_product]",
                   float, double, long double) {
  using S = TestType;
  Generator rng(14);
  const MergedProblem<S> problem(rng, deep, ragged);
  const Matrix<S> y = problem.computed();
  for (Index b = 0; b < problem.sequences(); ++b) {
    const auto [weight, bias] = problem.merged_expert(b);
    ExpertBank<S> merged(1, deep.in_features, deep.out_features, true);
    merged.set_weight(0, weight);
    merged.set_bias(0, bias);
    Matrix<S> expected(problem.length(b), deep.out_features);
    dense_product<S>(merged.panels(), 0,
                     {problem.x.data() + problem.begin(b) * deep.in_features, deep.in_features},
                     expected.rows(), {expected.data(), deep.out_features});
    CHECK(bit_difference(y.middleRows(problem.begin(b), problem.length(b)), expected) == "");
  }
}

TEMPLATE_TEST_CASE("slices of inputs and chunks of tokens change no bit", "[merged_product]", float, double) {
  using S = TestType;
  Generator rng(15);
  const MergedShape shape{5, 2, 2 * Blocks{}.depth - 1, Tile<S>::columns + 1, true};
  const std::vector<Index> lengths{3, 2100, 40, 0, 70};
  const MergeBlocks blocks = merge_blocks<S>(shape.in_features, 4, 2213, machine_blocks());
  REQUIRE(blocks.inputs < shape.in_features);
  REQUIRE(blocks.tokens < 2100);
  const MergedProblem<S> problem(rng, shape, lengths);
  CHECK(bit_difference(problem.computed(), problem.expected()) == "");
}

TEMPLATE_TEST_CASE("a single merge, which reads x where it lies, has the same bits", "[merged_product]",
                   float, double) {
  using S = TestType;
  Generator rng(16);
  const MergedShape shape{5, 2, 2 * Blocks{}.depth - 1, 2 * Tile<S>::columns + 1, true};
  for (const Index length :
       {Index{1}, Index{Tile<S>::rows} + 1, most_merged_tokens<S>(machine_blocks()) + 1}) {
    INFO(length << " tokens");
    const MergeBlocks blocks = merge_blocks<S>(shape.in_features, 1, length, machine_blocks());
    REQUIRE(!blocks.packs);
    REQUIRE(blocks.inputs < shape.in_features);
    const MergedProblem<S> problem(rng, shape, {length});
    CHECK(bit_difference(problem.computed(), problem.expected()) == "");
  }
}

TEMPLATE_TEST_CASE("more merges than are formed at a time change no bit", "[merged_product]", float, double) {
  using S = TestType;
  Generator rng(37);
  // The whole of the experts: all merges have the same; beyond 8 they go strip by strip.
  const auto [num_experts, top_k] = GENERATE(table<Index, Index>({{6, 3}, {6, 6}, {20, 11}, {20, 20}}));
  for (const Index in_features : {20, 400}) {
    INFO(top_k << " of " << num_experts << " experts, " << in_features << " inputs");
    const MergedProblem<S> problem(rng, {num_experts, top_k, in_features, 40, false},
                                   std::vector<Index>(39, 5));
    const Blocks limits;
    const MergeBlocks blocks = merge_blocks<S>(in_features, 39, 39 * 5, limits);
    REQUIRE(blocks.merges < 39);
    if (top_k > merge_terms)
      REQUIRE((blocks.inputs > group_strip_rows<S>(top_k, blocks.merges, limits)) == (in_features == 400));
    CHECK(bit_difference(problem.computed(1, limits), problem.expected()) == "");
  }
}

TEMPLATE_TEST_CASE("a merge whose experts alone differ from the others' is told from them, at any place",
                   "[merged_product]", float, double) {
  using S = TestType;
  Generator rng(38);
  constexpr Index most = merges_beyond_blocks();
  for (Index merges = 2; merges <= most; ++merges) {
    // The plan puts selections in ascending order: the other comes first, or last.
    for (const bool first : {true, false}) {
      INFO(merges << " merges, of which the " << (first ? "first" : "last") << " has other experts");
      MergedProblem<S> problem(rng, {4, 2, 5, 7, false},
                               std::vector<Index>(static_cast<std::size_t>(merges), 1));
      const std::size_t other = rng() % static_cast<std::size_t>(merges);
      for (std::size_t m = 0; m < static_cast<std::size_t>(merges); ++m) {
        problem.selections.experts[2 * m] = 1;
        problem.selections.experts[2 * m + 1] = 2;
      }
      problem.selections.experts[2 * other] = first ? 0 : 3;
      CHECK(bit_difference(problem.computed(), problem.expected()) == "");
    }
  }
}

TEMPLATE_TEST_CASE("sizes beyond every block change no bit of a merged product", "[merged_product]", float,
                   double) {
  using S = TestType;
  Generator rng(39);
  const auto check = [&](Index inputs, Index outputs, Index experts, Index top_k,
                         const std::vector<Index>& lengths) {
    INFO(inputs << " inputs, " << outputs << " outputs, K " << top_k << ", " << lengths.size()
                << " sequences");
    const MergedProblem<S> problem(rng, {experts, top_k, inputs, outputs, true}, lengths);
    CHECK(bit_difference(problem.computed(), problem.expected()) == "");
  };
  check(3, outputs_beyond_blocks<S>(), 3, 2, {1, 2});
  check(inputs_beyond_blocks<S>(), 3, 3, 2, {1, 2});
  check(3, 5, experts_beyond_blocks(), experts_beyond_blocks() - 1, {1, 2});
  check(3, 5, 7, 3, std::vector<Index>(static_cast<std::size_t>(merges_beyond_blocks()), 2));
  check(3, 5, 3, 2, {tokens_beyond_blocks<S>(), 1});
  check(Blocks{}.depth, 3, 3, 2, {1, tokens_beyond_chunks<S>(Blocks{}.depth), 1});
}

TEMPLATE_TEST_CASE("a thread's scratch has room for every block and is at most 2 MiB", "[merged_product]",
                   float, double, long double) {
  using S = TestType;
  constexpr Index columns = Tile<S>::columns;
  for (const Blocks& limits : {Blocks{}, machine_blocks(), tiny_blocks<S>()}) {
    for (const Index in_features : {1, 100, 768, 5000}) {
      const PanelBank<S> bank{nullptr, 4, in_features, 100, true};
      const Index size = merged_product_scratch_size<S>(bank, limits);
      CHECK(size * Index(sizeof(S)) <= max_scratch_bytes);
      for (Index merges = 1; merges <= 40; ++merges) {
        for (const Index tokens : {merges, 3 * merges, 100 * merges}) {
          INFO(in_features << " inputs, " << merges << " merges, " << tokens << " tokens");
          const MergeBlocks blocks = merge_blocks<S>(in_features, merges, tokens, limits);
          CHECK(size >= blocks.group * blocks.tokens * columns +
                            blocks.panels * blocks.merges * merged_rows<S>(blocks.inputs) * columns);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("memory for packed rows has room for every chunk, and no less for more tokens",
                   "[merged_product]", float, double, long double) {
  using S = TestType;
  for (const Blocks& limits : {Blocks{}, machine_blocks(), tiny_blocks<S>()}) {
    for (const Index in_features : {1, 100, 768}) {
      const PanelBank<S> bank{nullptr, 4, in_features, 100, true};
      Index smaller = 0;
      for (Index tokens = 0; tokens <= 4000; tokens += tokens < 20 ? 1 : 7) {
        const Index size = merged_product_packed_size<S>(bank, tokens, limits);
        const MergeBlocks blocks = merge_blocks<S>(in_features, 2, tokens, limits);
        if (size < smaller ||
            (tokens > 0 && size < packed_rows_size<S>(blocks.tokens, in_features, blocks.inputs)))
          FAIL(in_features << " inputs, " << tokens << " tokens: " << size << " scalars");
        smaller = size;
      }
      CHECK(smaller > 0);
    }
  }
}

TEMPLATE_TEST_CASE("no bit of a merged product depends on the number of threads", "[merged_product]", float,
                   double, long double) {
  using S = TestType;
  Generator rng(16);
  const MergedProblem<S> problem(rng, {21, 9, 50, 5 * Tile<S>::columns + 3, true}, ragged);
  const Matrix<S> expected = problem.expected();
  with_threads([&](Index threads) {
    INFO(threads << " threads");
    CHECK(bit_difference(problem.computed(threads), expected) == "");
  });
}

TEMPLATE_TEST_CASE("a sequence has the same bits alone as in a batch", "[merged_product]", float, double) {
  using S = TestType;
  Generator rng(17);
  const MergedProblem<S> batch(rng, {6, 3, 30, 40, true}, ragged);
  const Matrix<S> y = batch.computed();
  for (Index b = 0; b < batch.sequences(); ++b) {
    MergedProblem<S> alone = batch;
    alone.offsets = {0, batch.length(b)};
    alone.x = batch.x.middleRows(batch.begin(b), batch.length(b));
    alone.selections = {3, {}, {}};
    for (const auto& [expert, weight] : batch.selections.ascending(b)) {
      alone.selections.experts.push_back(expert);
      alone.selections.weights.push_back(weight);
    }
    CHECK(bit_difference(alone.computed(), Matrix<S>(y.middleRows(batch.begin(b), batch.length(b)))) == "");
  }
}

TEMPLATE_TEST_CASE("sequences that share a merge have the bits of merges of their own", "[merged_product]",
                   float, double) {
  using S = TestType;
  Generator rng(18);
  MergedProblem<S> problem(rng, {6, 3, 30, 40, true}, ragged);
  for (const std::size_t b : {2U, 5U}) {
    for (std::size_t i = 0; i < 3; ++i) {
      problem.selections.experts[3 * b + i] = problem.selections.experts[i];
      problem.selections.weights[3 * b + i] = problem.selections.weights[i];
    }
  }
  CHECK(bit_difference(problem.computed(), problem.expected()) == "");
}

TEMPLATE_TEST_CASE("an expert that nobody selects is not read", "[merged_product]", float, double) {
  using S = TestType;
  Generator rng(19);
  MergedProblem<S> problem(rng, {4, 2, 7, 20, true}, {2, 3});
  problem.selections = {2, {3, 0, 0, 2}, {S(.5), S(.5), S(.25), S(.75)}};
  problem.experts.bank.set_weight(1, Matrix<S>::Constant(20, 7, GuardedMatrix<S>::nan));
  problem.experts.bank.set_bias(1, Vector<S>::Constant(20, GuardedMatrix<S>::nan));
  CHECK(bit_difference(problem.computed(), problem.expected()) == "");
}

}  // namespace merged_product_test
}  // namespace

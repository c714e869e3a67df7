// Built as a program of its own with MEO_TINY_BLOCKS, so that two merges and five rows of a panel make a
// block.

#include <vector>

#include <meo/kernels/dense_product.hpp>
#include <meo/kernels/merged_product.hpp>
#include <meo/layers/meo_layer.hpp>

#include "kernels/chain.hpp"
#include "kernels/dispatched_problem.hpp"
#include "kernels/guarded_matrix.hpp"
#include "kernels/merged_problem.hpp"
#include "kernels/random_experts.hpp"
#include "reference/sweeps.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {

using namespace meo;
using namespace meo::test;

TEST_CASE("blocks are tiny in this program", "[tiny_blocks]") {
  const detail::MergeBlocks blocks = detail::merge_blocks<float>(100, 100, 100);
  REQUIRE(blocks.merges == 2);
  REQUIRE(blocks.depth == 5);
  REQUIRE(blocks.tokens == 7);
  const detail::DenseBlocks dense = detail::dense_blocks<float>(100, 100);
  REQUIRE(dense.depth == 5);
  REQUIRE(dense.rows == 7);
}

TEMPLATE_TEST_CASE("merged_product has the bits of the plain chains at every edge of its blocks",
                   "[tiny_blocks]", float, double, long double) {
  check_merged_products<TestType>();
}

TEST_CASE("merged_product computes in another scalar than it stores, block by block", "[tiny_blocks]") {
  check_merged_products<double, float>();
}

TEMPLATE_TEST_CASE("dense_product has the bits of the plain chains at every edge of its blocks",
                   "[tiny_blocks]", float, double, long double) {
  using S = TestType;
  constexpr Index columns = detail::Tile<S>::columns;
  Generator rng(19);
  for (const Index in_features : {1, 4, 5, 6, 10, 11, 23}) {
    for (const Index out_features : {Index{1}, columns, 5 * columns + 3}) {
      for (const bool has_bias : {false, true}) {
        const RandomExperts<S> experts(rng, 2, in_features, out_features, has_bias);
        for (const Index rows : {1, 2, 6, 7, 8, 14, 15, 24}) {
          for (const bool add : {false, true}) {
            INFO("T " << rows << ", D " << in_features << ", F " << out_features << ", bias " << has_bias
                      << ", add " << add);
            const Matrix<S> values = random_normal<S>(rng, rows, in_features);
            const Matrix<S> before = random_normal<S>(rng, rows, out_features);
            GuardedMatrix<S> x(values), y(before);
            detail::dense_product(experts.bank.panels(), 1, x.data(), x.stride(), rows, y.data(), y.stride(),
                                  add);
            const Matrix<S> starts = add ? before : bias_rows(experts.biases[1], rows, out_features);
            CHECK(bit_difference(y.values(), chain_product(values, experts.weights[1], starts)) == "");
            CHECK(y.guards_intact());
          }
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("dispatched_product has the bits of the plain chains with more panels than go together",
                   "[tiny_blocks]", float, double, long double) {
  using S = TestType;
  Generator rng(18);
  for (const Index panels : {4, 5, 8, 9}) {
    for (const Index tokens : {1, 3, 40}) {
      INFO(panels << " panels, T " << tokens);
      const DispatchedProblem<S> problem(rng, tokens, 23, panels * detail::Tile<S>::columns - 1, true, 5, 2);
      CHECK(bit_difference(problem.computed(), problem.expected()) == "");
    }
  }
}

TEMPLATE_TEST_CASE("MeoLayer computes what the reference does, block by block", "[tiny_blocks]",
                   (MeoLayer<float>), (MeoLayer<double, 4>), (MeoLayer<long double>)) {
  reference::check_all_options<TestType>({3, 6});
}

// The problem's experts in a layer: y must have the bits of the plain chains with the layer's own routing.
TEMPLATE_TEST_CASE("MeoLayer has the bits of the plain chains, block by block", "[tiny_blocks]", float,
                   double) {
  using S = TestType;
  Generator rng(20);
  for (const Index in_features : {4, 5, 6, 9, 10, 11, 23}) {
    for (const bool has_bias : {false, true}) {
      const std::vector<Index> lengths{3, 1, 0, 8, 2};
      MergedProblem<S> problem(rng, {5, 3, in_features, 35, has_bias}, lengths);
      LayerOptions options;
      options.in_features = in_features;
      options.out_features = 35;
      options.num_experts = 5;
      options.top_k = 3;
      options.bias = has_bias;
      options.merge_order = MergeOrder::merge_first;
      MeoLayer<S> layer(options);
      layer.gate().set_weight(random_normal<S>(rng, in_features, 5));
      for (Index e = 0; e < 5; ++e) {
        layer.set_weight(e, problem.experts.weights[std::size_t(e)]);
        if (has_bias) layer.set_bias(e, problem.experts.biases[std::size_t(e)]);
      }
      const auto output = layer.forward(problem.x, Sequences::from_lengths(lengths));
      problem.selections = {3, output.routing.experts, output.routing.weights};
      CHECK(bit_difference(output.y, problem.expected()) == "");
    }
  }
}

}  // namespace

// What a block with one router computes, by plain arithmetic, of experts that are whole blocks (Mixtral) and
// of experts that are merged (SMEAR), with an activation and with none: factors of low rank.

#include <utility>
#include <vector>

#include <meo/experts/activation.hpp>
#include <meo/experts/linear.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/training/parameters.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace block_forms_test {

using namespace meo;
using namespace meo::test;

using Moe = MoeLayer<double>;
using Meo = MeoLayer<double>;

constexpr Index features = 7, num_experts = 4;
const Sequences batch = Sequences::from_lengths({3, 1, 4});

FeedForwardOptions block_options(Index hidden_features, Index top_k) {
  return {.features = features,
          .hidden_features = hidden_features,
          .num_experts = num_experts,
          .top_k = top_k,
          .bias = false,
          .shared_gate = true};
}

/// Σ g_i W_i.
template <class Layer>
Matrix<double> merged_weight(const Layer& layer, const Vector<double>& gates) {
  Matrix<double> sum = gates(0) * layer.weight(0);
  for (Index e = 1; e < num_experts; ++e) sum += gates(e) * layer.weight(e);
  return sum;
}

TEST_CASE("one router for a block: vanilla combines blocks, merged is the block of merged weights",
          "[feed_forward]") {
  Generator rng(541);
  const auto gelu = [](double value) { return Gelu()(value); };
  for (const Index top_k : {1, 2, 4}) {
    INFO("K " << top_k);
    FeedForwardOptions options = block_options(9, top_k);
    options.gated = true;
    FeedForward<Moe> vanilla(options);
    FeedForward<Meo> merged(options);
    vanilla.initialize(rng);
    copy_values(parameters(vanilla), parameters(merged));
    const Matrix<double> x = random_normal<double>(rng, batch.tokens(), features);
    const auto of_vanilla = vanilla.forward(x, batch);
    const auto of_merged = merged.forward(x, batch);
    const Matrix<double> gates = of_vanilla.up.dense();
    CHECK(bit_difference(of_merged.up.dense(), gates) == "");

    const auto block = [&](Index b, const Vector<double>& weights) -> Matrix<double> {
      const auto rows = x.middleRows(batch.begin(b), batch.length(b));
      const Matrix<double> g = rows * merged_weight(vanilla.up(), weights).transpose(),
                           u = rows * merged_weight(vanilla.gate_up(), weights).transpose();
      return g.unaryExpr(gelu).cwiseProduct(u) * merged_weight(vanilla.down(), weights).transpose();
    };
    Matrix<double> combined = Matrix<double>::Zero(x.rows(), features), one_block = combined;
    for (Index b = 0; b < batch.size(); ++b) {
      for (Index e = 0; e < num_experts; ++e) {
        combined.middleRows(batch.begin(b), batch.length(b)) +=
            gates(b, e) * block(b, Vector<double>::Unit(num_experts, e));
      }
      one_block.middleRows(batch.begin(b), batch.length(b)) = block(b, gates.row(b).transpose());
    }
    CHECK(disagreement_in_max_norm(of_vanilla.y, combined, 1e-14) == "");
    CHECK(disagreement_in_max_norm(of_merged.y, one_block, 1e-14) == "");
    // Two functions, but for a single expert of weight 1.
    const bool are_one = disagreement_in_max_norm(of_merged.y, combined, 0.01) == "";
    CHECK(are_one == (top_k == 1));
  }
}

/// Factors of low rank by plain arithmetic, for a routing from elsewhere.
struct LowRank {
  Matrix<double> y = Matrix<double>::Zero(batch.tokens(), features), dx = y;
  std::vector<Matrix<double>> d_a = {}, d_b = {};
  std::vector<double> d_weights = {};
};

template <class Layer>
LowRank low_rank(const Layer& a, const Layer& b, const Matrix<double>& x, const Matrix<double>& dy,
                 const Assignment<double>& routing) {
  LowRank result;
  for (Index e = 0; e < num_experts; ++e) {
    result.d_a.push_back(Matrix<double>::Zero(a.out_features(), features));
    result.d_b.push_back(Matrix<double>::Zero(features, a.out_features()));
  }
  for (Index row = 0; row < routing.rows; ++row) {
    const Matrix<double> of_x = x.middleRows(batch.begin(row), batch.length(row)),
                         of_dy = dy.middleRows(batch.begin(row), batch.length(row));
    auto y = result.y.middleRows(batch.begin(row), batch.length(row));
    auto dx = result.dx.middleRows(batch.begin(row), batch.length(row));
    const auto experts = routing.row_experts(row);
    const auto weights = routing.row_weights(row);
    // What follows is of x Aᵀ Bᵀ, with the merged factors, or with each expert's and then weighed.
    const auto pass = [&](const Matrix<double>& of_a, const Matrix<double>& of_b, double weight) {
      y += weight * of_x * of_a.transpose() * of_b.transpose();
      dx += weight * of_dy * of_b * of_a;
      return std::pair<Matrix<double>, Matrix<double>>(weight * of_b.transpose() * of_dy.transpose() * of_x,
                                                       weight * of_dy.transpose() * of_x * of_a.transpose());
    };
    if constexpr (is_meo<Layer>) {
      const Vector<double> gates = routing.dense().row(row).transpose();
      const auto [d_a, d_b] = pass(merged_weight(a, gates), merged_weight(b, gates), 1);
      for (std::size_t i = 0; i < experts.size(); ++i) {
        const auto e = static_cast<std::size_t>(experts[i]);
        result.d_a[e] += weights[i] * d_a;
        result.d_b[e] += weights[i] * d_b;
        result.d_weights.push_back(d_a.cwiseProduct(a.weight(experts[i])).sum() +
                                   d_b.cwiseProduct(b.weight(experts[i])).sum());
      }
    } else {
      for (std::size_t i = 0; i < experts.size(); ++i) {
        const auto e = static_cast<std::size_t>(experts[i]);
        const Matrix<double> of_a = a.weight(experts[i]), of_b = b.weight(experts[i]);
        const auto [d_a, d_b] = pass(of_a, of_b, weights[i]);
        result.d_a[e] += d_a;
        result.d_b[e] += d_b;
        result.d_weights.push_back(of_dy.cwiseProduct(of_x * of_a.transpose() * of_b.transpose()).sum());
      }
    }
  }
  return result;
}

TEMPLATE_TEST_CASE("without an activation and biases a block's experts are products of low rank",
                   "[feed_forward]", Moe, Meo) {
  using Block = FeedForward<TestType, Identity>;
  Generator rng(542);
  constexpr Index rank = 2;
  FeedForwardOptions options = block_options(rank, 2);
  options.has_router = false;
  Block block(options), gradients(options);
  block.initialize(rng);
  const Assignment<double> routing{.rows = 3,
                                   .num_experts = num_experts,
                                   .begins = {0, 2, 3, 6},
                                   .experts = {2, 0, 1, 3, 0, 1},
                                   .weights = {0.25, 0.75, 0.5, 1, -0.5, 0.125}};
  const Matrix<double> x = random_normal<double>(rng, batch.tokens(), features),
                       dy = random_normal<double>(rng, batch.tokens(), features);
  Matrix<double> y(x.rows(), features), dx(x.rows(), features);
  std::vector<double> d_weights(routing.weights.size(), 0);
  FeedForwardContext<double> context;
  block.forward_routed(x, {.sequences = &batch}, routing, y, context);
  block.backward_routed(x, {.sequences = &batch}, routing, context, dy, gradients, dx, d_weights);

  const LowRank expected = low_rank(block.up(), block.down(), x, dy, routing);
  CHECK(disagreement_in_max_norm(y, expected.y, 1e-14) == "");
  CHECK(disagreement_in_max_norm(dx, expected.dx, 1e-14) == "");
  for (Index e = 0; e < num_experts; ++e) {
    INFO("expert " << e);
    const auto i = static_cast<std::size_t>(e);
    CHECK(disagreement_in_max_norm(gradients.up().weight(e), expected.d_a[i], 1e-13) == "");
    CHECK(disagreement_in_max_norm(gradients.down().weight(e), expected.d_b[i], 1e-13) == "");
  }
  const auto row = [](const std::vector<double>& values) {
    return Eigen::Map<const Matrix<double>>(values.data(), 1, static_cast<Index>(values.size()));
  };
  CHECK(disagreement_in_max_norm(row(d_weights), row(expected.d_weights), 1e-13) == "");

  // The weight that they are added to, as FeedForward says.
  Linear<double> base(features, features, false);
  base.initialize(rng);
  const Matrix<double> together = base.forward(x) + y;
  CHECK(disagreement_in_max_norm(together, Matrix<double>(x * base.weight().transpose() + expected.y),
                                 1e-14) == "");
}

}  // namespace block_forms_test
}  // namespace

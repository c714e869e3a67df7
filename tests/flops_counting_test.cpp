/// meo/flops.hpp against what the layers execute: a counting scalar runs them, and every item must agree
/// exactly.
///
/// Padding of panels is left out by choosing outputs, experts and reduced features that fill whole panels.

#include <cstdint>
#include <random>
#include <vector>

#include <meo/meo.hpp>

#include "support/catch.hpp"
#include "support/counting_scalar.hpp"

namespace {

using meo::Index;
using meo::Level;
using meo::Method;
using meo_test::Counting;

constexpr Index columns = meo::detail::Tile<Counting>::columns;

/// FLOPs of the multiply-adds that `function` executes.
template <class Function>
std::int64_t count_flops(const Function& function) {
  const std::int64_t before = Counting::counts.multiply_adds;
  function();
  return 2 * (Counting::counts.multiply_adds - before);
}

template <class Layer>
Layer random_layer(const meo::LayerOptions& options) {
  std::mt19937_64 rng(7);
  Layer layer(options);
  layer.initialize(rng);
  return layer;
}

meo::Matrix<Counting> random_matrix(Index rows, Index cols) {
  return Eigen::MatrixXd::Random(rows, cols).cast<Counting>();
}

/// A batch of three sequences with all that a layer may read.
struct Batch {
  meo::Sequences sequences = meo::Sequences::from_lengths({5, 1, 7});
  meo::Matrix<Counting> x;
  meo::Matrix<Counting> task_embeddings;
  meo::Sequences descriptions = meo::Sequences::from_lengths({2, 3, 1});
  meo::Matrix<Counting> noise;
  meo::Inputs<Counting> inputs;

  Batch(const meo::LayerOptions& options, Index gated_rows, bool with_noise)
      : x(random_matrix(sequences.tokens(), options.in_features)) {
    inputs.sequences = &sequences;
    if (options.routing.level == Level::task) {
      task_embeddings = random_matrix(descriptions.tokens(), options.routing.task_features);
      inputs.task_embeddings = task_embeddings;
      inputs.descriptions = &descriptions;
    }
    if (with_noise) {
      noise = random_matrix(gated_rows, options.num_experts);
      inputs.noise = meo::Noise<Counting>(noise);
    }
  }
};

struct Case {
  meo::LayerOptions options;
  bool noise;
};

std::vector<Case> cases() {
  std::vector<Case> cases;
  for (const Level level : {Level::token, Level::sequence, Level::task}) {
    for (const Index top_k : {1, 2, 5, 12}) {
      for (const bool bias : {false, true}) {
        for (const bool noise : {false, true}) {
          cases.push_back({{.in_features = 9 * columns,
                            .out_features = 3 * columns,
                            .num_experts = 12,
                            .top_k = top_k,
                            .bias = bias,
                            .routing = {.level = level,
                                        .task_features = level == Level::task ? 18 * columns : 0,
                                        .reduce_factor = 9}},
                           noise});
        }
      }
    }
  }
  return cases;
}

}  // namespace

TEST_CASE("MoE's counted operations are those of flops.hpp, item by item", "[flops]") {
  for (const auto& [options, noise] : cases()) {
    CAPTURE(to_string(options.routing.level), options.top_k, options.bias, noise);
    const auto layer = random_layer<meo::MoeLayer<Counting>>(options);
    const Batch batch(options, layer.gated_rows(13, 3), noise);
    const meo::LayerFlops cost =
        meo::flops(Method::moe, meo::layer_shape<Counting>(options, batch.sequences, noise));
    meo::Workspace<Counting> workspace;
    meo::Matrix<Counting> y(batch.x.rows(), options.out_features);

    CHECK(count_flops([&] { layer.route(batch.x, batch.inputs, workspace); }) ==
          cost.gate + cost.task_projection);
    if (options.routing.level == Level::task) {
      CHECK(cost.task_projection ==
            3 * count_flops([&] { layer.task_projection().forward(batch.task_embeddings.row(0)); }));
    }
    std::int64_t product = 0;
    CHECK(count_flops([&] {
            layer.forward_routed(batch.x, {.sequences = &batch.sequences}, workspace.routing, y, workspace);
          }) == cost.product + cost.combine);
    meo::Matrix<Counting> outputs(batch.x.rows(), options.out_features);
    for (Index expert = 0; expert < options.num_experts; ++expert) {
      product += count_flops([&] {
        meo::detail::gathered_product<Counting>(
            layer.experts().panels(), expert, memory_of(workspace).mixing.dispatch,
            {batch.x.data(), batch.x.outerStride()}, {outputs.data(), outputs.outerStride()});
      });
    }
    CHECK(product == cost.product);
    CHECK(count_flops([&] { layer.forward(batch.x, batch.inputs, y, workspace); }) == cost.total());
    CHECK(cost.merge == 0);
    CHECK(cost.token_attention == 0);
  }
}

TEST_CASE("MEO's counted operations are those of flops.hpp, item by item", "[flops]") {
  const auto order =
      GENERATE(meo::MergeOrder::automatic, meo::MergeOrder::merge_first, meo::MergeOrder::combine_outputs);
  for (const auto& [options_of_case, noise] : cases()) {
    meo::LayerOptions options = options_of_case;
    options.merge_order = order;
    CAPTURE(static_cast<int>(order), to_string(options.routing.level), options.top_k, options.bias, noise);
    const auto layer = random_layer<meo::MeoLayer<Counting>>(options);
    const Batch batch(options, layer.gated_rows(13, 3), noise);
    const meo::LayerFlops cost =
        meo::flops(Method::meo, meo::layer_shape<Counting>(options, batch.sequences, noise));
    meo::Workspace<Counting> workspace;
    meo::Matrix<Counting> y(batch.x.rows(), options.out_features);

    CHECK(count_flops([&] { layer.route(batch.x, batch.inputs, workspace); }) ==
          cost.gate + cost.task_projection + cost.token_attention);
    if (options.routing.level == Level::token) {
      meo::Matrix<Counting> attended(batch.x.rows(), batch.x.cols());
      meo::Matrix<Counting> rows(batch.x.rows(), layer.token_attention().reduced_features());
      CHECK(count_flops([&] { layer.token_attention().apply(batch.x, rows.data(), attended.data()); }) ==
            cost.token_attention);
    }
    const meo::Inputs<Counting> sequences{.sequences = &batch.sequences};
    CHECK(count_flops([&] { layer.forward_routed(batch.x, sequences, workspace.routing, y, workspace); }) ==
          cost.token_attention + cost.merge + cost.product + cost.combine);

    // With one expert there is nothing to merge: what is left is the product, and combining if that is
    // forced.
    meo::Routing<Counting> one_expert = workspace.routing;
    one_expert.top_k = 1;
    one_expert.experts.assign(static_cast<std::size_t>(one_expert.rows), 0);
    one_expert.weights.assign(static_cast<std::size_t>(one_expert.rows), Counting(1));
    options.top_k = 1;
    const meo::LayerFlops cost_of_one =
        meo::flops(Method::meo, meo::layer_shape<Counting>(options, batch.sequences, noise));
    CHECK(cost_of_one.merge == 0);
    CHECK(count_flops([&] { layer.forward_routed(batch.x, sequences, one_expert, y, workspace); }) ==
          cost.token_attention + cost_of_one.product + cost_of_one.combine);

    CHECK(count_flops([&] { layer.forward(batch.x, batch.inputs, y, workspace); }) == cost.total());
    if (order == meo::MergeOrder::merge_first) CHECK(cost.combine == 0);
    if (order == meo::MergeOrder::combine_outputs) CHECK(cost.merge == 0);
  }
}

TEST_CASE("Sequences of one task share a merge, and empty sequences need none", "[flops]") {
  meo::LayerOptions options{
      .in_features = 8,
      .out_features = 4 * columns,
      .num_experts = 6,
      .top_k = 3,
      .routing = {.level = Level::task, .task_features = 8 * columns, .reduce_factor = 4}};
  const auto layer = random_layer<meo::MeoLayer<Counting>>(options);
  const auto batch = meo::Sequences::from_lengths({4, 0, 6, 2, 1});
  const meo::Matrix<Counting> x = random_matrix(batch.tokens(), options.in_features);
  const meo::Matrix<Counting> tasks = random_matrix(2, options.routing.task_features);
  const auto descriptions = meo::Sequences::from_lengths({1, 1});
  const std::vector<Index> task_of_sequence{0, 1, 1, 0, 0};
  meo::LayerShape shape = meo::layer_shape<Counting>(options, batch);
  CHECK(shape.merges == 4);
  shape.merges = 2;
  CHECK(count_flops([&] {
          layer.forward(x, {.sequences = &batch,
                            .task_embeddings = tasks,
                            .descriptions = &descriptions,
                            .task_of_sequence = task_of_sequence});
        }) == meo::flops(Method::meo, shape).total());
}

/// meo/flops.hpp against what the layers execute: a counting scalar runs them, and every item must agree
/// exactly.
///
/// Padding of panels is left out by choosing outputs, experts and reduced features that fill whole panels.

#include <array>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include <meo/meo.hpp>

#include "support/catch.hpp"
#include "support/counting_scalar.hpp"
#include "support/error_message.hpp"

namespace {
namespace flops_counting_test {

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

/// What the layer's forward over an assignment costs.
template <class Layer>
meo::LayerFlops cost_of(Method method, const Layer& layer, const meo::Sequences& batch,
                        const meo::Assignment<Counting>& assignment, bool noise = false) {
  return meo::flops(method, meo::layer_shape<Counting>(layer.options(), batch, noise),
                    meo::assignment_shape(method, layer.options(), batch, assignment));
}

std::vector<Case> cases() {
  std::vector<Case> cases;
  for (const Level level : {Level::token, Level::sequence, Level::task, Level::segment}) {
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
                                        .segment_tokens = level == Level::segment ? 2 : 0,
                                        .reduce_factor = 9}},
                           noise});
        }
      }
    }
  }
  return cases;
}

/// Rows of any number of pairs. Which tokens they have, and what a MeoLayer makes of them:
///
///     row                0   1      2    3      4    5   6   7  8    9     10
///     tokens            50   4      7    6     50   50   0  40  1    2     12
///     experts        2 0 1   -      3    3  1 0 2  012   5 0-5 4 2   3    0 1
///     weights      .5 .2 .3  -      1   .5                          .5    0 1
///     the same as                              0                     3
constexpr Index ragged_experts = 6;
constexpr std::array<Index, 11> ragged_lengths{50, 4, 7, 6, 50, 50, 0, 40, 1, 2, 12};

meo::Assignment<Counting> ragged_assignment() {
  meo::Assignment<Counting> ragged{
      .rows = 11,
      .num_experts = ragged_experts,
      .begins = {0, 3, 3, 4, 5, 8, 11, 12, 18, 20, 21, 23},
      .experts = {2, 0, 1, 3, 3, 1, 0, 2, 0, 1, 2, 5, 0, 1, 2, 3, 4, 5, 4, 2, 3, 0, 1}};
  for (const double weight : {0.5, 0.2, 0.3, 1.0, 0.5, 0.3, 0.2, 0.5, 0.3, 0.2, 0.5, 2.0,
                              0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9, 0.1, 0.5, 0.0, 1.0})
    ragged.weights.emplace_back(weight);
  return ragged;
}

/// Sizes for which no items of a cost can make up for each other: what merges, products and combined outputs
/// take is in different proportions, also with and without biases.
std::vector<meo::LayerOptions> sizes() {
  std::vector<meo::LayerOptions> all;
  for (const auto& [in_features, out_features] :
       {std::pair{3 * columns, 2 * columns}, std::pair{6 * columns, columns}}) {
    for (const bool bias : {false, true}) {
      all.push_back({.in_features = in_features,
                     .out_features = out_features,
                     .num_experts = ragged_experts,
                     .top_k = 2,
                     .bias = bias,
                     .routing = {.reduce_factor = 3}});
    }
  }
  return all;
}

/// The FLOPs that forward_routed executes.
template <class Layer>
std::int64_t count_routed(const Layer& layer, const meo::Sequences& batch,
                          const meo::Assignment<Counting>& assignment) {
  const meo::Matrix<Counting> x = random_matrix(batch.tokens(), layer.in_features());
  meo::Matrix<Counting> y(batch.tokens(), layer.out_features());
  meo::Workspace<Counting> workspace;
  return count_flops([&] { layer.forward_routed(x, {.sequences = &batch}, assignment, y, workspace); });
}

TEST_CASE("MoE's counted operations are those of flops.hpp, item by item", "[flops]") {
  for (const auto& [options, noise] : cases()) {
    CAPTURE(to_string(options.routing.level), options.top_k, options.bias, noise);
    const auto layer = random_layer<meo::MoeLayer<Counting>>(options);
    const Batch batch(options, layer.gated_rows(std::array<Index, 4>{0, 5, 6, 13}), noise);
    const meo::LayerFlops cost =
        meo::flops(Method::moe, meo::layer_shape<Counting>(options, batch.sequences, noise));
    meo::Workspace<Counting> workspace;
    meo::Matrix<Counting> y(batch.x.rows(), options.out_features);

    CHECK(count_flops([&] { layer.route(batch.x, batch.inputs, workspace); }) ==
          cost.gate + cost.task_projection);
    CHECK(cost_of(Method::moe, layer, batch.sequences, workspace.routing, noise) == cost);
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
            {batch.x.data(), batch.x.outerStride()}, {outputs.data(), outputs.outerStride()},
            {nullptr, meo::detail::max_threads()});
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
    const Batch batch(options, layer.gated_rows(std::array<Index, 4>{0, 5, 6, 13}), noise);
    const meo::LayerFlops cost =
        meo::flops(Method::meo, meo::layer_shape<Counting>(options, batch.sequences, noise));
    meo::Workspace<Counting> workspace;
    meo::Matrix<Counting> y(batch.x.rows(), options.out_features);

    CHECK(count_flops([&] { layer.route(batch.x, batch.inputs, workspace); }) ==
          cost.gate + cost.task_projection + cost.token_attention);
    CHECK(cost_of(Method::meo, layer, batch.sequences, workspace.routing, noise) == cost);
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

TEMPLATE_TEST_CASE("Shared experts are counted as they are executed", "[flops]", meo::MoeLayer<Counting>,
                   meo::MeoLayer<Counting>) {
  constexpr Method method = TestType::Kind::stacks_experts ? Method::meo : Method::moe;
  const auto order = GENERATE(meo::MergeOrder::merge_first, meo::MergeOrder::combine_outputs);
  for (const auto weight : {meo::SharedWeight::one, meo::SharedWeight::sigmoid}) {
    for (const Level level : {Level::token, Level::sequence}) {
      const bool is_weighed = weight == meo::SharedWeight::sigmoid;
      CAPTURE(static_cast<int>(order), is_weighed, to_string(level));
      const meo::LayerOptions options{.in_features = 9 * columns,
                                      .out_features = 3 * columns,
                                      .num_experts = 12,
                                      .top_k = 2,
                                      .shared_experts = {.count = 3, .weight = weight},
                                      .routing = {.level = level, .reduce_factor = 9},
                                      .merge_order = order};
      const auto layer = random_layer<TestType>(options);
      const Batch batch(options, 3, false);
      const meo::LayerFlops cost = meo::flops(method, meo::layer_shape<Counting>(options, batch.sequences));
      meo::Workspace<Counting> workspace;
      meo::Matrix<Counting> y(batch.x.rows(), options.out_features);
      // One output takes a whole panel, but for a row that is multiplied alone.
      const std::int64_t flops_of_row = 2 * options.in_features,
                         rows = cost.shared_expert_gate / flops_of_row;
      const std::int64_t alone = rows % meo::detail::Tile<Counting>::rows == 1 ? 1 : 0;
      CHECK(count_flops([&] { layer.route(batch.x, batch.inputs, workspace); }) ==
            cost.gate + (columns * (rows - alone) + alone) * flops_of_row + cost.token_attention);
      CHECK((cost.shared_expert_gate > 0) == is_weighed);
      CHECK(cost_of(method, layer, batch.sequences, workspace.routing) == cost);
      CHECK(count_flops([&] {
              layer.forward_routed(batch.x, batch.inputs, workspace.routing, y, workspace);
            }) == cost.token_attention + cost.merge + cost.product + cost.combine);
    }
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
  meo::Workspace<Counting> workspace;
  meo::Matrix<Counting> y(x.rows(), options.out_features);
  CHECK(count_flops([&] {
          layer.forward(x,
                        {.sequences = &batch,
                         .task_embeddings = tasks,
                         .descriptions = &descriptions,
                         .task_of_sequence = task_of_sequence},
                        y, workspace);
        }) == meo::flops(Method::meo, shape).total());
  CHECK(cost_of(Method::meo, layer, batch, workspace.routing) == meo::flops(Method::meo, shape));
}

TEST_CASE("MEO's counted operations over any assignment are those of flops.hpp", "[flops]") {
  const meo::Sequences batch = meo::Sequences::from_lengths(ragged_lengths);
  const meo::Assignment<Counting> ragged = ragged_assignment();
  const auto [order, expected] = GENERATE(
      // Merges of rows 0 with 4, 3 with 9, 5, 7, 8 and 10; row 2 has its expert where it lies.
      std::pair{meo::MergeOrder::merge_first,
                meo::AssignmentShape{.merged_experts = 3 + 1 + 3 + 6 + 2 + 2, .products = 218}},
      std::pair{meo::MergeOrder::combine_outputs,
                meo::AssignmentShape{.products = 3 * 150 + 7 + 6 + 6 * 40 + 2 * 1 + 2 + 2 * 12,
                                     .combined_outputs = 3 * 150 + 7 + 6 + 6 * 40 + 2 * 1 + 2 + 2 * 12}},
      // Rows 3 and 9, of one expert with a weight, have its outputs weighed; 8 is too short to merge.
      std::pair{meo::MergeOrder::automatic,
                meo::AssignmentShape{.merged_experts = 3 + 3 + 6 + 2,
                                     .products = 150 + 7 + 40 + 12 + 6 + 2 + 2 * 1,
                                     .combined_outputs = 6 + 2 + 2 * 1}});
  for (const Level level : {Level::token, Level::sequence}) {
    for (meo::LayerOptions options : sizes()) {
      for (const bool has_router : {false, true}) {
        options.merge_order = order;
        options.routing.level = level;
        options.has_router = has_router;
        CAPTURE(static_cast<int>(order), to_string(level), options.in_features, options.bias, has_router);
        const auto layer = random_layer<meo::MeoLayer<Counting>>(options);
        CHECK(meo::assignment_shape(Method::meo, options, batch, ragged) == expected);
        const meo::LayerFlops cost = cost_of(Method::meo, layer, batch, ragged);
        CHECK(count_routed(layer, batch, ragged) == cost.total() - cost.gate);
        CHECK((cost.gate > 0) == has_router);
        CHECK((cost.token_attention > 0) == (level == Level::token));
      }
    }
  }
}

TEST_CASE("At task level short sequences are merged too, but never weighed experts", "[flops]") {
  const meo::Sequences batch = meo::Sequences::from_lengths(ragged_lengths);
  for (meo::LayerOptions options : sizes()) {
    options.routing = {.level = Level::task, .task_features = 8, .reduce_factor = 4};
    options.has_router = false;
    const auto layer = random_layer<meo::MeoLayer<Counting>>(options);
    const auto shape = meo::assignment_shape(Method::meo, options, batch, ragged_assignment());
    CHECK(shape == meo::AssignmentShape{
                       .merged_experts = 3 + 3 + 6 + 2 + 2, .products = 218, .combined_outputs = 6 + 2});
    const meo::LayerFlops cost = cost_of(Method::meo, layer, batch, ragged_assignment());
    CHECK(cost.gate + cost.task_projection == 0);
    CHECK(count_routed(layer, batch, ragged_assignment()) == cost.total());
  }
}

TEST_CASE("MoE's counted operations over any assignment are those of flops.hpp", "[flops]") {
  const Level level = GENERATE(Level::token, Level::sequence);
  // At token level the rows are tokens, of whatever sequences.
  const meo::Sequences batch = level == Level::token ? meo::Sequences::from_lengths({4, 0, 7})
                                                     : meo::Sequences::from_lengths(ragged_lengths);
  const Index pairs = level == Level::token ? 23 : 3 * 150 + 7 + 6 + 6 * 40 + 2 * 1 + 2 + 2 * 12;
  const meo::Assignment<Counting> ragged = ragged_assignment();
  for (meo::LayerOptions options : sizes()) {
    for (const bool has_router : {false, true}) {
      options.routing.level = level;
      options.has_router = has_router;
      CAPTURE(to_string(level), options.in_features, options.bias, has_router);
      const auto layer = random_layer<meo::MoeLayer<Counting>>(options);
      CHECK(meo::assignment_shape(Method::moe, options, batch, ragged) ==
            meo::AssignmentShape{.products = pairs, .combined_outputs = pairs});
      const meo::LayerFlops cost = cost_of(Method::moe, layer, batch, ragged);
      CHECK(count_routed(layer, batch, ragged) == cost.total() - cost.gate);
      CHECK((cost.gate > 0) == has_router);
    }
  }
}

TEST_CASE("One expert a row is weighed unless its weight is 1", "[flops]") {
  const meo::Sequences batch = meo::Sequences::from_lengths({3, 30, 1});
  const auto weight = GENERATE(1.0, 0.5);
  const bool is_weighed = weight != 1;
  const meo::Assignment<Counting> assignment{
      .rows = 3,
      .num_experts = ragged_experts,
      .top_k = 1,
      .experts = {1, 0, 1},
      .weights = {Counting(weight), Counting(weight), Counting(weight)}};
  for (meo::LayerOptions options : sizes()) {
    options.has_router = false;
    for (const auto order : {meo::MergeOrder::automatic, meo::MergeOrder::merge_first}) {
      options.merge_order = order;
      CAPTURE(weight, static_cast<int>(order), options.in_features, options.bias);
      const bool merges = is_weighed && order == meo::MergeOrder::merge_first;
      const bool combines = is_weighed && order == meo::MergeOrder::automatic;
      CHECK(meo::assignment_shape(Method::meo, options, batch, assignment) ==
            meo::AssignmentShape{
                .merged_experts = merges ? 2 : 0, .products = 34, .combined_outputs = combines ? 34 : 0});
      const auto layer = random_layer<meo::MeoLayer<Counting>>(options);
      CHECK(count_routed(layer, batch, assignment) == cost_of(Method::meo, layer, batch, assignment).total());
    }
  }
}

TEST_CASE("A gate that weighs its single expert costs what layer_shape says", "[flops]") {
  using enum meo::ScoreFunction;
  const meo::Sequences batch = meo::Sequences::from_lengths({30, 0, 3});
  const auto check = [&](Method method, const auto& layer, std::int64_t merged, std::int64_t combined) {
    const meo::LayerFlops cost = meo::flops(method, meo::layer_shape<Counting>(layer.options(), batch));
    const meo::Matrix<Counting> x = random_matrix(batch.tokens(), layer.in_features());
    meo::Matrix<Counting> y(batch.tokens(), layer.out_features());
    meo::Workspace<Counting> workspace;
    CHECK(count_flops([&] { layer.forward(x, {.sequences = &batch}, y, workspace); }) == cost.total());
    const Index in = layer.in_features(), out = layer.out_features();
    CHECK(cost.merge == 2 * merged * (in * out + (layer.options().bias ? out : 0)));
    CHECK(cost.combine == 2 * combined * out);
    CHECK(cost_of(method, layer, batch, workspace.routing) == cost);
  };
  for (meo::LayerOptions options : sizes()) {
    options.top_k = 1;
    for (const meo::ScoreFunction function : {softmax_selected, softmax, sigmoid}) {
      options.routing.scores.function = function;
      const bool weighs = function != softmax_selected;
      options.merge_order = meo::MergeOrder::automatic;
      CAPTURE(static_cast<int>(function), options.in_features, options.bias);
      check(Method::meo, random_layer<meo::MeoLayer<Counting>>(options), 0, weighs ? 33 : 0);
      check(Method::moe, random_layer<meo::MoeLayer<Counting>>(options), 0, 33);
      options.merge_order = meo::MergeOrder::merge_first;
      check(Method::meo, random_layer<meo::MeoLayer<Counting>>(options), weighs ? 2 : 0, 0);
    }
  }
}

TEST_CASE("Of many merges of one expert, that with the weight 1 is not formed", "[flops]") {
  const meo::Sequences batch = meo::Sequences::uniform(12, 2);
  meo::Assignment<Counting> assignment{.rows = 12, .num_experts = ragged_experts, .top_k = 1};
  for (Index row = 0; row < assignment.rows; ++row) {
    assignment.experts.push_back(3);
    assignment.weights.emplace_back(0.25 * static_cast<double>(row));
  }
  for (meo::LayerOptions options : sizes()) {
    options.has_router = false;
    options.merge_order = meo::MergeOrder::merge_first;
    CHECK(meo::assignment_shape(Method::meo, options, batch, assignment) ==
          meo::AssignmentShape{.merged_experts = 11, .products = 24});
    const auto layer = random_layer<meo::MeoLayer<Counting>>(options);
    CHECK(count_routed(layer, batch, assignment) == cost_of(Method::meo, layer, batch, assignment).total());
  }
}

TEST_CASE("A block of MoE layers with one gate combines the outputs of `down` alone", "[flops]") {
  const meo::Sequences batch = meo::Sequences::from_lengths(ragged_lengths);
  const meo::Assignment<Counting> ragged = ragged_assignment();
  for (const bool gated : {false, true}) {
    const meo::FeedForward<meo::MoeLayer<Counting>, meo::Relu> block({.features = 2 * columns,
                                                                      .hidden_features = 3 * columns,
                                                                      .num_experts = ragged_experts,
                                                                      .gated = gated,
                                                                      .shared_gate = true,
                                                                      .has_router = false});
    const meo::Matrix<Counting> x = random_matrix(batch.tokens(), block.options().features);
    meo::Matrix<Counting> y(x.rows(), x.cols());
    meo::FeedForwardWorkspace<Counting> workspace;
    const meo::LayerFlops up = cost_of(Method::moe, block.up(), batch, ragged);
    const meo::LayerFlops down = cost_of(Method::moe, block.down(), batch, ragged);
    CHECK(count_flops([&] { block.forward_routed(x, {.sequences = &batch}, ragged, y, workspace); }) ==
          (gated ? 2 : 1) * up.product + down.total());
  }
}

TEST_CASE("Counted operations of experts that are kept are those of flops.hpp", "[flops]") {
  const meo::Sequences batch = meo::Sequences::from_lengths(ragged_lengths);
  const meo::Assignment<Counting> ragged = ragged_assignment();
  // Rows 2 and 10 have one expert of weight 1 beside none and one of weight 0.
  constexpr Index merged = 3 + 1 + 3 + 3 + 1 + 6 + 2 + 1;
  CHECK(meo::merged_experts(ragged) == merged);
  constexpr Index tokens_without_experts = 4;
  for (const Level level : {Level::token, Level::sequence}) {
    for (meo::LayerOptions options : sizes()) {
      options.routing.level = level;
      CAPTURE(to_string(level), options.in_features, options.bias);
      const auto layer = random_layer<meo::MeoLayer<Counting>>(options);
      meo::LayerShape shape = meo::layer_shape<Counting>(options, batch);
      const meo::LayerFlops merging = meo::merging_flops(shape, merged);
      meo::MergedExpert<Counting> kept(layer, ragged, 1);
      CHECK(meo::merged_experts(kept.assignment()) == 0);
      CHECK(count_flops([&] { kept.merge(layer, ragged); }) == merging.total());
      CHECK(merging.merge == merging.total());
      CHECK(meo::merged_experts(kept.assignment()) == merged);
      CHECK(2 * meo::merging_flops(shape, merged, meo::Convention::paper).merge == merging.merge);

      const meo::LayerFlops step = meo::step_flops(Method::meo, shape);
      CHECK(step.total() == step.product + step.token_attention);
      CHECK((step.token_attention > 0) == (level == Level::token));
      const meo::Matrix<Counting> x = random_matrix(batch.tokens(), options.in_features);
      meo::Matrix<Counting> y(batch.tokens(), options.out_features);
      meo::Workspace<Counting> workspace;
      CHECK(count_flops([&] { kept.forward(x, {.sequences = &batch}, y, workspace); }) ==
            step.total() - tokens_without_experts * step.product / batch.tokens());
      // A step is a dense layer's but for token attention.
      CHECK(step.product == meo::flops(Method::dense, shape).total());
      shape.tokens = 1;
      kept.merge(layer, ragged, 7);
      CHECK(count_flops([&] { kept.forward(x.topRows(1), {}, y.topRows(1), workspace); }) ==
            meo::step_flops(Method::meo, shape).total());
    }
  }
}

TEST_CASE("Counted operations of a block that is kept are those of its projections", "[flops]") {
  const meo::Assignment<Counting> ragged = ragged_assignment();
  for (const bool gated : {false, true}) {
    const meo::FeedForward<meo::MeoLayer<Counting>, meo::Relu> block({.features = 2 * columns,
                                                                      .hidden_features = 3 * columns,
                                                                      .num_experts = ragged_experts,
                                                                      .gated = gated,
                                                                      .shared_gate = true,
                                                                      .has_router = false});
    meo::MergedFeedForward kept(block, ragged, 1);
    const meo::LayerShape up{.in_features = 2 * columns, .out_features = 3 * columns, .tokens = 5};
    const meo::LayerShape down{.in_features = 3 * columns, .out_features = 2 * columns, .tokens = 5};
    const auto of_block = [&](const auto& cost) { return (gated ? 2 : 1) * cost(up) + cost(down); };
    CHECK(count_flops([&] { kept.merge(block, ragged, 7); }) ==
          of_block([](const meo::LayerShape& shape) { return meo::merging_flops(shape, 6).total(); }));
    const meo::Matrix<Counting> x = random_matrix(5, 2 * columns);
    meo::Matrix<Counting> y(5, 2 * columns);
    meo::FeedForwardWorkspace<Counting> workspace;
    CHECK(count_flops([&] { kept.forward(x, {}, y, workspace); }) ==
          of_block([](const meo::LayerShape& shape) { return meo::step_flops(Method::meo, shape).total(); }));
  }
}

TEST_CASE("An assignment that does not fit has no shape", "[flops]") {
  using meo::test::error_lacks;
  using Invalid = std::invalid_argument;
  const meo::Sequences batch = meo::Sequences::from_lengths(ragged_lengths);
  const meo::LayerOptions options = sizes().front();
  meo::Assignment<Counting> ragged = ragged_assignment();
  CHECK(error_lacks<Invalid>([&] { meo::assignment_shape(Method::dense, options, batch, ragged); },
                             {"method: expected moe or meo, got dense"}) == "");
  CHECK(error_lacks<Invalid>(
            [&] {
              meo::assignment_shape(Method::meo, options, meo::Sequences::from_lengths({1, 2}), ragged);
            },
            {"routing: expected 2 rows, got 11"}) == "");
  ragged.experts.back() = ragged_experts;
  CHECK(error_lacks<Invalid>([&] { meo::assignment_shape(Method::moe, options, batch, ragged); },
                             {"expert: expected 0 to 5, got 6"}) == "");
}

}  // namespace flops_counting_test
}  // namespace

// Experts that are merged once and kept, beside the forward of the layer or block that they are of.

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <meo/experts/activate.hpp>
#include <meo/experts/linear.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/merged_expert.hpp>
#include <meo/layers/merged_feed_forward.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/types.hpp>

#include "kernels/random_experts.hpp"
#include "kernels/threads.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/kernels.hpp"
#include "support/options.hpp"
#include "support/product.hpp"
#include "support/random.hpp"

namespace {
namespace merged_expert_test {

using namespace meo;
using namespace meo::test;
using Invalid = std::invalid_argument;

constexpr Index num_experts = 12;

/// Rows of 0, 1 (of weight 1), 1, 2, 4 and 11 pairs, also of weight 0 and below, in no order.
template <class S>
Assignment<S> ragged_assignment() {
  return {.rows = 6,
          .num_experts = num_experts,
          .begins = {0, 0, 1, 2, 4, 8, 19},
          .experts = {3, 5, 7, 1, 2, 11, 0, 4, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0},
          .weights = {S(1), S(0.3), S(0.7), S(-0.2), S(0), S(0.5), S(0.1), S(0.4), S(0.11), S(0.12), S(0.13),
                      S(0.14), S(0), S(0.16), S(0.2), S(0.18), S(-1), S(2), S(0.02)}};
}
const std::vector<Index> ragged_lengths{2, 1, 0, 7, 1, 12};

template <class Layer>
Layer random_layer(LayerOptions options, Generator& rng) {
  using S = typename Layer::Scalar;
  Layer layer(options);
  for (Index e = 0; e < layer.num_experts(); ++e) {
    layer.set_weight(e, random_normal<S>(rng, layer.out_features(), layer.in_features()));
    if (options.bias) layer.set_bias(e, random_normal<S>(rng, layer.out_features(), 1));
  }
  return layer;
}

/// Without a router.
LayerOptions routed_layer(Index in_features, Index out_features, bool bias,
                          MergeOrder order = MergeOrder::merge_first) {
  return {.in_features = in_features,
          .out_features = out_features,
          .num_experts = num_experts,
          .bias = bias,
          .merge_order = order,
          .has_router = false};
}

template <class Layer>
Matrix<typename Layer::Scalar> forward_routed(const Layer& layer, const Matrix<typename Layer::Scalar>& x,
                                              const Sequences& batch,
                                              const Assignment<typename Layer::Scalar>& assignment) {
  Matrix<typename Layer::Scalar> y(x.rows(), layer.out_features());
  Workspace<typename Layer::Scalar> workspace;
  layer.forward_routed(x, {.sequences = &batch}, assignment, y, workspace);
  return y;
}

/// Σ_i g_i (W_i x + b_i) within n roundings on the way of each of its terms.
template <class Layer>
Bounded<typename Layer::Scalar> mixture(const Layer& layer, const Matrix<typename Layer::Scalar>& x,
                                        const Sequences& batch,
                                        const Assignment<typename Layer::Scalar>& assignment) {
  using S = typename Layer::Scalar;
  using W = Wide<S>;
  Bounded<S> y(x.rows(), layer.out_features());
  for (Index row = 0; row < assignment.rows; ++row) {
    const auto pairs = assignment.row_experts(row).size();
    // A term is weighed once, its product with x rounded once, and both sums have an addition for each term.
    const W roundings = gamma<S>(layer.in_features() + Index(pairs) + 3);
    const Matrix<W> rows = x.middleRows(batch.begin(row), batch.length(row)).template cast<W>();
    for (std::size_t i = 0; i < pairs; ++i) {
      const Index expert = assignment.row_experts(row)[i];
      const W weight = W(assignment.row_weights(row)[i]);
      const Matrix<W> of_expert = layer.weight(expert).template cast<W>();
      Matrix<W> output = times_transposed(rows, of_expert);
      Matrix<W> magnitude = times_transposed(Matrix<W>(rows.cwiseAbs()), Matrix<W>(of_expert.cwiseAbs()));
      if (layer.options().bias) {
        const Vector<W> bias = layer.bias(expert).template cast<W>();
        output.rowwise() += bias.transpose();
        magnitude.rowwise() += bias.cwiseAbs().transpose();
      }
      y.value.middleRows(batch.begin(row), rows.rows()) += weight * output;
      y.error.middleRows(batch.begin(row), rows.rows()) += roundings * std::abs(weight) * magnitude;
    }
  }
  return y;
}

TEMPLATE_TEST_CASE("kept experts have the bits of a layer that merges first, for all small sizes", "[kept]",
                   float, double) {
  using S = TestType;
  Generator rng(81);
  const Sequences batch = Sequences::from_lengths(ragged_lengths);
  const Assignment<S> assignment = ragged_assignment<S>();
  for (Index in = 1; in <= 70; ++in) {
    for (Index out = 1 + in % 7; out <= 70; out += 7) {
      INFO("D " << in << ", F " << out);
      const auto layer = random_layer<MeoLayer<S>>(routed_layer(in, out, in % 2 == 0), rng);
      const Matrix<S> x = random_normal<S>(rng, batch.tokens(), in);
      const MergedExpert<S> kept(layer, assignment);
      const Matrix<S> y = kept.forward(x, batch);
      CHECK(bit_difference(y, forward_routed(layer, x, batch, assignment)) == "");
      if (out <= 7) CHECK(disagreement(y, mixture(layer, x, batch, assignment)) == "");
    }
  }
}

TEMPLATE_TEST_CASE("kept experts are within rounding of any layer of the same experts", "[kept]",
                   MoeLayer<float>, MoeLayer<double>, MeoLayer<float>, MeoLayer<long double>) {
  using S = typename TestType::Scalar;
  Generator rng(82);
  const Sequences batch = Sequences::from_lengths(ragged_lengths);
  const Assignment<S> assignment = ragged_assignment<S>();
  for (const MergeOrder order : {MergeOrder::automatic, MergeOrder::combine_outputs}) {
    const auto layer = random_layer<TestType>(routed_layer(33, 50, true, order), rng);
    const Matrix<S> x = random_normal<S>(rng, batch.tokens(), 33);
    const Matrix<S> y = MergedExpert<S>(layer, assignment).forward(x, batch);
    Bounded<S> expected = mixture(layer, x, batch, assignment);
    CHECK(disagreement(y, expected) == "");
    CHECK(disagreement(forward_routed(layer, x, batch, assignment), expected) == "");
  }
}

TEST_CASE("kept experts are those that the prompt's gate decided on, at every level", "[kept]") {
  Generator rng(83);
  const Sequences batch = Sequences::from_lengths({7, 3, 1});
  for (const Level level : {Level::token, Level::sequence, Level::task, Level::segment}) {
    INFO(to_string(level) << " level");
    LayerOptions options = small_layer(level, 9, 30, 3);
    options.merge_order = MergeOrder::merge_first;
    options.routing.segment_tokens = level == Level::segment ? 10 : 0;
    MeoLayer<float> layer(options);
    layer.initialize(rng);
    if (level == Level::token) {
      layer.token_attention().up().set_weight(random_normal<float>(rng, 9, 4));
      layer.token_attention().up().set_bias(random_normal<float>(rng, 9, 1));
    }
    const Matrix<float> x = random_normal<float>(rng, batch.tokens(), 9);
    const Matrix<float> embeddings = random_normal<float>(rng, 2, small_task_features);
    Inputs<float> inputs{.sequences = &batch};
    if (level == Level::task) inputs.task_embeddings = embeddings;
    Workspace<float> workspace;
    Matrix<float> expected(batch.tokens(), 30), y(batch.tokens(), 30);
    layer.forward(x, inputs, expected, workspace);

    const MergedExpert kept(layer, layer.route(x, inputs, workspace));
    CHECK(kept.rows() == 3);
    kept.forward(x, {.sequences = &batch}, y, workspace);
    CHECK(bit_difference(y, expected) == "");
    // One row of them.
    const MergedExpert third(layer, workspace.routing, 1);
    CHECK(third.rows() == 1);
    CHECK(bit_difference(third.forward(x.middleRows(7, 3)), expected.middleRows(7, 3)) == "");
  }
}

TEST_CASE("kept experts of 16 bits have the bits of a layer that merges first", "[kept]") {
  Generator rng(84);
  LayerOptions options = routed_layer(40, 21, true);
  MeoLayer<Eigen::half> layer(options);
  for (Index e = 0; e < num_experts; ++e)
    layer.set_weight(e, random_normal<float>(rng, 21, 40).cast<Eigen::half>());
  const Matrix<Eigen::half> x = random_normal<float>(rng, 6, 40).cast<Eigen::half>();
  const Assignment<Eigen::half> assignment{
      .rows = 1,
      .num_experts = num_experts,
      .begins = {0, 3},
      .experts = {9, 2, 5},
      .weights = {Eigen::half(0.5f), Eigen::half(0.3f), Eigen::half(0.2f)}};
  const Matrix<Eigen::half> y = forward_routed(layer, x, Sequences::uniform(1, 6), assignment);
  CHECK(MergedExpert(layer, assignment).forward(x) == y);
}

TEMPLATE_TEST_CASE("kept experts of a layer that stores less have the bits of its forward", "[kept]",
                   Eigen::bfloat16, Eigen::half, std::int8_t) {
  using Layer = MeoLayer<float, Eigen::Dynamic, TestType>;
  Generator rng(96);
  const Sequences batch = Sequences::from_lengths(ragged_lengths);
  const Assignment<float> assignment = ragged_assignment<float>();
  for (const bool bias : {false, true}) {
    for (const auto& [in, out] : {std::pair<Index, Index>{1, 1}, {33, 50}, {70, 97}}) {
      INFO("D " << in << ", F " << out << ", bias " << bias);
      const auto layer = random_layer<Layer>(routed_layer(in, out, bias), rng);
      const Matrix<float> x = random_normal<float>(rng, batch.tokens(), in);
      const Matrix<float> y = MergedExpert(layer, assignment).forward(x, batch);
      CHECK(bit_difference(y, forward_routed(layer, x, batch, assignment)) == "");
      CHECK(disagreement(y, mixture(layer, x, batch, assignment)) == "");
    }
  }
}

TEST_CASE("an expert that no weight chose does not matter, however it is", "[kept]") {
  Generator rng(85);
  auto layer = random_layer<MeoLayer<float>>(routed_layer(5, 7, true), rng);
  const Assignment<float> assignment = ragged_assignment<float>();
  const Sequences batch = Sequences::from_lengths(ragged_lengths);
  const Matrix<float> x = random_normal<float>(rng, batch.tokens(), 5);
  const Matrix<float> expected = MergedExpert(layer, assignment).forward(x, batch);
  CHECK(expected.topRows(2).isZero(0));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  layer.set_weight(2, Matrix<float>::Constant(7, 5, nan));  // of rows 4, with weight 0, and 5
  layer.set_weight(6, Matrix<float>::Constant(7, 5, nan));  // of row 5, with weight 0
  layer.set_bias(6, Vector<float>::Constant(7, nan));
  Matrix<float> infinite = x;
  infinite.topRows(2).setConstant(std::numeric_limits<float>::infinity());
  const Matrix<float> y = MergedExpert(layer, assignment).forward(infinite, batch);
  CHECK(bit_difference(y.topRows(11), expected.topRows(11)) == "");
  CHECK(y.bottomRows(12).array().isNaN().all());
}

TEST_CASE("an expert that is kept is as it was merged, until it is merged again", "[kept]") {
  Generator rng(86);
  auto layer = random_layer<MeoLayer<double>>(routed_layer(9, 30, true), rng);
  const Assignment<double> assignment = ragged_assignment<double>();
  const Matrix<double> x = random_normal<double>(rng, 4, 9);
  const auto expected = [&](Index row) { return MergedExpert(layer, assignment, row).forward(x); };

  MergedExpert<double> kept(layer, assignment, 3);
  const Matrix<double> before = kept.forward(x);
  layer.set_weight(1, random_normal<double>(rng, 30, 9));
  CHECK(bit_difference(kept.forward(x), before) == "");
  kept.merge(layer, kept.assignment());  // by the same decision
  CHECK(bit_difference(kept.forward(x), expected(3)) == "");
  CHECK_FALSE(kept.forward(x) == before);
  kept.merge(layer, assignment);  // more rows
  CHECK(kept.rows() == 6);
  CHECK(bit_difference(kept.linear(5).forward(x), expected(5)) == "");
  kept.merge(layer, kept.assignment(), 5);  // one of its own
  CHECK(kept.rows() == 1);
  CHECK(bit_difference(kept.forward(x), expected(5)) == "");
  CHECK(kept.assignment().experts == std::vector<Index>{0, 1, 2, 3, 4, 5, 7, 8, 9, 10});

  for (const auto& [in_features, out_features, bias] :
       {std::tuple{4, 30, true}, {4, 7, true}, {4, 7, false}}) {
    const auto other = random_layer<MoeLayer<double>>(routed_layer(in_features, out_features, bias), rng);
    kept.merge(other, assignment);
    CHECK(kept.in_features() == in_features);
    CHECK(kept.out_features() == out_features);
    CHECK(kept.linear().has_bias() == bias);
    const Matrix<double> of_other = MergedExpert(other, assignment, 4).forward(x.leftCols(4));
    CHECK(bit_difference(kept.linear(4).forward(x.leftCols(4)), of_other) == "");
  }

  // Token attention comes and goes with the layer.
  LayerOptions attentive = routed_layer(9, 30, true);
  attentive.routing.level = Level::token;
  attentive.routing.reduce_factor = 2;
  auto with_attention = random_layer<MeoLayer<double>>(attentive, rng);
  with_attention.token_attention().up().set_bias(random_normal<double>(rng, 9, 1));
  kept.merge(with_attention, assignment, 3);
  CHECK_FALSE(kept.forward(x) == kept.linear().forward(x));
  kept.merge(layer, assignment, 3);
  CHECK(bit_difference(kept.forward(x), expected(3)) == "");
}

TEST_CASE("kept experts have the same bits with any number of threads, alone or in a batch", "[kept]") {
  Generator rng(87);
  const auto layer = random_layer<MeoLayer<float>>(routed_layer(33, 150, true), rng);
  const Sequences batch = Sequences::from_lengths(ragged_lengths);
  const Matrix<float> x = random_normal<float>(rng, batch.tokens(), 33);
  const Assignment<float> assignment = ragged_assignment<float>();
  const Matrix<float> expected = forward_routed(layer, x, batch, assignment);
  with_threads([&](Index threads) {
    INFO(threads << " threads");
    const MergedExpert kept(layer, assignment);
    CHECK(bit_difference(kept.forward(x, batch), expected) == "");
    for (Index t = batch.begin(5); t < batch.tokens(); ++t)
      CHECK(bit_difference(kept.linear(5).forward(x.row(t)), expected.row(t)) == "");
  });
}

TEST_CASE("copies and moved kept experts compute what the original did", "[kept]") {
  Generator rng(88);
  const auto layer = random_layer<MeoLayer<float>>(routed_layer(9, 30, true), rng);
  const Assignment<float> assignment = ragged_assignment<float>();
  const Matrix<float> x = random_normal<float>(rng, 4, 9);
  MergedExpert<float> kept(layer, assignment, 3), copy = kept;
  const Matrix<float> expected = kept.forward(x);
  const MergedExpert<float> moved = std::move(kept);
  CHECK(bit_difference(moved.forward(x), expected) == "");
  CHECK_FALSE(moved.empty());
  CHECK(kept.empty());
  const auto says_so = [](auto&& f) {
    return error_lacks<std::logic_error>(f, {"expected one to use, got one that was moved from"});
  };
  CHECK(says_so([&] { static_cast<void>(kept.forward(x)); }) == "");
  CHECK(says_so([&] { static_cast<void>(kept.rows()); }) == "");
  CHECK(says_so([&] { static_cast<void>(kept.in_features()); }) == "");
  CHECK(says_so([&] { static_cast<void>(kept.linear()); }) == "");
  CHECK(says_so([&] { static_cast<void>(kept.assignment()); }) == "");
  kept.merge(layer, assignment, 4);
  copy = kept;
  CHECK(bit_difference(copy.forward(x), MergedExpert(layer, assignment, 4).forward(x)) == "");
  auto gone = layer;
  const auto taken = std::move(gone);
  CHECK(error_lacks<std::logic_error>([&] { kept.merge(gone, assignment); },
                                      {"layer: expected one to use, got one that was moved from"}) == "");
}

TEST_CASE("what cannot be merged is refused and changes nothing", "[kept]") {
  Generator rng(89);
  const auto layer = random_layer<MeoLayer<float>>(routed_layer(5, 7, true), rng);
  const Assignment<float> assignment = ragged_assignment<float>();
  MergedExpert<float> kept(layer, assignment, 3);
  const Matrix<float> x = random_normal<float>(rng, 3, 5), before = kept.forward(x);
  const auto refused = [&](auto&& f, std::initializer_list<std::string> parts) {
    const std::string error = error_lacks<Invalid>(f, parts);
    return error != "" ? error : bit_difference(kept.forward(x), before);
  };
  CHECK(refused([&] { kept.merge(layer, {.num_experts = num_experts, .top_k = 1}); },
                {"routing: expected at least 1 row, got 0"}) == "");
  CHECK(refused([&] { kept.merge(layer, assignment, 6); }, {"row: expected 0 to 5, got 6"}) == "");
  CHECK(refused([&] { kept.merge(layer, assignment, -1); }, {"row: expected 0 to 5, got -1"}) == "");
  CHECK(refused([&] { static_cast<void>(kept.linear(1)); }, {"row: expected 0 to 0, got 1"}) == "");
  Assignment<float> wrong = assignment;
  wrong.num_experts = 4;
  CHECK(refused([&] { kept.merge(layer, wrong); }, {"expected num_experts = 12, got 4"}) == "");
  wrong = assignment;
  wrong.weights[4] = std::numeric_limits<float>::infinity();
  CHECK(refused([&] { kept.merge(layer, wrong, 3); }, {"expected finite weights"}) == "");
}

TEST_CASE("what kept experts are given has to fit", "[kept]") {
  Generator rng(90);
  const auto layer = random_layer<MeoLayer<float>>(routed_layer(5, 7, true), rng);
  const MergedExpert<float> one(layer, ragged_assignment<float>(), 3), all(layer, ragged_assignment<float>());
  const Sequences batch = Sequences::from_lengths(ragged_lengths);
  Workspace<float> workspace;
  // x (5 columns) and y (7) side by side, which may be.
  Matrix<float> wide = random_normal<float>(rng, batch.tokens(), 12);
  const Matrix<float> before = wide;
  const auto refused = [&](const MergedExpert<float>& kept, const Sequences* sequences, Index x_columns,
                           Index y_begin, Index y_columns, std::initializer_list<std::string> parts) {
    const std::string error = error_lacks<Invalid>(
        [&] {
          kept.forward(wide.leftCols(x_columns), {.sequences = sequences},
                       wide.middleCols(y_begin, y_columns), workspace);
        },
        parts);
    return error != "" ? error : bit_difference(wide, before);
  };
  const Sequences few = Sequences::uniform(6, 2);
  CHECK(refused(one, nullptr, 4, 5, 7, {"x: expected in_features = 5 columns, got 4"}) == "");
  CHECK(refused(one, nullptr, 5, 6, 6, {"y", "expected 23 x 7, got 23 x 6"}) == "");
  CHECK(refused(one, nullptr, 5, 4, 7, {"y: expected memory that does not overlap x"}) == "");
  CHECK(refused(one, &batch, 5, 5, 7, {"sequences: expected 1, one for each merged row, got 6"}) == "");
  CHECK(refused(all, nullptr, 5, 5, 7, {"sequences: expected 6, one for each merged row, got 1"}) == "");
  CHECK(refused(all, &few, 5, 5, 7, {"sequences: expected 23 tokens in all, as x has rows, got 12"}) == "");
  all.forward(wide.leftCols(5), {.sequences = &batch}, wide.rightCols(7), workspace);
  CHECK(bit_difference(wide.rightCols(7), all.forward(before.leftCols(5), batch)) == "");
  CHECK(bit_difference(wide.leftCols(5), before.leftCols(5)) == "");
  // No tokens at all.
  CHECK(one.forward(Matrix<float>(0, 5)).rows() == 0);
}

TEST_CASE("a context that kept experts have worked in is no forward's of a layer", "[kept]") {
  Generator rng(91);
  const auto layer = random_layer<MeoLayer<float>>(routed_layer(5, 7, true), rng);
  const Assignment<float> assignment = ragged_assignment<float>();
  const Sequences batch = Sequences::from_lengths(ragged_lengths);
  const Matrix<float> x = random_normal<float>(rng, batch.tokens(), 5);
  Matrix<float> y(batch.tokens(), 7), dx(batch.tokens(), 5);
  Context<float> context;
  layer.forward_routed(x, {.sequences = &batch}, assignment, y, context);
  MergedExpert(layer, assignment).forward(x, {.sequences = &batch}, y, context);
  MeoLayer<float> gradients(layer.options());
  std::vector<float> d_weights(assignment.weights.size());
  CHECK(error_lacks<Invalid>(
            [&] {
              layer.backward_routed(x, {.sequences = &batch}, assignment, context, y, gradients, dx,
                                    d_weights);
            },
            {"context: expected what a forward leaves"}) == "");
}

// ---------------------------------------------------------------------------------------------------------------
// Blocks

FeedForwardOptions kept_block(bool gated, bool shared_gate, Level level = Level::sequence) {
  FeedForwardOptions options = small_block(level, 9, 30, gated, shared_gate, 3);
  options.merge_order = MergeOrder::merge_first;
  return options;
}

TEMPLATE_TEST_CASE("a kept block has the bits of a block that merges first", "[kept]", float, double) {
  using S = TestType;
  using Block = FeedForward<MeoLayer<S>, AnyActivation>;
  Generator rng(92);
  const Sequences batch = Sequences::from_lengths({7, 3, 1});
  for (const Level level : {Level::token, Level::sequence}) {
    for (const bool gated : {false, true}) {
      for (const bool shared_gate : {false, true}) {
        INFO(to_string(level) << " level, gated " << gated << ", shared gate " << shared_gate);
        Block block(kept_block(gated, shared_gate, level), AnyActivation::Kind::silu);
        block.initialize(rng);
        if (level == Level::token) block.up().token_attention().up().set_bias(random_normal<S>(rng, 9, 1));
        const Matrix<S> x = random_normal<S>(rng, batch.tokens(), 9);
        FeedForwardWorkspace<S> workspace, other;
        Matrix<S> expected(batch.tokens(), 9), y(batch.tokens(), 9);
        block.forward(x, {.sequences = &batch}, expected, workspace);
        MergedFeedForward kept(block, workspace);
        CHECK(kept.rows() == 3);
        CHECK(kept.features() == 9);
        CHECK(kept.hidden_features() == 30);
        CHECK(kept.gated() == gated);
        kept.forward(x, {.sequences = &batch}, y, other);
        CHECK(bit_difference(y, expected) == "");
        CHECK(bit_difference(kept.forward(x, batch), expected) == "");
        // One row, by a context.
        FeedForwardContext<S> context;
        block.forward(x, {.sequences = &batch}, y, context);
        kept.merge(block, context, 1);
        CHECK(bit_difference(kept.forward(x.middleRows(7, 3)), expected.middleRows(7, 3)) == "");
        // A block of another activation, gated where this one is not.
        Block other_block(kept_block(!gated, shared_gate, level), AnyActivation::Kind::relu);
        other_block.initialize(rng);
        other_block.forward(x, {.sequences = &batch}, y, context);
        kept.merge(other_block, context);
        CHECK(kept.gated() != gated);
        CHECK(bit_difference(kept.forward(x, batch), y) == "");
        if (!shared_gate) continue;
        MergedFeedForward by_assignment(block, workspace.up.routing, 0);
        CHECK(bit_difference(by_assignment.forward(x.topRows(7)), expected.topRows(7)) == "");
        kept.merge(block, workspace.up.routing);
        CHECK(bit_difference(kept.forward(x, batch), expected) == "");
        by_assignment.merge(other_block, context.up.routing);
        CHECK(bit_difference(by_assignment.forward(x, batch), y) == "");
      }
    }
  }
}

TEST_CASE("a kept block is that of MoE layers with gates of their own, too", "[kept]") {
  // Integers, so that all of it is exact.
  using Block = FeedForward<MoeLayer<double>, Relu>;
  Generator rng(93);
  FeedForwardOptions options = kept_block(true, false);
  options.top_k = 1;
  Block block(options);
  for (auto* const projection : {&block.up(), &block.gate_up(), &block.down()}) {
    for (Index e = 0; e < 4; ++e) {
      projection->set_weight(
          e, random_integers<double>(rng, projection->out_features(), projection->in_features(), 3));
      projection->set_bias(e, random_integers<double>(rng, projection->out_features(), 1, 3));
    }
    projection->gate().set_weight(random_normal<double>(rng, projection->in_features(), 4));
  }
  const Sequences batch = Sequences::from_lengths({7, 3, 1});
  const Matrix<double> x = random_integers<double>(rng, batch.tokens(), 9, 3);
  FeedForwardWorkspace<double> workspace;
  Matrix<double> y(batch.tokens(), 9);
  block.forward(x, {.sequences = &batch}, y, workspace);
  CHECK(MergedFeedForward(block, workspace).forward(x, batch) == y);
}

TEST_CASE("a kept block's rows without pairs give zeros", "[kept]") {
  Generator rng(94);
  FeedForward<MeoLayer<float>> block(kept_block(true, true));
  block.initialize(rng);
  const Assignment<float> assignment{
      .rows = 2, .num_experts = 4, .begins = {0, 0, 1}, .experts = {2}, .weights = {0.5f}};
  const MergedFeedForward kept(block, assignment);
  const Matrix<float> y = kept.forward(random_normal<float>(rng, 5, 9), Sequences::from_lengths({3, 2}));
  CHECK(y.topRows(3).isZero(0));
  CHECK((y.bottomRows(2).array() != 0).all());
}

TEST_CASE("what a kept block cannot be made of or given is refused", "[kept]") {
  Generator rng(95);
  using Block = FeedForward<MeoLayer<float>>;
  Block separate(kept_block(false, false)), shared(kept_block(false, true));
  separate.initialize(rng);
  shared.initialize(rng);
  const FeedForward<MoeLayer<float>> of_blocks(kept_block(false, true));
  FeedForwardWorkspace<float> workspace;
  const Matrix<float> x = random_normal<float>(rng, 5, 9);
  Matrix<float> y(5, 9);
  shared.forward(x, {}, y, workspace);
  const Routing<float> routing = workspace.up.routing;
  MergedFeedForward kept(shared, routing);
  const auto refused = [&](auto&& f, std::initializer_list<std::string> parts) {
    const std::string error = error_lacks<Invalid>(f, parts);
    return error != "" ? error : bit_difference(kept.forward(x), y);
  };
  CHECK(refused([&] { kept.merge(separate, routing); }, {"routing", "got shared_gate = false"}) == "");
  CHECK(refused([&] { kept.merge(separate, workspace); }, {"routing: expected 1 rows, got 0"}) == "");
  CHECK(refused([&] { MergedFeedForward<float> other(of_blocks, routing); },
                {"block", "MoE block with shared_gate = true"}) == "");
  CHECK(refused([&] { kept.merge(shared, routing, 1); }, {"row: expected 0 to 0, got 1"}) == "");
  CHECK(refused([&] { static_cast<void>(kept.gate_up()); }, {"gate_up", "got gated = false"}) == "");
  Matrix<float> wide = random_normal<float>(rng, 5, 20);
  const Matrix<float> before = wide;
  const auto forward = [&](Index columns, Index y_begin, Index y_columns) {
    kept.forward(wide.leftCols(columns), {}, wide.middleCols(y_begin, y_columns), workspace);
  };
  CHECK(refused([&] { forward(8, 10, 9); }, {"x: expected in_features = 9 columns, got 8"}) == "");
  CHECK(refused([&] { forward(9, 10, 8); }, {"y (rows of x by features): expected 5 x 9, got 5 x 8"}) == "");
  CHECK(refused([&] { forward(9, 8, 9); }, {"y: expected memory that does not overlap x"}) == "");
  CHECK(bit_difference(wide, before) == "");

  const MergedFeedForward<float> moved = std::move(kept);
  CHECK(kept.empty());
  CHECK(bit_difference(moved.forward(x), y) == "");
  CHECK(error_lacks<std::logic_error>([&] { static_cast<void>(kept.forward(x)); },
                                      {"expected one to use, got one that was moved from"}) == "");
  kept = moved;
  CHECK(bit_difference(kept.forward(x), y) == "");
  const Block taken = std::move(shared);
  CHECK(error_lacks<std::logic_error>([&] { kept.merge(shared, routing); },
                                      {"block: expected one to use, got one that was moved from"}) == "");
}

TEMPLATE_TEST_CASE("kept experts of small storage are the merged ones, stored", "[kept]", Eigen::bfloat16,
                   Eigen::half, std::int8_t) {
  Generator rng(91);
  const Sequences batch = Sequences::from_lengths(ragged_lengths);
  const Assignment<float> assignment = ragged_assignment<float>();
  for (const bool bias : {false, true}) {
    for (const auto& size : {std::pair<Index, Index>{1, 1}, {33, 70}, {70, 2}}) {
      const Index in = size.first, out = size.second;
      INFO(in << " to " << out << " features, bias " << bias);
      const auto layer = random_layer<MeoLayer<float>>(routed_layer(in, out, bias), rng);
      const MeoLayer<float, Eigen::Dynamic, TestType> small(layer);
      const Matrix<float> x = random_normal<float>(rng, batch.tokens(), in);
      const auto check = [&](const auto& of) {
        const MergedExpert<float> scalars(of, assignment);
        MergedExpert<float, TestType> kept(of, assignment, 1);
        kept.merge(of, assignment);
        Matrix<float> expected = Matrix<float>::Zero(x.rows(), out);
        for (Index row = 0; row < kept.rows(); ++row) {
          Linear<float, TestType> stored(in, out, bias);
          stored.set_weight(scalars.linear(row).weight());
          if (bias) stored.set_bias(scalars.linear(row).bias());
          CHECK(bit_difference(kept.linear(row).weight(), stored.weight()) == "");
          if (bias) CHECK(bit_difference(kept.linear(row).bias(), stored.bias()) == "");
          if (assignment.row_experts(row).empty()) continue;
          expected.middleRows(batch.begin(row), batch.length(row)) =
              stored.forward(x.middleRows(batch.begin(row), batch.length(row)));
        }
        CHECK(bit_difference(kept.forward(x, batch), expected) == "");
      };
      check(layer);
      check(small);
    }
  }
}

TEST_CASE("of experts kept in 8 bits an output with a weight that is not finite is NaN, and no other",
          "[kept]") {
  Generator rng(92);
  auto layer = random_layer<MeoLayer<float>>(routed_layer(9, 30, false), rng);
  for (const float value :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Matrix<float> weight = layer.weight(3);
    weight(17, 4) = value;
    layer.set_weight(3, weight);
    const MergedExpert<float, std::int8_t> kept(layer, ragged_assignment<float>(), 1);
    const Matrix<float> y = kept.forward(random_normal<float>(rng, 2, 9));
    for (Index out = 0; out < 30; ++out) CHECK(std::isnan(y(1, out)) == (out == 17));
  }
}

TEST_CASE("a kept block of small storage is its projections of small storage", "[kept]") {
  Generator rng(93);
  FeedForward<MeoLayer<float>> block(small_block(Level::sequence, 9, 20, true, true));
  block.initialize(rng);
  const Matrix<float> x = random_normal<float>(rng, 5, 9);
  Matrix<float> y(5, 9);
  FeedForwardWorkspace<float> workspace;
  block.forward(x, {}, y, workspace);
  const MergedFeedForward<float, Gelu, Eigen::bfloat16> kept(block, workspace);
  const MergedFeedForward scalars(block, workspace);
  const auto stored = [](const Linear<float>& from) {
    Linear<float, Eigen::bfloat16> to(from.in_features(), from.out_features());
    to.set_weight(from.weight());
    to.set_bias(from.bias());
    return to;
  };
  Matrix<float> hidden = stored(scalars.up().linear()).forward(x);
  const Matrix<float> gate_hidden = stored(scalars.gate_up().linear()).forward(x);
  activate<float>(Gelu(), hidden, hidden);
  hidden.array() *= gate_hidden.array();
  CHECK(bit_difference(kept.forward(x), stored(scalars.down().linear()).forward(hidden)) == "");
}

}  // namespace merged_expert_test
}  // namespace

// Experts that every row has beside those that it selects, in layers and blocks of both kinds.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/merged_expert.hpp>
#include <meo/layers/merged_feed_forward.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/routing/routing_statistics.hpp>
#include <meo/training/parameters.hpp>

#include "layers/differences.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/random.hpp"

namespace {
namespace shared_experts_test {

using namespace meo;
using namespace meo::test;

using Moe = MoeLayer<double>;
using Meo = MeoLayer<double>;

constexpr Index features = 5, out_features = 3, num_experts = 4;

/// Of four sequences, of which one has no tokens.
const Sequences batch = Sequences::from_lengths({4, 1, 0, 3});

struct Router {
  std::string name;
  Index top_k;
  RoutingOptions routing;
};

/// Of which the last two leave rows without experts.
std::vector<Router> routers() {
  return {{"top-K", 2, {.loss_coefficient = 0.25}},
          {"all of one", 1, {.loss_coefficient = 0.25}},
          {"scaled sigmoid", 2, {.scores = {.function = ScoreFunction::sigmoid, .scale = 2.5}}},
          {"capacity", 1, {.scores = {.function = ScoreFunction::softmax}, .selection = {.capacity = 1}}},
          {"expert choice",
           1,
           {.scores = {.function = ScoreFunction::softmax},
            .selection = {.method = SelectionMethod::expert_choice, .capacity = 1}}}};
}

LayerOptions layer_options(const Router& router, Level level, Index count, SharedWeight weight) {
  LayerOptions options{.in_features = features,
                       .out_features = out_features,
                       .num_experts = num_experts,
                       .top_k = router.top_k,
                       .shared_experts = {.count = count, .weight = weight},
                       .routing = router.routing};
  options.routing.level = level;
  options.routing.segment_tokens = 2;
  options.routing.reduce_factor = 2;
  return options;
}

FeedForwardOptions block_options(const Router& router, Index count, SharedWeight weight, bool shared_gate) {
  return {.features = features,
          .hidden_features = 6,
          .num_experts = num_experts,
          .top_k = router.top_k,
          .shared_experts = {.count = count, .weight = weight},
          .gated = true,
          .shared_gate = shared_gate,
          .routing = router.routing};
}

template <class Model>
Model random_model(const typename Model::Options& options, Generator& rng) {
  Model model(options);
  model.initialize(rng);
  return model;
}

/// x W_iᵀ + b_i of one expert of a layer.
template <class Layer>
Matrix<double> expert_of(const Layer& layer, Index expert, const Matrix<double>& x) {
  return (x * layer.weight(expert).transpose()).rowwise() + layer.bias(expert).transpose();
}

/// The rows of a router's decision, as tokens have them. rows: of sequences or of tokens.
Matrix<double> of_tokens(const Matrix<double>& rows) {
  if (rows.rows() == batch.tokens()) return rows;
  Matrix<double> all(batch.tokens(), rows.cols());
  for (Index b = 0; b < batch.size(); ++b)
    all.middleRows(batch.begin(b), batch.length(b)).rowwise() = rows.row(b);
  return all;
}

/// A layer without shared experts, but with the same gate.
template <class Layer>
Layer without_shared(const Layer& layer) {
  LayerOptions options = layer.options();
  options.shared_experts = {};
  Layer routed(options);
  routed.gate().set_weight(layer.gate().weight());
  return routed;
}

TEMPLATE_TEST_CASE("shared experts are the last pairs of each row, and the gate does not know of them",
                   "[shared_experts]", Moe, Meo) {
  Generator rng(521);
  const Inputs<double> inputs{.sequences = &batch};
  for (const Router& router : routers()) {
    for (const SharedWeight weight : {SharedWeight::one, SharedWeight::sigmoid}) {
      INFO(router.name << ", weight " << static_cast<int>(weight));
      const auto layer = random_model<TestType>(layer_options(router, Level::sequence, 2, weight), rng);
      const Matrix<double> x = random_normal<double>(rng, batch.tokens(), features);
      Workspace<double> workspace, of_routed;
      const Routing<double>& routing = layer.route(x, inputs, workspace);
      const Routing<double>& routed = without_shared(layer).route(x, inputs, of_routed);
      REQUIRE(routing.rows == routed.rows);
      CHECK(routing.num_experts == num_experts + 2);
      CHECK(routing.size() == routed.size() + 2 * routed.rows);
      CHECK(routing.begins.empty() == routed.begins.empty());
      routing.check(routed.rows, num_experts + 2);
      for (Index row = 0; row < routed.rows; ++row) {
        const auto experts = routing.row_experts(row);
        const auto weights = routing.row_weights(row);
        const auto of_gate = routed.row_experts(row);
        const auto of_gate_weights = routed.row_weights(row);
        REQUIRE(experts.size() == of_gate.size() + 2);
        CHECK(std::equal(of_gate.begin(), of_gate.end(), experts.begin()));
        CHECK(std::equal(of_gate_weights.begin(), of_gate_weights.end(), weights.begin()));
        double expected = 1;
        if (weight == SharedWeight::sigmoid) {
          const Index tokens = batch.length(row);
          Vector<double> mean = Vector<double>::Zero(features);
          if (tokens > 0) mean = x.middleRows(batch.begin(row), tokens).colwise().mean().transpose();
          const double logit = layer.router().shared_expert_gate().weight().row(0).dot(mean);
          expected = 1 / (1 + std::exp(-logit));
        }
        for (std::size_t i = 0; i < 2; ++i) {
          CHECK(experts[of_gate.size() + i] == num_experts + Index(i));
          CHECK(weights[of_gate.size() + i] == Approx(expected).epsilon(1e-14));
        }
      }
      CHECK(routing.importance == routed.importance);
      CHECK(routing.load == routed.load);
      CHECK(routing.loss == routed.loss);
      RoutingStatistics statistics(num_experts), expected(num_experts);
      statistics.add(routing);
      expected.add(routed);
      for (Index e = 0; e < num_experts; ++e) {
        CHECK(statistics.count(e) == expected.count(e));
        CHECK(statistics.share(e) == expected.share(e));
      }
    }
  }
}

TEMPLATE_TEST_CASE("a layer adds its shared experts to the mixture, also where a row has no others",
                   "[shared_experts]", Moe, Meo) {
  Generator rng(522);
  const Inputs<double> inputs{.sequences = &batch};
  Index rows_without = 0;
  for (const Router& router : routers()) {
    for (const SharedWeight weight : {SharedWeight::one, SharedWeight::sigmoid}) {
      for (const Level level : {Level::sequence, Level::token}) {
        if (level == Level::token && TestType::Kind::has_token_attention) continue;
        for (const MergeOrder order : {MergeOrder::merge_first, MergeOrder::combine_outputs}) {
          INFO(router.name << ", weight " << static_cast<int>(weight) << ", " << to_string(level)
                           << " level, order " << static_cast<int>(order));
          LayerOptions options = layer_options(router, level, 1, weight);
          options.merge_order = order;
          const auto layer = random_model<TestType>(options, rng);
          const Matrix<double> x = random_normal<double>(rng, batch.tokens(), features);
          Matrix<double> y(batch.tokens(), out_features), routed = y;
          Workspace<double> workspace, other;
          const Routing<double>& routing = layer.forward(x, inputs, y, workspace);
          const Matrix<double> gates = of_tokens(routing.dense());
          Matrix<double> expected = Matrix<double>::Zero(y.rows(), y.cols());
          for (Index e = 0; e <= num_experts; ++e)
            expected += gates.col(e).asDiagonal() * expert_of(layer, e, x);
          CHECK(disagreement_in_max_norm(y, expected, 1e-14) == "");
          for (Index row = 0; row < routing.rows; ++row) rows_without += routing.row_experts(row).size() == 1;
          layer.forward_routed(x, inputs, routing, routed, other);
          CHECK(bit_difference(routed, y) == "");
          if (level == Level::token) continue;
          const MergedExpert kept(layer, routing);
          CHECK(disagreement_in_max_norm(kept.forward(x, batch), expected, 1e-14) == "");
        }
      }
    }
  }
  CHECK(rows_without > 0);
}

TEMPLATE_TEST_CASE("gradients of a layer with shared experts are differences", "[shared_experts][gradient]",
                   Moe, Meo) {
  Generator rng(523);
  const Inputs<double> inputs{.sequences = &batch};
  for (const Router& router : routers()) {
    for (const SharedWeight weight : {SharedWeight::one, SharedWeight::sigmoid}) {
      for (const Level level : {Level::token, Level::sequence}) {
        INFO(router.name << ", weight " << static_cast<int>(weight) << ", " << to_string(level) << " level");
        auto layer = random_model<TestType>(layer_options(router, level, 2, weight), rng);
        check_gradients(layer, features, out_features, inputs, rng);
      }
    }
  }
}

TEMPLATE_TEST_CASE("so are those of tasks that share a decision, of noise and of blocks",
                   "[shared_experts][gradient]", Moe, Meo) {
  Generator rng(524);
  const std::vector<Index> tasks{0, 1, 1, 0};
  const Sequences descriptions = Sequences::from_lengths({2, 1});
  const Matrix<double> embeddings = random_normal<double>(rng, 3, 6);
  const Matrix<double> noise = random_normal<double>(rng, 4, num_experts);
  Inputs<double> inputs{.sequences = &batch,
                        .task_embeddings = embeddings,
                        .descriptions = &descriptions,
                        .task_of_sequence = tasks};
  for (const Router& router : {routers()[0], routers()[1]}) {
    INFO(router.name);
    LayerOptions options = layer_options(router, Level::task, 2, SharedWeight::sigmoid);
    options.routing.task_features = 6;
    auto layer = random_model<TestType>(options, rng);
    inputs.noise = {};
    check_gradients(layer, features, out_features, inputs, rng);
    inputs.noise = Noise<double>(noise);
    check_gradients(layer, features, out_features, inputs, rng);
  }
  // Rows of one merge, whose gates see different means.
  const Inputs<double> of_block{.sequences = &batch};
  LayerOptions options =
      layer_options({"", 1, {.scores = {.bias = true}}}, Level::sequence, 1, SharedWeight::sigmoid);
  auto layer = random_model<TestType>(options, rng);
  layer.gate().set_bias(9 * Vector<double>::Unit(num_experts, 1));
  layer.router().shared_expert_gate().set_zero();
  check_gradients(layer, features, out_features, of_block, rng);
  for (const Router& router : {routers()[2], routers()[4]}) {
    for (const bool shared_gate : {false, true}) {
      INFO(router.name << ", shared gate " << shared_gate);
      auto block = random_model<FeedForward<TestType>>(
          block_options(router, 2, SharedWeight::sigmoid, shared_gate), rng);
      check_gradients(block, features, features, of_block, rng);
    }
  }
}

TEST_CASE("no gradient goes through the decision of a first segment, also to the shared experts' weight",
          "[shared_experts][gradient]") {
  Generator rng(525);
  const Sequences segments = Sequences::from_lengths({2, 1});
  const auto layer =
      random_model<Moe>(layer_options(routers()[0], Level::segment, 1, SharedWeight::sigmoid), rng);
  const Matrix<double> x = random_normal<double>(rng, 3, features), dy = random_normal<double>(rng, 3, 3);
  Matrix<double> y(3, 3), dx(3, features);
  Moe gradients(layer.options());
  Context<double> context;
  layer.forward(x, {.sequences = &segments}, y, context);
  layer.backward(x, {.sequences = &segments}, context, dy, gradients, dx);
  CHECK(gradients.router().shared_expert_gate().weight().isZero(0));
  CHECK(!gradients.weight(num_experts).isZero(0));
}

TEST_CASE("a block's shared expert of S times the hidden features is S shared experts", "[shared_experts]") {
  Generator rng(526);
  for (const SharedWeight weight : {SharedWeight::one, SharedWeight::sigmoid}) {
    RoutingOptions routing{.level = Level::token};
    FeedForwardOptions options = block_options({"", 2, routing}, 2, weight, true);
    options.bias = false;
    const auto block = random_model<FeedForward<Moe>>(options, rng);
    const Matrix<double> x = random_normal<double>(rng, batch.tokens(), features);
    const auto output = block.forward(x, batch);
    const auto gelu = [](double value) { return Gelu()(value); };
    const auto block_of = [&](const Matrix<double>& up, const Matrix<double>& gate_up,
                              const Matrix<double>& down) -> Matrix<double> {
      const Matrix<double> hidden =
          (x * up.transpose()).unaryExpr(gelu).cwiseProduct(x * gate_up.transpose());
      return hidden * down.transpose();
    };
    Matrix<double> up(12, features), gate_up(12, features), down(features, 12);
    up << block.up().weight(4), block.up().weight(5);
    gate_up << block.gate_up().weight(4), block.gate_up().weight(5);
    down << block.down().weight(4), block.down().weight(5);
    Matrix<double> expected = block_of(up, gate_up, down);
    if (weight == SharedWeight::sigmoid) {
      const Vector<double> logits = x * block.up().router().shared_expert_gate().weight().transpose();
      const Vector<double> weights = logits.unaryExpr([](double l) { return 1 / (1 + std::exp(-l)); });
      expected = (weights.asDiagonal() * expected).eval();
    }
    const Matrix<double> gates = output.up.dense();
    for (Index e = 0; e < num_experts; ++e)
      expected += gates.col(e).asDiagonal() *
                  block_of(block.up().weight(e), block.gate_up().weight(e), block.down().weight(e));
    CHECK(disagreement_in_max_norm(output.y, expected, 1e-14) == "");
  }
}

TEST_CASE("a merged block's base weights are kept, and small storage has them", "[shared_experts]") {
  Generator rng(527);
  const auto block =
      random_model<FeedForward<Meo>>(block_options(routers()[0], 1, SharedWeight::one, true), rng);
  const Matrix<double> x = random_normal<double>(rng, batch.tokens(), features);
  FeedForwardWorkspace<double> workspace;
  Matrix<double> y(x.rows(), features);
  block.forward(x, {.sequences = &batch}, y, workspace);
  const MergedFeedForward kept(block, workspace);
  CHECK(disagreement_in_max_norm(kept.forward(x, batch), y, 1e-14) == "");

  const auto layer =
      random_model<MoeLayer<float>>(layer_options(routers()[0], Level::token, 2, SharedWeight::sigmoid), rng);
  const MoeLayer<float, Eigen::Dynamic, Eigen::bfloat16> small(layer);
  MoeLayer<float> rounded = layer;
  for (Index e = 0; e < num_experts + 2; ++e) rounded.set_weight(e, small.weight(e));
  const Matrix<float> tokens = x.cast<float>();
  CHECK(bit_difference(small.forward(tokens).y, rounded.forward(tokens).y) == "");
  CHECK(bit_difference(small.router().shared_expert_gate().weight(),
                       layer.router().shared_expert_gate().weight()) == "");
}

TEMPLATE_TEST_CASE("from a dense layer shared experts start at zero, or around it", "[shared_experts]", Moe,
                   Meo) {
  Generator rng(528);
  auto layer =
      random_model<TestType>(layer_options(routers()[0], Level::sequence, 2, SharedWeight::sigmoid), rng);
  const Matrix<double> weight = random_normal<double>(rng, out_features, features),
                       x = random_normal<double>(rng, batch.tokens(), features);
  const Vector<double> bias = random_vector<double>(rng, out_features);
  const Matrix<double> dense = (x * weight.transpose()).rowwise() + bias.transpose();
  layer.initialize_from_dense(weight, bias);
  CHECK(disagreement_in_max_norm(layer.forward(x, batch).y, dense, 1e-14) == "");
  CHECK(layer.router().shared_expert_gate().weight().isZero(0));
  layer.initialize_from_dense(weight, bias, rng, {.router_spread = 1, .expert_spread = 0});
  CHECK(disagreement_in_max_norm(layer.forward(x, batch).y, dense, 1e-14) == "");
  CHECK(!layer.router().shared_expert_gate().weight().isZero(0));
  layer.initialize_from_dense(weight, bias, rng, {.router_spread = 0, .expert_spread = 0.25});
  const double most = 0.25 * std::sqrt(weight.squaredNorm() / double(weight.size()));
  for (const Index e : {num_experts, num_experts + 1}) {
    CHECK(layer.weight(e).cwiseAbs().maxCoeff() <= most);
    CHECK(layer.weight(e).cwiseAbs().maxCoeff() > most / 2);
    CHECK(layer.bias(e).isZero(0));
  }
  CHECK(layer.weight(num_experts) != layer.weight(num_experts + 1));
}

/// The names of a file's tensors that say `shared`.
std::set<std::string> shared_names(const io::SafetensorsReader& file) {
  std::set<std::string> shared;
  for (const std::string& name : file.names()) {
    if (name.find("shared") != std::string::npos) shared.insert(name);
  }
  return shared;
}

template <class Model>
std::vector<std::byte> bytes_of(const Model& model) {
  io::SafetensorsWriter writer;
  io::save(model, writer, "");
  return writer.bytes();
}

template <class Model>
void check_file(const Model& saved, const std::set<std::string>& names) {
  const std::vector<std::byte> bytes = bytes_of(saved);
  const io::SafetensorsReader file(bytes, "f");
  CHECK(shared_names(file) == names);
  io::check_shapes<Model>(saved.options(), file, "");
  Model loaded(saved.options());
  io::load(loaded, file, "");
  CHECK(bytes_of(loaded) == bytes);
  typename Model::Options options = saved.options();
  options.shared_experts = {};
  Model other(options);
  CHECK(error_lacks<io::Error>([&] { io::load(other, file, ""); },
                               {"shared", "is no parameter of what is loaded"}) == "");
  const std::vector<std::byte> without = bytes_of(other);
  CHECK(error_lacks<io::Error>([&] { io::load(loaded, io::SafetensorsReader(without, "f"), ""); },
                               {"shared"}) == "");
}

TEST_CASE("files have shared experts apart from the others", "[shared_experts]") {
  Generator rng(529);
  const LayerOptions options = layer_options(routers()[0], Level::sequence, 2, SharedWeight::sigmoid);
  check_file(random_model<Moe>(options, rng),
             {"shared_expert_gate.weight", "shared_experts.0.dense.weight", "shared_experts.0.dense.bias",
              "shared_experts.1.dense.weight", "shared_experts.1.dense.bias"});
  const auto merged = random_model<Meo>(options, rng);
  check_file(merged, {"shared_expert_gate.weight", "shared_weight", "shared_bias"});
  const LayerOptions of_weight_one = layer_options(routers()[0], Level::sequence, 1, SharedWeight::one);
  check_file(random_model<Moe>(of_weight_one, rng),
             {"shared_experts.0.dense.weight", "shared_experts.0.dense.bias"});
  check_file(random_model<Meo>(of_weight_one, rng), {"shared_weight", "shared_bias"});
  const std::vector<std::byte> bytes = bytes_of(merged);
  const io::SafetensorsReader file(bytes, "f");
  file.check_shape("weight", {num_experts, out_features, features});
  file.check_shape("shared_weight", {2, out_features, features});
  CHECK(file.read<double>("shared_weight")[out_features * features] == merged.weight(num_experts + 1)(0, 0));
  CHECK(file.read<double>("shared_bias")[out_features] == merged.bias(num_experts + 1)(0));
  check_file(random_model<FeedForward<Meo>>(block_options(routers()[0], 1, SharedWeight::one, true), rng),
             {"up.shared_weight", "up.shared_bias", "gate_up.shared_weight", "gate_up.shared_bias",
              "down.shared_weight", "down.shared_bias"});
  // Of a block with a router for each projection, one with a single router leaves out the others'.
  const auto apart =
      random_model<FeedForward<Moe>>(block_options(routers()[0], 1, SharedWeight::sigmoid, false), rng);
  FeedForward<Moe> block(block_options(routers()[0], 1, SharedWeight::sigmoid, true));
  const std::vector<std::byte> of_apart = bytes_of(apart);
  io::load(block, io::SafetensorsReader(of_apart, "f"), "");
  CHECK(block.up().router().shared_expert_gate().weight() ==
        apart.up().router().shared_expert_gate().weight());
  CHECK(block.down().weight(num_experts) == apart.down().weight(num_experts));
}

TEST_CASE("options and decisions of shared experts are checked", "[shared_experts]") {
  Generator rng(531);
  LayerOptions options = layer_options(routers()[0], Level::sequence, -1, SharedWeight::one);
  const auto error = [&] { return [&] { Moe layer(options); }; };
  CHECK(error_lacks<std::invalid_argument>(error(),
                                           {"shared_experts.count: expected at least 0", "got -1"}) == "");
  options.shared_experts.count = std::numeric_limits<Index>::max();
  CHECK(error_lacks<std::invalid_argument>(error(), {"shared_experts.count"}) == "");
  options.shared_experts = {.count = 1, .weight = static_cast<SharedWeight>(2)};
  CHECK(error_lacks<std::invalid_argument>(error(),
                                           {"shared_experts.weight: expected one or sigmoid, got 2"}) == "");
  options.shared_experts.weight = SharedWeight::one;
  Moe layer(options);
  CHECK(error_lacks<std::invalid_argument>([&] { layer.router().shared_expert_gate(); },
                                           {"shared_expert_gate", "got 1 of the weight one"}) == "");
  CHECK(parameters(layer).size() == 3);

  options.shared_experts.weight = SharedWeight::sigmoid;
  layer = random_model<Moe>(options, rng);
  CHECK(parameters(layer).size() == 4);
  const Matrix<double> x = random_normal<double>(rng, 3, features);
  Matrix<double> y(3, out_features), dx(3, features);
  Moe gradients(options);
  Context<double> context;
  layer.forward(x, {}, y, context);
  context.routing.top_k = 2;
  context.routing.experts.resize(2);
  context.routing.weights.resize(2);
  CHECK(error_lacks<std::invalid_argument>([&] { layer.backward(x, {}, context, y, gradients, dx); },
                                           {"routing: expected top_k = 3, got 2"}) == "");
  layer.router().shared_expert_gate().set_weight(
      Matrix<double>::Constant(1, features, std::numeric_limits<double>::infinity()));
  CHECK(error_lacks<std::domain_error>([&] { layer.forward(x); },
                                       {"finite logits", "row 0 for the shared experts"}) == "");
}

}  // namespace shared_experts_test
}  // namespace

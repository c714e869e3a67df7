// Layers and blocks with the routers of other models: outputs are those of the routing, gradients the
// differences of the loss.

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <meo/layers/feed_forward.hpp>
#include <meo/layers/layer_shape.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/routing/routing_statistics.hpp>

#include "layers/differences.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/random.hpp"

namespace {
namespace routers_test {

using namespace meo;
using namespace meo::test;

using S = double;
using Moe = MoeLayer<S>;
using Meo = MeoLayer<S>;

constexpr Index features = 5, out_features = 3, num_experts = 6;
const std::vector<Index> lengths{4, 1, 0, 6};

struct Family {
  std::string name;
  Index top_k;
  RoutingOptions routing;
};

std::vector<Family> families() {
  using enum ScoreFunction;
  return {
      {"gpt-oss", 2, {.scores = {.bias = true}}},
      {"OLMoE", 2, {.scores = {.function = softmax}}},
      {"OLMoE, normalised", 2, {.scores = {.function = softmax, .normalize = true}}},
      {"DeepSeek-V2",
       2,
       {.scores = {.function = softmax, .scale = 4}, .selection = {.groups = 3, .top_groups = 2}}},
      {"DeepSeek-V3",
       2,
       {.scores = {.function = sigmoid, .normalize = true, .scale = 2.5},
        .selection =
            {.groups = 3, .top_groups = 2, .group_score = GroupScore::two_largest, .correction_bias = true}}},
      {"Switch",
       1,
       {.scores = {.function = softmax},
        .selection = {.capacity_factor = 1.25},
        .losses = {.share_coefficient = 0.5}}},
      {"ST-MoE",
       2,
       {.scores = {.function = softmax, .normalize = true},
        .selection = {.capacity = 2},
        .losses = {.share_coefficient = 0.5, .z_coefficient = 0.25}}},
      {"expert choice",
       2,
       {.scores = {.function = softmax},
        .selection = {.method = SelectionMethod::expert_choice, .capacity_factor = 1}}},
      {"SMEAR with a temperature", num_experts, {.scores = {.temperature = 0.5}}},
      {"CondConv", num_experts, {.scores = {.function = sigmoid}}},
      {"identity", num_experts, {.loss_coefficient = 0, .scores = {.function = identity}}},
  };
}

LayerOptions layer_options(const Family& family, Level level) {
  LayerOptions options{.in_features = features,
                       .out_features = out_features,
                       .num_experts = num_experts,
                       .top_k = family.top_k,
                       .routing = family.routing};
  options.routing.level = level;
  options.routing.segment_tokens = 2;
  return options;
}

FeedForwardOptions block_options(const Family& family, Level level, bool shared_gate) {
  FeedForwardOptions options{.features = features,
                             .hidden_features = 4,
                             .num_experts = num_experts,
                             .top_k = family.top_k,
                             .gated = true,
                             .shared_gate = shared_gate,
                             .routing = family.routing};
  options.routing.level = level;
  options.routing.segment_tokens = 2;
  return options;
}

/// Whether there is a router of these at the level.
bool is_possible(const Family& family, Level level) {
  return level != Level::segment || family.routing.selection.method == SelectionMethod::top_k;
}

template <class Layer>
void set_correction_bias(Layer& layer, Generator& rng) {
  if (!layer.options().has_router || !layer.options().routing.selection.correction_bias) return;
  layer.gate().set_correction_bias(random_vector<S>(rng, num_experts) / 4);
}

template <class Model>
Model random_model(const typename Model::Options& options, Generator& rng) {
  Model model(options);
  model.initialize(rng);
  if constexpr (requires { model.up(); }) {
    for (auto* layer : {&model.up(), &model.gate_up(), &model.down()}) set_correction_bias(*layer, rng);
  } else {
    set_correction_bias(model, rng);
  }
  return model;
}

TEMPLATE_TEST_CASE("a layer with any router applies its routing, and its gradients are differences",
                   "[routers]", Moe, Meo) {
  Generator rng(311);
  const Sequences batch = Sequences::from_lengths(lengths);
  const Inputs<S> inputs{.sequences = &batch};
  for (const Family& family : families()) {
    for (const Level level : {Level::token, Level::sequence, Level::segment}) {
      if (!is_possible(family, level)) continue;
      INFO(family.name << " at " << to_string(level) << " level");
      auto layer = random_model<TestType>(layer_options(family, level), rng);
      const Matrix<S> x = random_normal<S>(rng, batch.tokens(), features);
      Matrix<S> y(x.rows(), out_features), routed(x.rows(), out_features);
      Context<S> context, other;
      const Routing<S> routing = layer.forward(x, inputs, y, context);
      layer.forward_routed(x, inputs, routing, routed, other);
      CHECK(bit_difference(y, routed) == "");
      // Through the decision of a sequence's first segment no gradient goes, but differences do.
      if (level != Level::segment) check_gradients(layer, features, out_features, inputs, rng);
    }
  }
}

TEMPLATE_TEST_CASE("a block with any router has gradients that are differences", "[routers]", Moe, Meo) {
  Generator rng(312);
  const Sequences batch = Sequences::from_lengths(lengths);
  const Inputs<S> inputs{.sequences = &batch};
  for (const Family& family : families()) {
    for (const bool shared_gate : {false, true}) {
      INFO(family.name << ", shared gate " << shared_gate);
      auto block = random_model<FeedForward<TestType>>(block_options(family, Level::token, shared_gate), rng);
      check_gradients(block, features, features, inputs, rng);
    }
  }
}

TEST_CASE("a call has another K and leaves experts out", "[routers]") {
  Generator rng(313);
  const Sequences batch = Sequences::from_lengths(lengths);
  const std::vector<unsigned char> allowed{0, 1, 1, 0, 1, 0};
  const Inputs<S> inputs{.sequences = &batch, .top_k = 2, .allowed_experts = allowed};
  for (const Family& family : families()) {
    if (family.routing.selection.method == SelectionMethod::expert_choice) continue;
    INFO(family.name);
    auto layer = random_model<Moe>(layer_options(family, Level::token), rng);
    const Matrix<S> x = random_normal<S>(rng, batch.tokens(), features);
    const Routing<S> routing = layer.forward(x, inputs).routing;
    std::size_t most = 0;
    for (Index row = 0; row < routing.rows; ++row) most = std::max(most, routing.row_experts(row).size());
    CHECK(most == 2);
    for (const Index expert : routing.experts) CHECK(allowed[std::size_t(expert)] != 0);
    check_gradients(layer, features, out_features, inputs, rng);
    auto block = random_model<FeedForward<Moe>>(block_options(family, Level::token, true), rng);
    check_gradients(block, features, features, inputs, rng);
  }
}

TEST_CASE("what a capacity leaves out has the output 0, and a sequence's are its own", "[routers]") {
  Generator rng(314);
  const Sequences batch = Sequences::from_lengths(lengths);
  for (const SelectionMethod method : {SelectionMethod::top_k, SelectionMethod::expert_choice}) {
    const Family family{
        "",
        1,
        {.scores = {.function = ScoreFunction::softmax}, .selection = {.method = method, .capacity = 1}}};
    LayerOptions options = layer_options(family, Level::token);
    options.bias = false;
    const auto layer = random_model<Moe>(options, rng);
    const Matrix<S> x = random_normal<S>(rng, batch.tokens(), features);
    const auto [y, routing] = layer.forward(x, batch);
    Index left_out = 0;
    for (Index t = 0; t < x.rows(); ++t) {
      const bool has_none = routing.row_experts(t).empty();
      left_out += has_none ? 1 : 0;
      CHECK(y.row(t).isZero(0) == has_none);
    }
    CHECK(left_out > 0);
    for (Index b = 0; b < batch.size(); ++b) {
      const Matrix<S> alone = x.middleRows(batch.begin(b), batch.length(b));
      CHECK(bit_difference(Matrix<S>(y.middleRows(batch.begin(b), batch.length(b))),
                           layer.forward(alone).y) == "");
      std::vector<Index> rows(num_experts, 0);
      for (Index t = batch.begin(b); t < batch.begin(b + 1); ++t) {
        for (const Index expert : routing.row_experts(t)) ++rows[std::size_t(expert)];
      }
      CHECK(*std::max_element(rows.begin(), rows.end()) <= 1);
    }
  }
}

TEST_CASE("a softmax over all experts gives the gate of one expert a gradient, one over the selected none",
          "[routers]") {
  Generator rng(315);
  const Matrix<S> x = random_normal<S>(rng, 5, features), dy = random_normal<S>(rng, 5, out_features);
  for (const ScoreFunction function : {ScoreFunction::softmax, ScoreFunction::softmax_selected}) {
    for (const bool normalize : {false, true}) {
      const Family family{"", 1, {.scores = {.function = function, .normalize = normalize}}};
      const auto layer = random_model<Moe>(layer_options(family, Level::token), rng);
      Moe gradients(layer.options());
      Matrix<S> y(5, out_features), dx(5, features);
      Context<S> context;
      layer.forward(x, {}, y, context);
      layer.backward(x, {}, context, dy, gradients, dx, 0);
      const bool learns = function == ScoreFunction::softmax && !normalize;
      CHECK(gradients.gate().weight().isZero(0) != learns);
    }
  }
}

TEST_CASE("statistics and costs count the pairs that there are", "[routers]") {
  Generator rng(316);
  const Sequences batch = Sequences::from_lengths(lengths);
  for (const Family& family : families()) {
    INFO(family.name);
    const LayerOptions options = layer_options(family, Level::token);
    const auto layer = random_model<Moe>(options, rng);
    const Matrix<S> x = random_normal<S>(rng, batch.tokens(), features);
    const Routing<S> routing = layer.forward(x, batch).routing;
    RoutingStatistics statistics(num_experts);
    statistics.add(routing);
    Index pairs = 0;
    for (Index e = 0; e < num_experts; ++e) {
      pairs += statistics.count(e);
      CHECK(statistics.load(e) >= double(statistics.count(e)));
    }
    CHECK(pairs == routing.size());
    CHECK(assignment_shape(Method::moe, options, batch, routing).products == pairs);
    if (routing.begins.empty())
      CHECK(layer_shape<S>(options, batch).top_k * batch.tokens() == routing.size());
  }
  // One expert whose weight is not 1 is weighed, not merged.
  Family one{"", 1, {.scores = {.function = ScoreFunction::softmax}}};
  CHECK(layer_shape<S>(layer_options(one, Level::sequence), batch).combined_tokens == batch.tokens());
  one.routing.scores.normalize = true;
  CHECK(layer_shape<S>(layer_options(one, Level::sequence), batch).combined_tokens == 0);
}

TEST_CASE("the losses are a block's, once for each router", "[routers]") {
  Generator rng(317);
  const Family family{"", 2, {.loss_coefficient = 0, .losses = {.share_coefficient = 1}}};
  FeedForward<Moe> block(block_options(family, Level::token, false));
  block.initialize(rng);
  for (auto* layer : {&block.up(), &block.gate_up(), &block.down()}) layer->gate().reset();
  // Zero gates: p = 1/N everywhere, so that N Σ f P = Σ f = 1 for each of the three.
  CHECK(block.forward(random_normal<S>(rng, 5, features)).loss == Approx(3));
}

}  // namespace routers_test
}  // namespace

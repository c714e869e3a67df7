// Training from a dense layer: what its experts need to part.

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/training/adamw.hpp>
#include <meo/training/parameters.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace upcycling_test {

using namespace meo;
using namespace meo::test;

constexpr Index features = 8, out_features = 6, num_experts = 4;

LayerOptions options_at(Level level, bool bias = true) {
  LayerOptions options = small_layer(level, features, out_features);
  options.bias = bias;
  return options;
}

/// A dense layer, and 16 sequences of two tokens, each with a task of its own at task level, that a layer
/// started from it is to learn other outputs for.
template <class Layer>
struct Training {
  using S = typename Layer::Scalar;

  explicit Training(const LayerOptions& options) : layer(options) {
    if (options.routing.level != Level::task) return;
    inputs.task_embeddings = embeddings;
    inputs.descriptions = &descriptions;
  }
  Training(const Training&) = delete;

  /// Steps of AdamW for the loss |y − target|² / 2 and the balance loss, without noise.
  void run(int steps) {
    AdamW<S> adamw(parameters(layer), {.learning_rate = 1e-2, .weight_decay = 0});
    Layer gradients(layer.options());
    Context<S> context;
    Matrix<S> y(x.rows(), out_features), dx(x.rows(), features);
    for (int step = 0; step < steps; ++step) {
      set_zero(parameters(gradients));
      layer.forward(x, inputs, y, context);
      layer.backward(x, inputs, context, y - target, gradients, dx);
      gate_gradient = (std::max)(gate_gradient, gradients.gate().weight().cwiseAbs().maxCoeff());
      adamw.step(parameters(layer), parameters(gradients));
    }
    used.assign(num_experts, 0);
    for (const Index expert : context.routing.experts) ++used[static_cast<std::size_t>(expert)];
  }

  Generator rng{81};
  Matrix<S> weight = random_normal<S>(rng, out_features, features);
  Vector<S> bias = random_vector<S>(rng, out_features);
  Matrix<S> x = random_normal<S>(rng, 32, features), target = random_normal<S>(rng, 32, out_features),
            embeddings = random_normal<S>(rng, 16, small_task_features);
  Sequences sequences = Sequences::uniform(16, 2), descriptions = Sequences::uniform(16, 1);
  Inputs<S> inputs{.sequences = &sequences};
  Layer layer;
  S gate_gradient = 0;      ///< the largest that any step had
  std::vector<Index> used;  ///< rows that select each expert
};

#define MEO_LAYERS (MoeLayer<double>), (MeoLayer<double>), (MoeLayer<float>), (MeoLayer<float>)

TEMPLATE_TEST_CASE("a copy of a dense layer trained without noise keeps its experts in step for ever",
                   "[upcycling]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : {Level::token, Level::sequence}) {
    INFO(to_string(level) << " level");
    Training<TestType> training(options_at(level));
    TestType& layer = training.layer;
    layer.initialize_from_dense(training.weight, training.bias);
    training.run(200);
    CHECK(bit_difference(layer.weight(0), training.weight) != "");
    CHECK(bit_difference(layer.weight(1), layer.weight(0)) == "");
    CHECK(bit_difference(layer.bias(1), layer.bias(0)) == "");
    for (const Index expert : {2, 3}) {
      CHECK(bit_difference(layer.weight(expert), training.weight) == "");
      CHECK(bit_difference(layer.bias(expert), training.bias) == "");
    }
    CHECK(training.gate_gradient == 0);
    CHECK(bit_difference(layer.gate().weight(), Matrix<S>(Matrix<S>::Zero(features, num_experts))) == "");
  }
}

TEMPLATE_TEST_CASE("with a generator every expert is used and becomes another", "[upcycling]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    for (const double expert_spread : {0.0, 0.1}) {
      INFO(to_string(level) << " level, expert spread " << expert_spread);
      Training<TestType> training(options_at(level));
      training.layer.initialize_from_dense(training.weight, training.bias, training.rng,
                                           {.expert_spread = expert_spread});
      training.run(200);
      for (Index expert = 0; expert < num_experts; ++expert) {
        CHECK(training.used[static_cast<std::size_t>(expert)] > 0);
        for (Index other = 0; other < expert; ++other) {
          // Each weight has moved by up to 200 steps of 0.01.
          const Matrix<S> apart = training.layer.weight(expert) - training.layer.weight(other);
          CHECK(apart.cwiseAbs().maxCoeff() > S(0.1));
        }
      }
      CHECK(training.gate_gradient > 0);
    }
  }
}

TEMPLATE_TEST_CASE("outputs start as the dense layer's, whatever the router", "[upcycling]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    for (const bool bias : {false, true}) {
      INFO(to_string(level) << " level, bias " << bias);
      Training<TestType> training(options_at(level, bias)), quiet(options_at(level, bias));
      TestType& layer = training.layer;
      if (bias) layer.initialize_from_dense(training.weight, training.bias, training.rng);
      else layer.initialize_from_dense(training.weight, training.rng);
      for (Index expert = 0; expert < num_experts; ++expert)
        CHECK(bit_difference(layer.weight(expert), training.weight) == "");
      Bounded<S> expected = affine<S>(Bounded<S>::exact(training.x), training.weight.template cast<Wide<S>>(),
                                      (bias ? training.bias : Vector<S>()).template cast<Wide<S>>());
      expected.error *= 3;  // the mixtures round K more terms than a dense projection
      const auto output = layer.forward(training.x, training.inputs);
      CHECK(disagreement(output.y, expected) == "");
      std::vector<Index> used(num_experts, 0);
      for (const Index expert : output.routing.experts) ++used[static_cast<std::size_t>(expert)];
      CHECK(std::count(used.begin(), used.end(), 0) == 0);
    }
  }
}

TEMPLATE_TEST_CASE("start values are drawn in the order of initialize", "[upcycling]", MEO_LAYERS) {
  for (const Level level : all_levels) {
    INFO(to_string(level) << " level");
    Training<TestType> training(options_at(level));
    TestType layer(training.layer.options()), expected = layer;
    std::mt19937_64 rng(5), same(5);
    layer.initialize_from_dense(training.weight, training.bias, rng, {.router_spread = 0.5});
    expected.gate().initialize(same);
    CHECK(bit_difference(layer.gate().weight(), (0.5f * expected.gate().weight()).eval()) == "");
    CHECK(layer.gate().noise_weight() == expected.gate().noise_weight());
    if (level == Level::task) {
      expected.task_projection().initialize(same);
      CHECK(layer.task_projection().weight() == expected.task_projection().weight());
      CHECK(layer.task_projection().bias() == expected.task_projection().bias());
    }
    if constexpr (test::is_meo<TestType>) {
      if (level == Level::token) {
        expected.token_attention().initialize(same);
        CHECK(layer.token_attention().down().weight() == expected.token_attention().down().weight());
        CHECK(layer.token_attention().up().weight() == expected.token_attention().up().weight());
      }
    }
    CHECK(rng == same);
  }
}

TEMPLATE_TEST_CASE("experts are spread by their share of the dense weights' root mean square", "[upcycling]",
                   MEO_LAYERS) {
  using S = typename TestType::Scalar;
  Training<TestType> training(options_at(Level::sequence));
  TestType& layer = training.layer;
  layer.initialize_from_dense(training.weight, training.bias, training.rng,
                              {.router_spread = 0, .expert_spread = 0.25});
  CHECK(layer.gate().weight() == Matrix<S>::Zero(features, num_experts));
  const S limit = S(0.25) * std::sqrt(training.weight.squaredNorm() / S(training.weight.size()));
  for (Index expert = 0; expert < num_experts; ++expert) {
    const Matrix<S> apart = layer.weight(expert) - training.weight;
    // Of 48 draws the largest is below 0.8 of the limit once in 40 000; adding and subtracting rounds.
    const S rounding = 2 * std::numeric_limits<S>::epsilon() * training.weight.cwiseAbs().maxCoeff();
    CHECK(apart.cwiseAbs().maxCoeff() <= limit + rounding);
    CHECK(apart.cwiseAbs().maxCoeff() > S(0.8) * limit);
    CHECK(bit_difference(layer.bias(expert), training.bias) == "");
    for (Index other = 0; other < expert; ++other) CHECK(layer.weight(expert) != layer.weight(other));
  }
}

TEST_CASE("spreads that set nothing apart are refused and change nothing", "[upcycling]") {
  constexpr double inf = std::numeric_limits<double>::infinity();
  Training<MeoLayer<float>> training(options_at(Level::sequence));
  MeoLayer<float>& layer = training.layer;
  const std::mt19937_64 before(1);
  std::mt19937_64 rng = before;
  const auto lacks = [&](const Upcycling& upcycling, std::initializer_list<std::string> parts) {
    const std::string error = error_lacks<std::invalid_argument>(
        [&] { layer.initialize_from_dense(training.weight, training.bias, rng, upcycling); }, parts);
    if (error != "") return error;
    return std::string(layer.weight(0).isZero(0) && rng == before ? "" : "the layer has changed");
  };
  for (const double bad : {-0.5, inf, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(lacks({.router_spread = bad}, {"router_spread: expected a finite number of at least 0, got"}) ==
          "");
    CHECK(lacks({.expert_spread = bad}, {"expert_spread: expected a finite number of at least 0, got"}) ==
          "");
  }
  CHECK(lacks({.router_spread = 1e39}, {"router_spread", "scalar holds, got 1e+39"}) == "");
  CHECK(lacks({.router_spread = 0}, {"router_spread, expert_spread: expected one above 0, got 0 for both"}) ==
        "");
  const auto refused = [&](auto&& f, std::initializer_list<std::string> parts) {
    const std::string error = error_lacks<std::invalid_argument>(f, parts);
    if (error != "") return error;
    return std::string(layer.weight(0).isZero(0) && rng == before ? "" : "the layer has changed");
  };
  CHECK(refused([&] { layer.initialize_from_dense(training.weight, rng); }, {"dense bias", "got none"}) ==
        "");
  CHECK(refused(
            [&] {
              layer.initialize_from_dense(Matrix<float>(training.weight.transpose()), training.bias, rng);
            },
            {"dense weight", "6 x 8", "got 8 x 6"}) == "");
}

}  // namespace upcycling_test
}  // namespace

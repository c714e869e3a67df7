#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <meo/layers/moe_layer.hpp>

#include "support/catch.hpp"
#include "support/error_message.hpp"

namespace {
namespace routing_options_test {

using namespace meo;
using test::error_lacks;
using Invalid = std::invalid_argument;
using enum ScoreFunction;
constexpr SelectionMethod expert_choice = SelectionMethod::expert_choice;

/// Six experts of which two are selected; empty when the error has all parts.
std::string lacks(const RoutingOptions& routing, std::initializer_list<std::string> parts) {
  const LayerOptions options{
      .in_features = 2, .out_features = 2, .num_experts = 6, .top_k = 2, .routing = routing};
  // With a router of its own and without.
  LayerOptions none = options;
  none.has_router = false;
  const std::string error = error_lacks<Invalid>([&] { MoeLayer<float> layer(options); }, parts);
  return error != "" ? error : error_lacks<Invalid>([&] { MoeLayer<float> layer(none); }, parts);
}

TEST_CASE("policies that make no sense are refused", "[routing_options]") {
  constexpr double infinite = std::numeric_limits<double>::infinity();
  CHECK(lacks({.scores = {.function = static_cast<ScoreFunction>(7)}}, {"scores.function", "got 7"}) == "");
  CHECK(lacks({.scores = {.function = identity, .normalize = true}}, {"normalize", "identity"}) == "");
  CHECK(lacks({.scores = {.temperature = 0}}, {"temperature", "above 0", "got 0"}) == "");
  CHECK(lacks({.scores = {.temperature = 1e-300}}, {"temperature", "round to 0"}) == "");
  CHECK(lacks({.scores = {.scale = -1}}, {"scale", "above 0", "got -1"}) == "");
  CHECK(lacks({.scores = {.scale = infinite}}, {"scale", "finite"}) == "");
  CHECK(lacks({.selection = {.method = static_cast<SelectionMethod>(5)}}, {"selection.method", "got 5"}) ==
        "");
  CHECK(lacks({.selection = {.group_score = static_cast<GroupScore>(3)}}, {"group_score", "got 3"}) == "");
  CHECK(lacks({.selection = {.groups = 4}}, {"groups", "num_experts = 6", "got 4"}) == "");
  CHECK(lacks({.selection = {.groups = 0}}, {"groups", "got 0"}) == "");
  CHECK(lacks({.selection = {.groups = 3, .top_groups = 4}}, {"top_groups", "groups = 3", "got 4"}) == "");
  CHECK(lacks({.selection = {.groups = 3, .top_groups = 0}}, {"top_groups", "got 0"}) == "");
  CHECK(lacks({.selection = {.groups = 6, .top_groups = 1}}, {"top_groups", "top_k = 2", "got 1 of 1"}) ==
        "");
  CHECK(lacks({.selection = {.groups = 6, .top_groups = 2, .group_score = GroupScore::two_largest}},
              {"group_score", "single expert"}) == "");
  CHECK(lacks({.selection = {.capacity = -1}}, {"capacity", "at least 1", "got -1"}) == "");
  CHECK(lacks({.selection = {.capacity_factor = -1}}, {"capacity_factor", "at least 0"}) == "");
  CHECK(lacks({.selection = {.capacity = 1, .capacity_factor = 1}}, {"capacity", "got both"}) == "");
  CHECK(lacks({.selection = {.method = expert_choice}}, {"expert_choice", "got neither"}) == "");
  CHECK(lacks({.selection = {.method = expert_choice, .groups = 2, .capacity = 1}}, {"groups", "got 2"}) ==
        "");
  CHECK(lacks({.selection = {.method = expert_choice, .correction_bias = true, .capacity = 1}},
              {"correction_bias", "expert_choice"}) == "");
  CHECK(lacks({.level = Level::segment,
               .segment_tokens = 2,
               .selection = {.method = expert_choice, .capacity = 1}},
              {"selection.method", "segment"}) == "");
  CHECK(lacks({.losses = {.share_coefficient = -1}}, {"share_coefficient", "got -1"}) == "");
  CHECK(lacks({.losses = {.z_coefficient = infinite}}, {"z_coefficient", "got inf"}) == "");
}

TEST_CASE("a call that does not fit is refused, and y stays as it was", "[routing_options]") {
  MoeLayer<float> layer({.in_features = 2,
                         .out_features = 2,
                         .num_experts = 6,
                         .top_k = 2,
                         .routing = {.level = Level::token, .selection = {.groups = 3, .top_groups = 1}}});
  const Matrix<float> x = Matrix<float>::Ones(3, 2), ones = Matrix<float>::Ones(3, 2);
  Matrix<float> y = ones;
  Workspace<float> workspace;
  const auto lacks_of = [&](const Inputs<float>& inputs, std::initializer_list<std::string> parts) {
    return error_lacks<Invalid>([&] { layer.forward(x, inputs, y, workspace); }, parts);
  };
  const std::vector<unsigned char> none(6, 0), five(5, 1);
  CHECK(lacks_of({.top_k = 7}, {"top_k", "num_experts = 6", "got 7"}) == "");
  CHECK(lacks_of({.top_k = -1}, {"top_k", "got -1"}) == "");
  CHECK(lacks_of({.top_k = 3}, {"top_groups", "top_k = 3"}) == "");
  CHECK(lacks_of({.allowed_experts = none}, {"allowed_experts", "got none"}) == "");
  CHECK(lacks_of({.allowed_experts = five}, {"allowed_experts", "num_experts = 6", "got 5"}) == "");
  CHECK(y == ones);
}

TEST_CASE("a gate has the biases that its options say", "[routing_options]") {
  const Vector<float> four = Vector<float>::Ones(4), five = Vector<float>::Ones(5);
  Gate<float> plain(2, 4, 1), biased(2, 4, 1, {.scores = {.bias = true}}),
      corrected(2, 4, 1, {.selection = {.correction_bias = true}});
  CHECK(error_lacks<Invalid>([&] { plain.set_bias(four); }, {"bias"}) == "");
  CHECK(error_lacks<Invalid>([&] { plain.set_correction_bias(four); }, {"correction_bias", "got"}) == "");
  CHECK(error_lacks<Invalid>([&] { corrected.set_correction_bias(five); }, {"4 values", "got 5"}) == "");
  biased.set_bias(four);
  corrected.set_correction_bias(2 * four);
  CHECK(biased.bias() == four);
  CHECK(corrected.correction_bias() == 2 * four);
  biased.reset();
  corrected.reset();
  CHECK(biased.bias().isZero(0));
  CHECK(corrected.correction_bias().isZero(0));
}

TEST_CASE("a context is left by one call, and takes no routing of another size", "[routing_options]") {
  MoeLayer<float> layer({.in_features = 2,
                         .out_features = 2,
                         .num_experts = 4,
                         .routing = {.level = Level::token, .selection = {.capacity = 1}}});
  MoeLayer<float> gradients(layer.options());
  const Matrix<float> x = Matrix<float>::Ones(3, 2);
  Matrix<float> y(3, 2), dx(3, 2);
  Context<float> context;
  layer.forward(x, {}, y, context);
  context.routing.experts.push_back(3);
  context.routing.weights.push_back(1);
  context.routing.begins.back() = 2;
  CHECK(error_lacks<Invalid>([&] { layer.backward(x, {}, context, y, gradients, dx); },
                             {"expected 1 pairs", "got 2"}) == "");
}

}  // namespace routing_options_test
}  // namespace

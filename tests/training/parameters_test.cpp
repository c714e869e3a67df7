#include <algorithm>
#include <string>
#include <vector>

#include <meo/training/adamw.hpp>
#include <meo/training/parameters.hpp>

#include "reference/library.hpp"
#include "reference/random_layer.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace parameters_test {

using namespace meo;

using Names = std::vector<std::string>;

template <class Layer>
Names names(Layer&& layer, const std::string& prefix = "") {
  Names all;
  for (const auto& range : parameters(layer, prefix)) all.push_back(range.name);
  return all;
}

LayerOptions options_at(Level level) { return test::small_layer(level, 5, 7); }

TEST_CASE("a layer's parameters have the names of the authors' state_dict", "[parameters]") {
  CHECK(names(MoeLayer<float>(options_at(Level::token))) == Names{"w_gate", "w_noise", "experts"});
  CHECK(names(MeoLayer<float>(options_at(Level::sequence)), "up.") ==
        Names{"up.w_gate", "up.w_noise", "up.experts"});
  CHECK(names(MeoLayer<float>(options_at(Level::token))) ==
        Names{"w_gate", "w_noise", "experts", "tokenatt.down_proj", "tokenatt.up_proj"});
  CHECK(names(MeoLayer<float>(options_at(Level::task))) ==
        Names{"w_gate", "w_noise", "experts", "task_proj"});
}

TEST_CASE("a block's parameters are its projections', with one gate if that is shared", "[parameters]") {
  FeedForwardOptions options{.features = 5, .hidden_features = 7, .num_experts = 4};
  CHECK(names(FeedForward<MoeLayer<float>>(options)) ==
        Names{"up.w_gate", "up.w_noise", "up.experts", "down.w_gate", "down.w_noise", "down.experts"});
  options.gated = options.shared_gate = true;
  CHECK(names(FeedForward<MoeLayer<float>>(options), "b.") ==
        Names{"b.up.w_gate", "b.up.w_noise", "b.up.experts", "b.gate_up.experts", "b.down.experts"});
}

TEST_CASE("ranges are the layer's own memory, and packing's padding stays zero", "[parameters]") {
  test::Generator rng(61);
  const auto reference_layer = reference::random_parameters<MeoLayer<float>>(options_at(Level::token), rng);
  auto layer = reference::library_layer<MeoLayer<float>>(reference_layer);
  const MeoLayer<float> before = layer;
  const auto input = reference::random_input(reference_layer, {3, 4}, reference::Mode::training, rng);
  const reference::LibraryBatch<float> batch(input.batch);
  Context<float> context;
  Matrix<float> y(7, 7), dx(7, 5);
  MeoLayer<float> gradients(layer.options());
  layer.forward(input.x, batch.inputs(), y, context);
  layer.backward(input.x, batch.inputs(), context, y, gradients, dx);
  AdamW<float> adamw(parameters(layer), {.learning_rate = 0.25, .epsilon = 1e-12, .weight_decay = 0});
  adamw.step(parameters(layer), parameters(gradients));

  // The first step moves every parameter by the learning rate against the sign of its gradient.
  const auto moved = [](const auto& from, const auto& gradient) {
    return (from.array() - 0.25f * gradient.array().sign()).matrix().eval();
  };
  constexpr float rounding = 1e-6f;  // of 0.25 and numbers near 1, and of ε beside a small gradient
  for (Index e = 0; e < 4; ++e)
    CHECK((layer.weight(e) - moved(before.weight(e), gradients.weight(e))).cwiseAbs().maxCoeff() <= rounding);
  CHECK((layer.gate().weight() - moved(before.gate().weight(), gradients.gate().weight()))
            .cwiseAbs()
            .maxCoeff() <= rounding);

  // Packed values that are no parameter are zero still: as many as before are other than zero.
  const auto zeros = [](const auto& ranges) {
    std::ptrdiff_t count = 0;
    for (const auto& range : ranges) count += std::count(range.values.begin(), range.values.end(), 0.f);
    return count;
  };
  MeoLayer<float> original = before;
  CHECK(zeros(parameters(layer)) == zeros(parameters(original)));

  set_zero(parameters(gradients));
  for (const auto& range : parameters(gradients))
    CHECK(std::all_of(range.values.begin(), range.values.end(), [](float value) { return value == 0; }));
}

TEST_CASE("values are copied between ranges of the same names and sizes only", "[parameters]") {
  std::vector<float> a{1, 2}, b{3}, c{4, 5}, d{6};
  const Parameters<float> to{{"a", c}, {"b", d}};
  copy_values({{"a", a}, {"b", b}}, to);
  CHECK(c == a);
  CHECK(d == b);
  const auto lacks = [&](const Parameters<float>& from, std::initializer_list<std::string> parts) {
    return test::error_lacks<std::invalid_argument>([&] { copy_values(from, to); }, parts);
  };
  a = {7, 8};
  CHECK(lacks({{"a", a}}, {"from", "2 ranges", "got 1"}) == "");
  CHECK(lacks({{"a", a}, {"b", a}}, {"from", "b with 1 values", "b with 2"}) == "");
  CHECK(lacks({{"a", a}, {"c", b}}, {"from", "b with 1 values", "c with 1"}) == "");
  CHECK(c == std::vector<float>{1, 2});
}

}  // namespace parameters_test
}  // namespace

// A gate's bias and its correction bias in files, and as parameters.

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/training/parameters.hpp>
#include <meo/training/sgd.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"

namespace {
namespace router_parts_test {

using namespace meo;
using io::SafetensorsReader;
using test::Bytes;
using test::error_of;

using Layer = MoeLayer<float>;
using Block = FeedForward<MoeLayer<float>>;

constexpr RoutingOptions biased{.scores = {.bias = true}}, corrected{.selection = {.correction_bias = true}},
    both{.scores = {.bias = true}, .selection = {.correction_bias = true}};

Layer random_layer(const RoutingOptions& routing) {
  Layer layer({.in_features = 3, .out_features = 5, .num_experts = 4, .routing = routing});
  std::mt19937_64 rng(7);
  layer.initialize(rng);
  if (routing.selection.correction_bias)
    layer.gate().set_correction_bias((Vector<float>(4) << 1, -2, 3, -4).finished());
  return layer;
}

template <class Model>
Bytes file_of(const Model& model) {
  io::SafetensorsWriter writer;
  io::save(model, writer);
  return writer.bytes();
}

std::string fault(Layer layer, const Bytes& bytes) {
  return error_of([&] { io::load(layer, SafetensorsReader(bytes, "f")); });
}

TEST_CASE("a gate's biases are kept in files", "[router_parts]") {
  const Layer saved = random_layer(both);
  const Bytes bytes = file_of(saved);
  const SafetensorsReader file(bytes, "f");
  CHECK(file.read_vector<float>("param.w_gate.bias", 4) == saved.gate().bias());
  CHECK(file.read<float>("param.correction_bias") == std::vector<float>{1, -2, 3, -4});
  Layer loaded(saved.options());
  io::check_shapes<Layer>(saved.options(), file);
  io::load(loaded, file);
  CHECK(loaded.gate().weight() == saved.gate().weight());
  CHECK(loaded.gate().bias() == saved.gate().bias());
  CHECK(loaded.gate().correction_bias() == saved.gate().correction_bias());
}

TEST_CASE("files have the biases that the options say, and no others", "[router_parts]") {
  const auto has = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(fault(random_layer({}), file_of(random_layer({}))) == "no error");
  CHECK(has(fault(random_layer({}), file_of(random_layer(biased))), "w_gate.bias"));
  CHECK(has(fault(random_layer({}), file_of(random_layer(corrected))), "correction_bias"));
  CHECK(has(fault(random_layer(biased), file_of(random_layer({}))), "w_gate.bias"));
  CHECK(has(fault(random_layer(corrected), file_of(random_layer(biased))), "correction_bias"));
  CHECK(has(fault(random_layer(corrected), file_of(random_layer(both))), "w_gate.bias"));
}

TEST_CASE("a block with one gate leaves out the others' biases", "[router_parts]") {
  FeedForwardOptions options{.features = 3, .hidden_features = 5, .num_experts = 4, .routing = both};
  const Block apart(options);
  options.shared_gate = true;
  Block shared(options);
  const Bytes bytes = file_of(apart);
  CHECK(error_of([&] { io::load(shared, SafetensorsReader(bytes, "f")); }) == "no error");
}

TEST_CASE("a gate's bias is trained, its correction bias is not", "[router_parts]") {
  Layer layer = random_layer(both), gradients(layer.options());
  const auto names = [](Layer& of) {
    std::vector<std::string> all;
    for (const auto& range : parameters(of)) all.push_back(range.name);
    return all;
  };
  CHECK(names(layer) == std::vector<std::string>{"w_gate", "w_noise", "experts"});
  const Vector<float> bias = layer.gate().bias();
  gradients.gate().set_bias(Vector<float>::Ones(4));
  Sgd<float> sgd(parameters(layer), {.learning_rate = 0.5});
  sgd.step(parameters(layer), parameters(gradients));
  CHECK(layer.gate().bias() == Vector<float>(bias.array() - 0.5f));
  CHECK(layer.gate().correction_bias() == (Vector<float>(4) << 1, -2, 3, -4).finished());
}

}  // namespace router_parts_test
}  // namespace

// One forward of one case in a function of its own, whose instructions instructions.cmake has callgrind
// count. Without an argument it prints the names of the cases.

#include <iostream>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <meo/meo.hpp>

namespace {

using namespace meo;

struct Case {
  std::string_view name;
  Index top_k;
  Level level = Level::sequence;
  bool merges = true;
  bool block = false;
};

constexpr Case all_cases[] = {
    {.name = "meo_k1", .top_k = 1},
    {.name = "meo_k8", .top_k = 8},
    {.name = "meo_token_k8", .top_k = 8, .level = Level::token},
    {.name = "moe_token_k2", .top_k = 2, .level = Level::token, .merges = false},
    {.name = "meo_block_k8", .top_k = 8, .block = true},
};

constexpr Index in_features = 256, out_features = 512, num_experts = 8, sequences = 8, tokens = 16;

template <class Layer, class Workspace>
[[gnu::noinline]] void counted_forward(const Layer& layer, const Matrix<float>& x,
                                       const Inputs<float>& inputs, Matrix<float>& y, Workspace& workspace) {
  layer.forward(x, inputs, y, workspace);
}

template <class Workspace, class Layer>
void run(Layer layer, Index outputs) {
  std::mt19937_64 rng(1);
  layer.initialize(rng);
  const Sequences batch = Sequences::uniform(sequences, tokens);
  Inputs<float> inputs;
  inputs.sequences = &batch;
  Matrix<float> x(sequences * tokens, in_features), y(sequences * tokens, outputs);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (float& value : x.reshaped()) value = uniform(rng);
  Workspace workspace;
  layer.forward(x, inputs, y, workspace);  // grows the workspace
  counted_forward(layer, x, inputs, y, workspace);
}

void run(const Case& c) {
  if (c.block) {
    FeedForwardOptions options{.features = in_features, .hidden_features = out_features};
    options.num_experts = num_experts;
    options.top_k = c.top_k;
    return run<FeedForwardWorkspace<float>>(FeedForward<MeoLayer<float>, Gelu>(options), in_features);
  }
  LayerOptions options{.in_features = in_features, .out_features = out_features};
  options.num_experts = num_experts;
  options.top_k = c.top_k;
  options.routing.level = c.level;
  if (c.merges) run<Workspace<float>>(MeoLayer<float>(options), out_features);
  else run<Workspace<float>>(MoeLayer<float>(options), out_features);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const Case& c : all_cases) std::cout << c.name << '\n';
    return 0;
  }
  for (const Case& c : all_cases) {
    if (c.name == argv[1]) {
      run(c);
      return 0;
    }
  }
  std::cerr << "no case " << argv[1] << '\n';
  return 2;
}

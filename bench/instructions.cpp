// One forward of one case in a function of its own, whose instructions instructions.cmake has callgrind
// count. Without an argument it prints the names of the cases.

#include <cstdint>
#include <iostream>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <meo/meo.hpp>

namespace {

using namespace meo;

/// What the layer's experts are stored as.
enum class Storage { scalars, bfloat16, int8 };

struct Case {
  std::string_view name;
  Index top_k;
  Level level = Level::sequence;
  bool merges = true;
  bool block = false;
  Storage storage = Storage::scalars;
};

constexpr Case all_cases[] = {
    {.name = "meo_k1", .top_k = 1},
    {.name = "meo_k8", .top_k = 8},
    {.name = "meo_token_k8", .top_k = 8, .level = Level::token},
    {.name = "moe_token_k2", .top_k = 2, .level = Level::token, .merges = false},
    {.name = "meo_block_k8", .top_k = 8, .block = true},
    {.name = "meo_bfloat16_k8", .top_k = 8, .storage = Storage::bfloat16},
    {.name = "meo_int8_k8", .top_k = 8, .storage = Storage::int8},
};

constexpr Index in_features = 256, out_features = 512, num_experts = 8, sequences = 8, tokens = 16;

template <class Layer, class Workspace>
[[gnu::noinline]] void counted_forward(const Layer& layer, const Matrix<float>& x,
                                       const Inputs<float>& inputs, Matrix<float>& y, Workspace& workspace) {
  layer.forward(x, inputs, y, workspace);
}

/// A layer, or a block, with start values.
template <class Layer>
Layer initialized(const typename Layer::Options& options, std::mt19937_64& rng) {
  Layer layer(options);
  layer.initialize(rng);
  return layer;
}

template <class Workspace, class Layer>
void run(const Layer& layer, Index outputs, std::mt19937_64& rng) {
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
  std::mt19937_64 rng(1);
  if (c.block) {
    FeedForwardOptions options{.features = in_features, .hidden_features = out_features};
    options.num_experts = num_experts;
    options.top_k = c.top_k;
    return run<FeedForwardWorkspace<float>>(initialized<FeedForward<MeoLayer<float>, Gelu>>(options, rng),
                                            in_features, rng);
  }
  LayerOptions options{.in_features = in_features, .out_features = out_features};
  options.num_experts = num_experts;
  options.top_k = c.top_k;
  options.routing.level = c.level;
  if (!c.merges) return run<Workspace<float>>(initialized<MoeLayer<float>>(options, rng), out_features, rng);
  const auto layer = initialized<MeoLayer<float>>(options, rng);
  const auto run_stored = [&](auto weight) {
    using Stored = MeoLayer<float, Eigen::Dynamic, decltype(weight)>;
    run<Workspace<float>>(Stored(layer), out_features, rng);
  };
  if (c.storage == Storage::bfloat16) run_stored(Eigen::bfloat16());
  else if (c.storage == Storage::int8) run_stored(std::int8_t());
  else run<Workspace<float>>(layer, out_features, rng);
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

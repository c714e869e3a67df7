#pragma once

/// The bridge between the reference's blocks and the library's.

#include <type_traits>

#include <meo/experts/activation.hpp>
#include <meo/layers/feed_forward.hpp>

#include "reference/library.hpp"
#include "reference/random_layer.hpp"
#include "reference/reference.hpp"

namespace meo::reference {

template <class Function>
constexpr Activation activation_of() {
  if constexpr (std::is_same_v<Function, Relu>) return Activation::relu;
  if constexpr (std::is_same_v<Function, Gelu>) return Activation::gelu;
  if constexpr (std::is_same_v<Function, GeluTanh>) return Activation::gelu_tanh;
  if constexpr (std::is_same_v<Function, Silu>) return Activation::silu;
  return Activation::identity;
}

template <class S>
FeedForwardOptions options_of(const Block<S>& block) {
  const LayerOptions up = options_of(block.up);
  FeedForwardOptions options;
  options.features = up.in_features;
  options.hidden_features = up.out_features;
  options.num_experts = up.num_experts;
  options.top_k = up.top_k;
  options.bias = up.bias;
  options.gated = block.gated;
  options.shared_gate = block.shared_gate;
  options.routing = up.routing;
  return options;
}

/// FeedForward<MoeLayer<S>, Gelu> or the like with the reference's parameters.
template <class Library, class S>
Library library_block(const Block<S>& block, MergeOrder order = MergeOrder::automatic) {
  FeedForwardOptions options = options_of(block);
  options.merge_order = order;
  Library library(options);
  set_parameters(library.up(), block.up);
  if (block.gated) set_parameters(library.gate_up(), block.gate_up);
  set_parameters(library.down(), block.down);
  return library;
}

template <class Library>
struct PartsOf;
template <class L, class Function>
struct PartsOf<FeedForward<L, Function>> {
  using Layer = L;
  static constexpr Activation activation = activation_of<Function>();
};

/// Random parameters for a library block.
template <class Library>
Block<typename Library::Scalar> random_parameters(const FeedForwardOptions& options, test::Generator& rng) {
  using Part = typename PartsOf<Library>::Layer;
  LayerOptions up;
  up.in_features = options.features;
  up.out_features = options.hidden_features;
  up.num_experts = options.num_experts;
  up.top_k = options.top_k;
  up.bias = options.bias;
  up.routing = options.routing;
  LayerOptions down = up;
  std::swap(down.in_features, down.out_features);

  Block<typename Library::Scalar> block;
  block.gated = options.gated;
  block.shared_gate = options.shared_gate;
  block.activation = PartsOf<Library>::activation;
  block.up = random_parameters<Part>(up, rng);
  if (block.gated) block.gate_up = random_parameters<Part>(up, rng);
  block.down = random_parameters<Part>(down, rng);
  return block;
}

/// A batch with its x, drawn again until no rounding can change what any of the block's gates selects.
template <class S>
RandomInput<S> random_input(const Block<S>& block, const std::vector<Index>& lengths, Mode mode,
                            test::Generator& rng) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    RandomInput<S> input = random_input(block.up, lengths, mode, rng);
    const BlockResult<S> result = forward(block, input.x, input.batch);
    if (result.up.decided && result.gate_up.decided && result.down.decided) return input;
  }
  throw std::runtime_error("rounding decides every selection of this block");
}

}  // namespace meo::reference

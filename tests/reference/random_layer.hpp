#pragma once

/// Random layers and batches as the reference's types.

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include <meo/layers/layer_options.hpp>
#include <meo/types.hpp>

#include "reference/reference.hpp"
#include "support/random.hpp"

namespace meo::reference {

template <class S>
Affine<S> random_affine(test::Generator& rng, Index in, Index out, bool bias = true) {
  const S scale = S(1 / std::sqrt(double(in)));
  Affine<S> affine{scale * test::random_matrix<S>(rng, out, in), {}};
  if (bias) affine.bias = test::random_vector<S>(rng, out);
  return affine;
}

/// All parameters random, none zero: weights uniform in ±1/√inputs, the gate's in ±1 so that gates differ.
template <class S>
Layer<S> random_layer(Kind kind, const LayerOptions& options, test::Generator& rng) {
  Layer<S> layer;
  layer.kind = kind;
  layer.level = options.routing.level;
  layer.top_k = options.top_k;
  layer.reduce_factor = options.routing.reduce_factor;
  layer.gate_before_attention = options.routing.gate_before_attention;
  layer.loss_coefficient = options.routing.loss_coefficient;
  layer.noise_epsilon = options.routing.noise_epsilon;
  for (Index i = 0; i < options.num_experts; ++i) {
    layer.experts.push_back(random_affine<S>(rng, options.in_features, options.out_features, options.bias));
  }
  Index gate_features = options.in_features;
  if (options.routing.level == Level::task) {
    gate_features = std::max<Index>(options.routing.task_features / options.routing.reduce_factor, 1);
    layer.task_projection = random_affine<S>(rng, options.routing.task_features, gate_features);
  }
  if (layer.has_attention()) {
    const Index reduced = std::max<Index>(options.in_features / options.routing.reduce_factor, 1);
    layer.attention_down = random_affine<S>(rng, options.in_features, reduced);
    layer.attention_up = random_affine<S>(rng, reduced, options.in_features);
  }
  layer.gate_weight = test::random_matrix<S>(rng, gate_features, options.num_experts);
  layer.noise_weight = test::random_matrix<S>(rng, gate_features, options.num_experts);
  return layer;
}

enum class Mode { inference, training };

/// A batch for `layer`; at task level one description of up to 4 tokens for every sequence.
template <class S>
Batch<S> random_batch(const Layer<S>& layer, const std::vector<Index>& lengths, Mode mode,
                      test::Generator& rng) {
  Batch<S> batch;
  batch.offsets = offsets_from_lengths(lengths);
  if (layer.level == Level::task) {
    batch.description_offsets = offsets_from_lengths(test::random_lengths(rng, batch.size(), 0, 4));
    batch.task_embeddings =
        test::random_matrix<S>(rng, batch.description_offsets.back(), layer.task_projection.weight.cols());
    for (Index b = 0; b < batch.size(); ++b) batch.task_of_sequence.push_back(b);
  }
  const Index rows = layer.gates_tokens() ? batch.tokens() : batch.size();
  if (mode == Mode::training) batch.noise = test::random_normal<S>(rng, rows, layer.num_experts());
  return batch;
}

template <class S>
struct RandomInput {
  Batch<S> batch;
  Matrix<S> x;  // tokens × D
};

/// A batch with its x, drawn again until no rounding can change what is selected.
template <class S>
RandomInput<S> random_input(const Layer<S>& layer, const std::vector<Index>& lengths, Mode mode,
                            test::Generator& rng) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    RandomInput<S> input;
    input.batch = random_batch(layer, lengths, mode, rng);
    input.x = test::random_matrix<S>(rng, input.batch.tokens(), layer.in_features());
    if (route(layer, Bounded<S>::exact(input.x), input.batch).decided) return input;
  }
  throw std::runtime_error("rounding decides every selection of this layer");
}

}  // namespace meo::reference

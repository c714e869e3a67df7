#pragma once

/// The bridge between the reference and the library: the same parameters and batches in the library's types,
/// and the comparison of results.

#include <vector>

#include <meo/layers/layer_options.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/routing.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

#include "reference/random_layer.hpp"
#include "reference/reference.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/kernels.hpp"

namespace meo::reference {

template <class S>
LayerOptions options_of(const Layer<S>& layer) {
  LayerOptions options;
  options.in_features = layer.in_features();
  options.out_features = layer.out_features();
  options.num_experts = layer.num_experts();
  options.top_k = layer.top_k;
  options.routing.level = layer.level;
  options.bias = layer.has_bias();
  options.routing.gate_before_attention = layer.gate_before_attention;
  options.routing.loss_coefficient = layer.loss_coefficient;
  options.routing.noise_epsilon = layer.noise_epsilon;
  options.routing.reduce_factor = layer.reduce_factor;
  if (layer.level == Level::task) options.routing.task_features = layer.task_projection.weight.cols();
  return options;
}

template <class Library>
struct KindOf;
template <class S, int N>
struct KindOf<MoeLayer<S, N>> {
  static constexpr Kind value = Kind::moe;
};
template <class S, int N>
struct KindOf<MeoLayer<S, N>> {
  static constexpr Kind value = Kind::meo;
};

/// Random parameters for a library layer.
template <class Library>
Layer<typename Library::Scalar> random_parameters(const LayerOptions& options, test::Generator& rng) {
  return random_layer<typename Library::Scalar>(KindOf<Library>::value, options, rng);
}

/// Sets all parameters of a library layer of the same shape.
template <class Library, class S>
void set_parameters(Library& library, const Layer<S>& layer) {
  for (Index i = 0; i < layer.num_experts(); ++i) {
    const Affine<S>& expert = layer.experts[std::size_t(i)];
    library.set_weight(i, expert.weight);
    if (layer.has_bias()) library.set_bias(i, expert.bias);
  }
  if (library.options().has_router) {
    library.gate().set_weight(layer.gate_weight);
    library.gate().set_noise_weight(layer.noise_weight);
  }
  if (layer.level == Level::task && library.options().has_router) {
    library.task_projection().set_weight(layer.task_projection.weight);
    library.task_projection().set_bias(layer.task_projection.bias);
  }
  if constexpr (KindOf<Library>::value == Kind::meo) {
    if (layer.has_attention()) {
      library.token_attention().down().set_weight(layer.attention_down.weight);
      library.token_attention().down().set_bias(layer.attention_down.bias);
      library.token_attention().up().set_weight(layer.attention_up.weight);
      library.token_attention().up().set_bias(layer.attention_up.bias);
    }
  }
}

/// The orders that one and the same layer can compute in.
template <class Library>
std::vector<MergeOrder> merge_orders() {
  if (KindOf<Library>::value == Kind::moe) return {MergeOrder::automatic};
  return {MergeOrder::merge_first, MergeOrder::combine_outputs};
}

/// MoeLayer or MeoLayer with the reference's parameters.
template <class Library, class S>
Library library_layer(const Layer<S>& layer, MergeOrder order = MergeOrder::automatic) {
  LayerOptions options = options_of(layer);
  options.merge_order = order;
  Library library(options);
  set_parameters(library, layer);
  return library;
}

/// What Inputs points to. The batch must outlive it.
template <class S>
class LibraryBatch {
 public:
  explicit LibraryBatch(const Batch<S>& batch)
      : batch_(batch),
        sequences_(Sequences::from_offsets(batch.offsets)),
        descriptions_(Sequences::from_offsets(
            batch.description_offsets.empty() ? std::vector<Index>{0} : batch.description_offsets)) {}

  const Sequences& sequences() const { return sequences_; }
  const Sequences& descriptions() const { return descriptions_; }

  Inputs<S> inputs() const {
    Inputs<S> inputs;
    inputs.sequences = &sequences_;
    if (!batch_.description_offsets.empty()) {
      inputs.task_embeddings = batch_.task_embeddings;
      inputs.descriptions = &descriptions_;
      inputs.task_of_sequence = batch_.task_of_sequence;
    }
    if (batch_.noise.size() != 0) inputs.noise = Noise<S>(batch_.noise);
    return inputs;
  }

 private:
  const Batch<S>& batch_;
  Sequences sequences_;
  Sequences descriptions_;
};

template <class S>
Matrix<S> row_of(const std::vector<S>& values) {
  return Eigen::Map<const Matrix<S>>(values.data(), 1, Index(values.size()));
}

/// The library's gates taken as data: with them the bound of y holds no error of the gate and is as tight as
/// it gets.
template <class S>
Gating<S> gating_of(const Routing<S>& routing) {
  Gating<S> gating;
  for (Index r = 0; r < routing.rows; ++r) {
    const auto experts = routing.row_experts(r);
    gating.selected.emplace_back(experts.begin(), experts.end());
  }
  gating.gates = Bounded<S>::exact(routing.dense());
  return gating;
}

template <class S>
void check_routing(const Routing<S>& actual, const Gating<S>& expected) {
  REQUIRE(expected.decided);
  REQUIRE(actual.rows == Index(expected.selected.size()));
  for (Index r = 0; r < actual.rows; ++r) {
    const auto experts = actual.row_experts(r);
    CHECK(std::vector<Index>(experts.begin(), experts.end()) == expected.selected[std::size_t(r)]);
  }
  CHECK(test::disagreement(actual.dense(), expected.gates) == "");
  CHECK(test::disagreement(row_of(actual.importance), expected.importance) == "");
  CHECK(test::disagreement(row_of(actual.load), expected.load) == "");
  CHECK(test::disagreement(Matrix<S>::Constant(1, 1, actual.loss), expected.loss) == "");
}

/// Holds a forward pass of the library against the reference, element by element.
template <class Library, class S>
void check_forward(const Library& library, const Layer<S>& layer, const Matrix<S>& x, const Batch<S>& batch) {
  const LibraryBatch<S> library_batch(batch);
  const auto output = library.forward(x, library_batch.inputs());
  const Result<S> expected = forward(layer, x, batch);
  check_routing(output.routing, expected.gating);
  CHECK(test::disagreement(output.y, expected.y) == "");

  const Bounded<S> given_gates =
      mixtures(layer, attended(layer, Bounded<S>::exact(x)), gating_of(output.routing), batch);
  CHECK(test::disagreement(output.y, given_gates) == "");
}

}  // namespace meo::reference

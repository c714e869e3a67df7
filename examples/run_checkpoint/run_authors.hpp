#pragma once

/// Runs layers and blocks of files with the MEO authors' names.

#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

#include "arguments.hpp"
#include "metadata.hpp"
#include "results.hpp"

namespace run_checkpoint {

/// What the run reads beside the parameters.
template <class Scalar>
struct Run {
  Batch<Scalar> x;
  std::optional<Batch<Scalar>> task_embeddings;
  std::optional<meo::Matrix<Scalar>> noise;
  std::string note;  // about it, a line

  Run(const meo::io::SafetensorsReader& reader, const std::string& input, const Metadata& metadata)
      : x(Batch<Scalar>::read(reader, input)) {
    if (metadata.level() == Level::task) task_embeddings = Batch<Scalar>::read(reader, "task_embeddings");
    const bool training = metadata.flag("training");
    if (training && !reader.contains("noise")) {
      note = "training is True, but there is no noise: run as inference\n";
    } else if (training) {
      const std::vector<Index> shape = reader.info("noise").shape;
      if (shape.size() != 2)
        throw meo::io::Error(reader.file(), "noise", "expected a shape of two dimensions");
      noise = reader.read_matrix<Scalar>("noise", shape[0], shape[1]);
    }
  }

  Index task_features() const { return task_embeddings ? task_embeddings->tokens.cols() : 0; }

  meo::Inputs<Scalar> inputs() const {
    meo::Inputs<Scalar> inputs{.sequences = &x.sequences};
    if (task_embeddings) {
      inputs.task_embeddings = task_embeddings->tokens;
      inputs.descriptions = &task_embeddings->sequences;
    }
    if (noise) inputs.noise = meo::Noise<Scalar>(*noise);
    return inputs;
  }
};

inline std::string prefix_of(const Arguments& arguments) { return arguments.prefix.value_or("param."); }
inline std::string input_of(const Arguments& arguments) { return arguments.input.value_or("x"); }

template <class Scalar>
Results<Scalar> results_of(const meo::io::SafetensorsReader& reader, const Arguments& arguments) {
  return {&reader, reader.info(input_of(arguments)).dtype};
}

/// (out_features, in_features) of the expert weights under a prefix. stacks_experts: of the layer's kind.
inline std::pair<Index, Index> weight_shape(const meo::io::SafetensorsReader& reader,
                                            const std::string& prefix, bool stacks_experts) {
  const std::string name = prefix + (stacks_experts ? "weight" : "experts.0.dense.weight");
  const std::vector<Index>& shape = reader.info(name).shape;
  const std::size_t dimensions = stacks_experts ? 3 : 2;
  if (shape.size() != dimensions) {
    throw meo::io::Error(reader.file(), name,
                         "expected a shape of " + std::to_string(dimensions) + " dimensions, got " +
                             std::to_string(shape.size()));
  }
  return {shape[dimensions - 2], shape[dimensions - 1]};
}

/// What the metadata say of the routing.
inline meo::RoutingOptions routing_of(const Metadata& metadata, Index task_features) {
  return {.level = metadata.level(),
          .task_features = task_features,
          .reduce_factor = metadata.count("reduce_factor", 64),
          .gate_before_attention = metadata.text("kind", "") == "Conv1D_MEO",
          .loss_coefficient = metadata.real("loss_coef", 0.01),
          .noise_epsilon = metadata.real("noise_epsilon", 0.01)};
}

/// Options of a layer or a block, with its sizes, completed by what the metadata and the tensors under the
/// prefix of the layer, or of one of the block's, say of both.
template <class Options>
Options completed(Options options, const meo::io::SafetensorsReader& reader, const std::string& prefix,
                  bool stacks_experts, Index task_features) {
  const Metadata metadata(reader);
  options.num_experts = metadata.count("num_experts");
  options.top_k = metadata.count("top_k");
  options.bias = reader.contains(prefix + (stacks_experts ? "bias" : "experts.0.dense.bias"));
  options.routing = routing_of(metadata, task_features);
  return options;
}

template <class Layer>
void run_layer(const meo::io::SafetensorsReader& reader, const Arguments& arguments) {
  using Scalar = typename Layer::Scalar;
  const Metadata metadata(reader);
  const Run<Scalar> run(reader, input_of(arguments), metadata);
  const auto [out_features, in_features] =
      weight_shape(reader, prefix_of(arguments), Layer::Kind::stacks_experts);
  const auto options =
      completed(meo::LayerOptions{.in_features = in_features, .out_features = out_features}, reader,
                prefix_of(arguments), Layer::Kind::stacks_experts, run.task_features());
  // Before there is a layer: metadata may ask for any amount of memory.
  meo::io::check_shapes<Layer>(options, reader, prefix_of(arguments));
  Layer layer(options);
  meo::io::load(layer, reader, prefix_of(arguments), {.require_finite = true});

  meo::Matrix<Scalar> y(run.x.tokens.rows(), options.out_features);
  meo::Workspace<Scalar> workspace;
  const meo::Routing<Scalar>& routing = layer.forward(run.x.tokens, run.inputs(), y, workspace);
  check_finite(reader.file(), y);

  const std::vector<Index>& x_shape = reader.info(input_of(arguments)).shape;
  const std::vector<Index> y_shape = output_shape(x_shape, options.out_features);
  print_shape(input_of(arguments), x_shape);
  std::cout << run.note;
  print_shape("y", y_shape);
  print_selection("gate", routing);
  std::cout << "loss: " << routing.loss << '\n';
  if (arguments.output) {
    Results<Scalar> results = results_of<Scalar>(reader, arguments);
    results.add("y", y_shape, y);
    results.add("gates", {routing.rows, routing.num_experts}, routing.dense());
    results.add("load", {routing.num_experts}, routing.load);
    results.add("loss", {1}, std::vector<Scalar>{routing.loss});
    results.write(*arguments.output);
  }
  print_time([&] { layer.forward(run.x.tokens, run.inputs(), y, workspace); });
}

template <class Layer>
void run_block(const meo::io::SafetensorsReader& reader, const Arguments& arguments,
               meo::AnyActivation activation) {
  using Scalar = typename Layer::Scalar;
  const Metadata metadata(reader);
  const Run<Scalar> run(reader, input_of(arguments), metadata);
  const std::string up = prefix_of(arguments) + "up.";
  const auto [hidden_features, features] = weight_shape(reader, up, Layer::Kind::stacks_experts);
  const auto options = completed(meo::FeedForwardOptions{.features = features,
                                                         .hidden_features = hidden_features,
                                                         .gated = metadata.flag("gated"),
                                                         .shared_gate = metadata.flag("shared_gate")},
                                 reader, up, Layer::Kind::stacks_experts, run.task_features());
  using Block = meo::FeedForward<Layer, meo::AnyActivation>;
  meo::io::check_shapes<Block>(options, reader, prefix_of(arguments));
  Block block(options, activation);
  meo::io::load(block, reader, prefix_of(arguments), {.require_finite = true});

  report_block(block, reader.file(), input_of(arguments), reader.info(input_of(arguments)).shape, run.note,
               run.x.tokens, run.inputs(), results_of<Scalar>(reader, arguments), arguments.output);
}

template <class Layer>
void run_kind(const meo::io::SafetensorsReader& reader, const Arguments& arguments) {
  const Metadata metadata(reader);
  const std::string block = metadata.text("block", "");
  if (block.empty()) return run_layer<Layer>(reader, arguments);
  if (block != "ffn") metadata.fail("block", "ffn or none", block);
  const std::string activation = metadata.text("activation", "gelu");
  if (const auto chosen = meo::AnyActivation::from_name(activation))
    return run_block<Layer>(reader, arguments, *chosen);
  metadata.fail("activation", "relu, gelu, gelu_tanh, silu or identity", activation);
}

template <class Scalar>
void run_scalar(const meo::io::SafetensorsReader& reader, const Arguments& arguments) {
  const std::string& kind = reader.metadata("kind");
  if (kind == "MoE") return run_kind<meo::MoeLayer<Scalar>>(reader, arguments);
  if (kind == "MEO" || kind == "Conv1D_MEO") return run_kind<meo::MeoLayer<Scalar>>(reader, arguments);
  Metadata(reader).fail("kind", "MoE, MEO or Conv1D_MEO", kind);
}

/// Doubles are computed as doubles, everything else in float.
inline void run_authors(const meo::io::SafetensorsReader& reader, const Arguments& arguments) {
  if (arguments.layer) throw UsageError("--layer is for models of a family");
  if (reader.info(input_of(arguments)).dtype == meo::io::DType::F64)
    return run_scalar<double>(reader, arguments);
  run_scalar<float>(reader, arguments);
}

}  // namespace run_checkpoint

#pragma once

/// Fills layers from the parameters of a checkpoint and saves them, under the names of the MEO authors'
/// state_dict and in PyTorch's form:
///
///     w_gate, w_noise (D_g × N)
///     MoeLayer: experts.i.dense.weight (F × D), experts.i.dense.bias (F)
///     MeoLayer: weight (N × F × D), bias (N × F); at token level tokenatt.down_proj, tokenatt.up_proj
///     at task level: task_proj
///
/// of which the last three are a `.weight` and a `.bias` each. A block has those of its projections under
/// `up.`, `gate_up.` and `down.`.
///
/// Letters: D in_features, F out_features, N num_experts, D_g features that the gate sees.

#include <algorithm>
#include <array>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <meo/experts/linear.hpp>
#include <meo/io/error.hpp>
#include <meo/io/safetensors_reader.hpp>
#include <meo/io/safetensors_writer.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::io {

struct LoadOptions {
  /// Whether a parameter that is NaN, infinite or too large for the layer's scalar is an error; it names the
  /// first, in row-major order. Reads the file twice.
  bool require_finite = false;
};

namespace detail {

/// Reads parameters under a prefix and remembers which, to find those that have no place.
class ParameterReader {
 public:
  ParameterReader(const SafetensorsReader& file, std::string_view prefix, const LoadOptions& options)
      : file_(file), prefix_(prefix), options_(options) {}

  /// The parameters of a MoeLayer or MeoLayer, whose names begin with the prefix and `part`.
  template <class Layer>
  void fill(Layer& layer, const std::string& part = "") {
    using Scalar = typename Layer::Scalar;
    auto& gate = layer.gate();
    gate.set_weight(
        file_.read_matrix<Scalar>(use<Scalar>(part + "w_gate"), gate.gate_features(), gate.num_experts()));
    gate.set_noise_weight(
        file_.read_matrix<Scalar>(use<Scalar>(part + "w_noise"), gate.gate_features(), gate.num_experts()));
    if (layer.options().level == Level::task) fill_linear(layer.task_projection(), part + "task_proj.");
    if constexpr (Layer::merges_experts) {
      fill_stacked_experts(layer, part);
      if (layer.options().level == Level::token) {
        fill_linear(layer.token_attention().down(), part + "tokenatt.down_proj.");
        fill_linear(layer.token_attention().up(), part + "tokenatt.up_proj.");
      }
    } else {
      fill_single_experts(layer, part);
    }
  }

  /// Throws if there is a parameter under the prefix that no layer had a place for: an expert too many, a
  /// bias, another level. Other tensors may stand beside: inputs, where the prefix is empty, and the
  /// constants mean and std of the authors' normal distribution.
  void check_all_used() const {
    for (const std::string& name : file_.names()) {
      if (!name.starts_with(prefix_) || used_.contains(name)) continue;
      const std::string_view rest = std::string_view(name).substr(prefix_.size());
      const std::string_view word = rest.substr(0, rest.find('.'));
      if (std::find(first_words.begin(), first_words.end(), word) != first_words.end()) {
        throw Error(file_.file(), name, "is no parameter of what is loaded");
      }
    }
  }

 private:
  /// What the authors' names begin with, up to the first dot.
  static constexpr std::array<std::string_view, 10> first_words{
      "w_gate", "w_noise", "weight", "bias", "experts", "tokenatt", "task_proj", "up", "gate_up", "down"};

  /// The name under the prefix, which is used from now on.
  template <class Scalar>
  std::string use(const std::string& name) {
    const std::string& full = *used_.insert(prefix_ + name).first;
    if (options_.require_finite) file_.check_finite<Scalar>(full);
    return full;
  }

  template <class Scalar>
  void fill_linear(Linear<Scalar>& linear, const std::string& part) {
    linear.set_weight(
        file_.read_matrix<Scalar>(use<Scalar>(part + "weight"), linear.out_features(), linear.in_features()));
    linear.set_bias(file_.read_vector<Scalar>(use<Scalar>(part + "bias"), linear.out_features()));
  }

  template <class Layer>
  void fill_single_experts(Layer& layer, const std::string& part) {
    using Scalar = typename Layer::Scalar;
    for (Index expert = 0; expert < layer.num_experts(); ++expert) {
      const std::string dense = part + "experts." + std::to_string(expert) + ".dense.";
      layer.set_weight(expert, file_.read_matrix<Scalar>(use<Scalar>(dense + "weight"), layer.out_features(),
                                                         layer.in_features()));
      if (layer.options().bias) {
        layer.set_bias(expert, file_.read_vector<Scalar>(use<Scalar>(dense + "bias"), layer.out_features()));
      }
    }
  }

  /// Expert by expert, so that no second copy of all of them is in memory.
  template <class Layer>
  void fill_stacked_experts(Layer& layer, const std::string& part) {
    using Scalar = typename Layer::Scalar;
    const Index experts = layer.num_experts(), rows = layer.out_features(), cols = layer.in_features();
    const std::string weight = use<Scalar>(part + "weight");
    file_.check_shape(weight, {experts, rows, cols});
    for (Index expert = 0; expert < experts; ++expert) {
      const auto values = file_.read<Scalar>(weight, expert * rows * cols, rows * cols);
      layer.set_weight(expert, Eigen::Map<const Matrix<Scalar>>(values.data(), rows, cols));
    }
    if (!layer.options().bias) return;
    const std::string bias = use<Scalar>(part + "bias");
    file_.check_shape(bias, {experts, rows});
    for (Index expert = 0; expert < experts; ++expert) {
      const auto values = file_.read<Scalar>(bias, expert * rows, rows);
      layer.set_bias(expert, Eigen::Map<const Vector<Scalar>>(values.data(), rows));
    }
  }

  const SafetensorsReader& file_;
  std::string prefix_;
  LoadOptions options_;
  std::set<std::string> used_;
};

}  // namespace detail

/// Fills a MoeLayer or a MeoLayer. Needs all of its parameters, each in its shape and in any type that can be
/// read, and no other parameters of the authors' names under the prefix. Throws Error, and then leaves the
/// layer as it was.
template <class Layer>
void load(Layer& layer, const SafetensorsReader& file, std::string_view prefix = "param.",
          const LoadOptions& options = {}) {
  Layer loaded = layer;
  detail::ParameterReader parameters(file, prefix, options);
  parameters.fill(loaded);
  parameters.check_all_used();
  layer = std::move(loaded);
}

/// The same for a block.
template <class Layer, class Activation>
void load(FeedForward<Layer, Activation>& block, const SafetensorsReader& file,
          std::string_view prefix = "param.", const LoadOptions& options = {}) {
  // Layer by layer, because an activation may not be assignable.
  Layer up = block.up();
  Layer down = block.down();
  std::optional<Layer> gate_up;
  detail::ParameterReader parameters(file, prefix, options);
  parameters.fill(up, "up.");
  parameters.fill(down, "down.");
  if (block.options().gated) parameters.fill(gate_up.emplace(block.gate_up()), "gate_up.");
  parameters.check_all_used();
  block.up() = std::move(up);
  block.down() = std::move(down);
  if (gate_up) block.gate_up() = std::move(*gate_up);
}

/// Adds the parameters of a MoeLayer or a MeoLayer, or of a layer that holds their gradients or moments, for
/// load to read. Throws Error for a name that the writer has already.
template <class Layer>
void save(const Layer& layer, SafetensorsWriter& writer, const std::string& prefix = "param.") {
  using Scalar = typename Layer::Scalar;
  const auto add_linear = [&](const Linear<Scalar>& linear, const std::string& part) {
    writer.add(prefix + part + ".weight", linear.weight());
    writer.add(prefix + part + ".bias", linear.bias());
  };
  writer.add(prefix + "w_gate", layer.gate().weight());
  writer.add(prefix + "w_noise", layer.gate().noise_weight());
  if (layer.options().level == Level::task) add_linear(layer.task_projection(), "task_proj");
  const Index experts = layer.num_experts(), rows = layer.out_features(), cols = layer.in_features();
  const bool bias = layer.options().bias;
  if constexpr (Layer::merges_experts) {
    Matrix<Scalar> weights(experts * rows, cols), biases(experts, rows);
    for (Index expert = 0; expert < experts; ++expert) {
      weights.middleRows(expert * rows, rows) = layer.weight(expert);
      if (bias) biases.row(expert) = layer.bias(expert).transpose();
    }
    writer.add(prefix + "weight", {experts, rows, cols}, weights);
    if (bias) writer.add(prefix + "bias", biases);
    if (layer.options().level == Level::token) {
      add_linear(layer.token_attention().down(), "tokenatt.down_proj");
      add_linear(layer.token_attention().up(), "tokenatt.up_proj");
    }
  } else {
    for (Index expert = 0; expert < experts; ++expert) {
      const std::string dense = prefix + "experts." + std::to_string(expert) + ".dense.";
      writer.add(dense + "weight", layer.weight(expert));
      if (bias) writer.add(dense + "bias", layer.bias(expert));
    }
  }
}

/// The same for a block.
template <class Layer, class Activation>
void save(const FeedForward<Layer, Activation>& block, SafetensorsWriter& writer,
          const std::string& prefix = "param.") {
  save(block.up(), writer, prefix + "up.");
  if (block.options().gated) save(block.gate_up(), writer, prefix + "gate_up.");
  save(block.down(), writer, prefix + "down.");
}

}  // namespace meo::io

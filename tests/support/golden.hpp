#pragma once

/// The golden files (tests/goldens/README.md): inputs, parameters and results of the authors' own PyTorch
/// code, as the reference's types.

#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <meo/io/safetensors.hpp>
#include <meo/types.hpp>

#include "reference/reference.hpp"
#include "support/golden_files.hpp"

namespace meo::test {

/// One golden file; its tensors are read as S, which must be at least as wide as theirs.
template <class S>
class Golden {
 public:
  explicit Golden(const std::filesystem::path& path) : name_(path.stem().string()), reader_(path) {}

  const std::string& name() const { return name_; }
  const io::SafetensorsReader& reader() const { return reader_; }

  const std::string& text(const std::string& key) const { return reader_.metadata(key); }
  Index integer(const std::string& key) const { return Index(std::stoll(text(key))); }
  double real(const std::string& key) const { return std::stod(text(key)); }
  bool flag(const std::string& key) const { return text(key) == "True"; }
  bool is_block() const { return reader_.metadata().contains("block"); }
  bool is_single_precision() const { return reader_.info("x").dtype == io::DType::F32; }
  bool has(const std::string& tensor) const { return reader_.contains(tensor); }

  /// The tensor with all but its last dimension flattened into rows.
  Matrix<S> matrix(const std::string& tensor) const {
    const auto shape = reader_.info(tensor).shape;
    const std::vector<S> values = reader_.template read<S>(tensor);
    const Index cols = shape.empty() ? 1 : Index(shape.back());
    const Index rows = cols == 0 ? 0 : Index(values.size()) / cols;
    return Eigen::Map<const Matrix<S>>(values.data(), rows, cols);
  }

  Vector<S> vector(const std::string& tensor) const { return matrix(tensor).reshaped(); }

  Level level() const {
    const std::string level = text("level");
    if (level == "token") return Level::token;
    if (level == "sequence") return Level::sequence;
    if (level == "task") return Level::task;
    throw std::runtime_error(name_ + ": unknown level " + level);
  }

  reference::Kind kind() const { return text("kind") == "MoE" ? reference::Kind::moe : reference::Kind::meo; }

  /// The layer whose parameters stand under `prefix`.
  reference::Layer<S> layer(const std::string& prefix = "param.") const {
    reference::Layer<S> layer;
    layer.kind = kind();
    layer.level = level();
    layer.top_k = integer("top_k");
    layer.reduce_factor = integer("reduce_factor");
    layer.gate_before_attention = text("kind") == "Conv1D_MEO";
    layer.loss_coefficient = real("loss_coef");
    if (!is_block()) layer.noise_epsilon = real("noise_epsilon");
    layer.gate_weight = matrix(prefix + "w_gate");
    layer.noise_weight = matrix(prefix + "w_noise");
    const Index num_experts = integer("num_experts");
    for (Index i = 0; i < num_experts; ++i) {
      if (layer.kind == reference::Kind::moe) {
        layer.experts.push_back(affine(prefix + "experts." + std::to_string(i) + ".dense."));
      } else {
        const Matrix<S> all = matrix(prefix + "weight");  // N · F × D
        const Index rows = all.rows() / num_experts;
        reference::Affine<S> expert{all.middleRows(i * rows, rows), {}};
        if (has(prefix + "bias")) expert.bias = matrix(prefix + "bias").row(i).transpose();
        layer.experts.push_back(std::move(expert));
      }
    }
    if (layer.has_attention()) {
      layer.attention_down = affine(prefix + "tokenatt.down_proj.");
      layer.attention_up = affine(prefix + "tokenatt.up_proj.");
    }
    if (layer.level == Level::task) layer.task_projection = affine(prefix + "task_proj.");
    return layer;
  }

  reference::Block<S> block(const std::string& prefix = "param.") const {
    reference::Block<S> block;
    block.gated = flag("gated");
    block.up = layer(prefix + "up.");
    if (block.gated) block.gate_up = layer(prefix + "gate_up.");
    block.down = layer(prefix + "down.");
    const std::map<std::string, reference::Activation> activations{{"relu", reference::Activation::relu},
                                                                   {"gelu", reference::Activation::gelu},
                                                                   {"silu", reference::Activation::silu}};
    block.activation = activations.at(text("activation"));
    return block;
  }

  reference::Batch<S> batch() const {
    reference::Batch<S> batch;
    batch.offsets = uniform_offsets("x");
    if (has("task_embeddings")) {
      batch.task_embeddings = matrix("task_embeddings");
      batch.description_offsets = uniform_offsets("task_embeddings");
      for (Index b = 0; b < batch.size(); ++b) batch.task_of_sequence.push_back(b);
    }
    if (has("noise")) batch.noise = matrix("noise");
    return batch;
  }

 private:
  reference::Affine<S> affine(const std::string& prefix) const {
    reference::Affine<S> affine{matrix(prefix + "weight"), {}};
    if (has(prefix + "bias")) affine.bias = vector(prefix + "bias");
    return affine;
  }

  /// Offsets of the sequences of a tensor (B, T, ·).
  std::vector<Index> uniform_offsets(const std::string& tensor) const {
    const auto shape = reader_.info(tensor).shape;
    return reference::offsets_from_lengths(std::vector<Index>(std::size_t(shape.at(0)), Index(shape.at(1))));
  }

  std::string name_;
  io::SafetensorsReader reader_;
};

}  // namespace meo::test

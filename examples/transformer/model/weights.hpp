#pragma once

/// Fills models from checkpoints, and saves them, under the names of published ones and of the MEO authors'.
///
/// Names are taken with and without the `bert.` or `transformer.` that they begin with, and layer norms' also
/// as gamma and beta. Where a model has mixtures and the checkpoint a dense projection, each expert becomes a
/// copy of it ("upcycling").

#include <algorithm>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/io/error.hpp>
#include <meo/io/safetensors_reader.hpp>
#include <meo/io/safetensors_writer.hpp>
#include <meo/io/tensor_files.hpp>
#include <meo/io/tensor_parts.hpp>

#include "config.hpp"
#include "model.hpp"
#include "parameter.hpp"
#include "projection.hpp"

namespace transformer {

using meo::io::TensorFiles;

/// A tensor of a file and how it is read from the model and written to it.
template <class Scalar>
using Tensor = meo::io::TensorPart<Scalar>;

/// ParameterType: Parameter, const or not.
template <class Scalar, class ParameterType>
Tensor<Scalar> tensor_of(std::string_view name, ParameterType& parameter) {
  auto& matrix = parameter.matrix;
  typename Tensor<Scalar>::Write write;
  if constexpr (!std::is_const_v<ParameterType>) {
    write = [&matrix](Index row, Index column, std::span<const Scalar> values) {
      std::copy(values.begin(), values.end(), &matrix(row, column));
    };
  }
  return {std::string(name), parameter.shape(), matrix.cols(),
          [&matrix](Index row, Index column, std::span<Scalar> values) {
            std::copy_n(&matrix(row, column), values.size(), values.begin());
          },
          std::move(write)};
}

/// Adds a projection's tensor, and that of its bias. bank: the projection's, const or not.
template <class Scalar, class Bank>
void add_tensors(Bank& bank, const LinearTensor& tensor, std::vector<Tensor<Scalar>>& tensors) {
  const Index in = bank.in_features(), out = tensor.count, first = tensor.first;
  typename Tensor<Scalar>::Write write, write_bias;
  // Of a turned weight a row is a column of the bank's, one value of each of its rows.
  if constexpr (!std::is_const_v<Bank>) {
    write = [&bank, first, turned = tensor.turned](Index row, Index column, std::span<const Scalar> values) {
      if (!turned) return bank.write_row(0, first + row, column, values);
      for (std::size_t i = 0; i < values.size(); ++i)
        bank.write_row(0, column + static_cast<Index>(i), row, values.subspan(i, 1));
    };
    write_bias = [&bank, first](Index, Index column, std::span<const Scalar> values) {
      bank.write_bias(0, first + column, values);
    };
  }
  std::vector<Index> shape{out, in};
  if (tensor.turned) std::swap(shape[0], shape[1]);
  tensors.emplace_back(
      tensor.weight, shape, shape[1],
      [&bank, first, turned = tensor.turned](Index row, Index column, std::span<Scalar> values) {
        if (!turned) return bank.read_row(0, first + row, column, values);
        for (std::size_t i = 0; i < values.size(); ++i)
          bank.read_row(0, column + static_cast<Index>(i), row, values.subspan(i, 1));
      },
      std::move(write));
  if (!bank.has_bias()) return;
  tensors.emplace_back(
      tensor.bias, std::vector<Index>{out}, out,
      [&bank, first](Index, Index column, std::span<Scalar> values) {
        bank.read_bias(0, first + column, values);
      },
      std::move(write_bias));
}

/// All tensors of a model, const or not. They refer to it.
template <class ModelType>
std::vector<Tensor<typename ModelType::Scalar>> tensors_of_model(ModelType& model) {
  using Scalar = typename ModelType::Scalar;
  std::vector<Tensor<Scalar>> tensors;
  model.visit([&](std::string_view name, auto&& part) {
    if constexpr (requires { part.matrix; }) {
      tensors.push_back(tensor_of<Scalar>(name, part));
    } else if constexpr (requires { part.tensors; }) {
      for (const LinearTensor& tensor : part.tensors) add_tensors(part.linear.bank(), tensor, tensors);
    }  // else of a mixture
  });
  model.visit_projections([&](const std::string& name, auto& projection) {
    for (Tensor<Scalar>& tensor : projection.mixture_tensors(name + "."))
      tensors.push_back(std::move(tensor));
  });
  return tensors;
}

/// Adds all tensors, not copied: the model has to live, and to stay as it is, until the writer has written.
template <class Scalar>
void save(const Model<Scalar>& model, meo::io::SafetensorsWriter& writer, const std::string& prefix = "") {
  for (const Tensor<Scalar>& tensor : tensors_of_model(model)) {
    writer.add_deferred<Scalar>(
        prefix + tensor.name(), tensor.shape(),
        [tensor](Index first, std::span<Scalar> values) { tensor.read(first, values); });
  }
}

/// Finds a model's tensors in a checkpoint.
class TensorNames {
 public:
  /// prefix: of the family's names.
  TensorNames(const TensorFiles& files, std::string_view prefix) : files_(files), prefix_(prefix) {
    const std::vector<std::string> names = files.names();
    has_prefix_ = std::any_of(names.begin(), names.end(),
                              [&](const std::string& name) { return name.starts_with(prefix_); });
  }

  /// What the checkpoint calls the tensor; its own name where there is none.
  std::string in_file(const std::string& name) const {
    const bool cut = !has_prefix_ && name.starts_with(prefix_);
    const std::string in_file = cut ? name.substr(prefix_.size()) : name;
    if (files_.contains(in_file)) return in_file;
    for (const auto& [end, old_end] : {std::pair{".weight", ".gamma"}, {".bias", ".beta"}}) {
      if (!in_file.ends_with(end)) continue;
      const std::string old_name = in_file.substr(0, in_file.size() - std::string_view(end).size()) + old_end;
      if (files_.contains(old_name)) return old_name;
    }
    return in_file;
  }

  /// Whether published checkpoints have tensors of that name that no model here needs: other heads, copies of
  /// tied weights, constants; at other levels than the task's also its embeddings.
  bool is_unneeded(const std::string& name) const {
    for (const std::string_view start : {"cls.", "classifier.", "lm_head.", "bert.pooler.", "pooler."}) {
      if (name.starts_with(start)) return true;
    }
    for (const std::string_view end : {"embeddings.position_ids", "embeddings.task_embeddings.weight",
                                       ".attn.bias", ".attn.masked_bias", ".mean", ".std"}) {
      if (name.ends_with(end)) return true;
    }
    return false;
  }

 private:
  const TensorFiles& files_;
  std::string_view prefix_;
  bool has_prefix_ = false;
};

struct LoadOptions {
  /// To train from here: what a checkpoint of another task lacks, the classifier and, where it learned words
  /// alone, the pooler, keeps the start values that the model has, and mixtures that start from dense
  /// projections have their gates spread by this generator; see meo::MixtureLayer::initialize_from_dense.
  /// Null: a missing tensor is an error, and gates that a dense checkpoint cannot have are zero.
  std::mt19937_64* training = nullptr;
};

/// What a dense checkpoint has for a projection.
template <class Scalar>
struct DenseTensors {
  Projection<Scalar>* projection;
  std::string weight, bias;
};

/// The mixtures of a model that the checkpoint has as dense projections.
template <class Scalar>
std::vector<DenseTensors<Scalar>> dense_in_file(Model<Scalar>& model, const TensorFiles& files,
                                                const TensorNames& names) {
  std::vector<DenseTensors<Scalar>> all;
  model.visit_projections([&](const std::string& name, auto& projection) {
    const std::string weight = names.in_file(name + ".weight");
    if (projection.is_dense() || !files.contains(weight)) return;
    if (files.file_of(weight).info(files.prefix() + weight).shape.size() != 2) return;  // all experts of MEO
    all.push_back({&projection, weight, names.in_file(name + ".bias")});
  });
  return all;
}

/// Throws meo::io::Error, which names the tensor, unless both have their shapes and are finite.
template <class Scalar>
void upcycle(const TensorFiles& files, const DenseTensors<Scalar>& dense, std::mt19937_64* rng) {
  const meo::LayerOptions& options = dense.projection->mixture_options();
  const Index out = options.out_features;
  Index rows = out, columns = options.in_features;
  const bool turned = dense.projection->is_turned();
  if (turned) std::swap(rows, columns);
  const std::string weight_name = files.prefix() + dense.weight, bias_name = files.prefix() + dense.bias;
  const meo::io::SafetensorsReader &weight_file = files.file_of(dense.weight),
                                   &bias_file = files.file_of(dense.bias);
  weight_file.check<Scalar>(weight_name, {rows, columns}, true);
  bias_file.check<Scalar>(bias_name, {out}, true);
  meo::Matrix<Scalar> weight = weight_file.read_matrix<Scalar>(weight_name, rows, columns);
  if (turned) weight = meo::Matrix<Scalar>(weight.transpose());
  dense.projection->initialize_from_dense(weight, bias_file.read_vector<Scalar>(bias_name, out), rng);
}

/// Fills a model. Needs all of its parameters, each in its shape, and refuses tensors that are of no known
/// use, as those of a layer too many. Throws meo::io::Error, which names the tensor; the model may then have
/// some of the checkpoint's parameters. Throws std::invalid_argument where it is to be trained and cannot be.
template <class Scalar>
void load(Model<Scalar>& model, const TensorFiles& files, const LoadOptions& options = {}) {
  constexpr Index piece = 16384;  // values read at a time, or a row of more
  if (options.training != nullptr) require_trainable(model.config());
  const TensorNames names(files, prefix_of(model.config().family));
  std::set<std::string> used;
  std::set<std::string> upcycled;  // what projections' names begin with
  for (const auto& dense : dense_in_file(model, files, names)) {
    used.insert({dense.weight, dense.bias});
    upcycle(files, dense, options.training);
  }
  model.visit_projections([&](const std::string& name, auto& projection) {
    if (!projection.is_dense() && used.contains(names.in_file(name + ".weight"))) upcycled.insert(name + ".");
  });
  const auto starts_elsewhere = [&](const std::string& name) {
    if (files.contains(names.in_file(name))) return false;
    if (name.starts_with("classifier.") || name.starts_with("bert.pooler."))
      return options.training != nullptr;
    return !upcycled.empty() && name.ends_with("task_embeddings.weight");
  };
  std::vector<Scalar> buffer;
  for (const Tensor<Scalar>& tensor : tensors_of_model(model)) {
    const bool is_upcycled = std::any_of(upcycled.begin(), upcycled.end(), [&](const std::string& start) {
      return tensor.name().starts_with(start);
    });
    if (is_upcycled || starts_elsewhere(tensor.name())) continue;
    const std::string name = names.in_file(tensor.name());
    const meo::io::SafetensorsReader& file = files.file_of(name);
    const std::string full_name = files.prefix() + name;
    file.check<Scalar>(full_name, tensor.shape(), true);
    used.insert(name);
    // Whole rows, as experts in 8 bits are written.
    const Index step = (std::max)(piece / tensor.cols(), Index{1}) * tensor.cols();
    for (Index first = 0; first < tensor.size(); first += step) {
      buffer.resize(static_cast<std::size_t>((std::min)(step, tensor.size() - first)));
      const std::span<Scalar> values(buffer);
      file.read_into<Scalar>(full_name, first, values);
      tensor.write(first, values);
    }
  }
  for (const std::string& name : files.names()) {
    if (!used.contains(name) && !names.is_unneeded(name))
      throw meo::io::Error(files.name(), files.prefix() + name, "is no parameter of the model");
  }
}

}  // namespace transformer

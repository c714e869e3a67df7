#pragma once

/// Runs the model of a safetensors file that holds everything: sizes and kind in the metadata, parameters, a
/// batch, labels and noise. `run_model --help` has the names.

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <meo/io/error.hpp>
#include <meo/io/safetensors_reader.hpp>
#include <meo/io/safetensors_writer.hpp>

#include "model/config_json.hpp"
#include "model/model.hpp"
#include "model/weights.hpp"

namespace transformer {

/// The metadata as a config.json would have them.
inline nlohmann::json json_of_metadata(const meo::io::SafetensorsReader& file) {
  nlohmann::json json;
  for (const auto& [name, text] : file.metadata()) {
    const nlohmann::json value = nlohmann::json::parse(text, nullptr, false);
    json[name] = value.is_number() ? value : nlohmann::json(text);
  }
  json["model_type"] = file.metadata("model");
  if (json.contains("activation")) json["activation_function"] = json["activation"];
  const std::string &model = file.metadata("model"), &head = file.metadata("head");
  if (model != "bert" && model != "gpt2") return json;  // which has an error of its own
  const bool classifies = head == "classification" || head == "regression";
  if (model == "gpt2" ? head != "lm" : !classifies && head != "mlm") {
    throw meo::io::Error(file.file(), std::string("metadata head: expected ") +
                                          (model == "gpt2" ? "lm" : "classification, regression or mlm") +
                                          " of a " + model + ", got '" + head + "'");
  }
  if (head == "regression") json["problem_type"] = "regression";
  if (model != "gpt2")
    json["architectures"] = {classifies ? "BertForSequenceClassification" : "BertForMaskedLM"};
  return json;
}

/// A tensor of B × T ids, of which the mask leaves some out.
class RecordedTexts {
 public:
  explicit RecordedTexts(const meo::io::SafetensorsReader& file) : file_(file) {
    const std::vector<Index> shape = shape_of(file, "input_ids");
    texts_ = shape[0];
    length_ = shape[1];
    if (file.contains("attention_mask")) mask_ = ids("attention_mask");
    else mask_.assign(static_cast<std::size_t>(texts_ * length_), 1);
  }

  static std::vector<Index> shape_of(const meo::io::SafetensorsReader& file, const std::string& name) {
    const std::vector<Index>& shape = file.info(name).shape;
    if (shape.size() != 2) throw meo::io::Error(file.file(), name, "expected a shape of two dimensions");
    return shape;
  }

  bool has_padding() const { return std::find(mask_.begin(), mask_.end(), 0) != mask_.end(); }
  std::vector<Index> shape() const { return {texts_, length_}; }

  Batch batch() const {
    Batch batch;
    batch.words = unmasked("input_ids");
    if (file_.contains("token_type_ids")) batch.types = unmasked("token_type_ids");
    std::vector<Index> lengths(static_cast<std::size_t>(texts_), 0);
    for (Index i = 0; i < texts_ * length_; ++i) {
      if (mask_[static_cast<std::size_t>(i)] == 0) continue;
      ++lengths[static_cast<std::size_t>(i / length_)];
      batch.places.push_back(i % length_);
    }
    batch.sequences = meo::Sequences::from_lengths(lengths);
    if (file_.contains("task_ids")) {
      const std::vector<Index> shape = shape_of(file_, "task_ids");
      batch.task_words = file_.read<Index>("task_ids");
      batch.descriptions = meo::Sequences::uniform(shape[0], shape[1]);
    }
    return batch;
  }

  /// Those of the tokens that the mask leaves.
  std::vector<Index> unmasked(const std::string& name) const {
    std::vector<Index> values = ids(name), left;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (mask_[i] != 0) left.push_back(values[i]);
    }
    return left;
  }

 private:
  std::vector<Index> ids(const std::string& name) const {
    file_.check_shape(name, shape());
    return file_.read<Index>(name);
  }

  const meo::io::SafetensorsReader& file_;
  Index texts_ = 0, length_ = 0;
  std::vector<Index> mask_;
};

/// noise.0, noise.1, … as far as there are some.
template <class Scalar>
std::vector<meo::Matrix<Scalar>> recorded_noise(const meo::io::SafetensorsReader& file) {
  std::vector<meo::Matrix<Scalar>> noise;
  for (std::string name = "noise.0"; file.contains(name); name = "noise." + std::to_string(noise.size())) {
    const std::vector<Index> shape = RecordedTexts::shape_of(file, name);
    noise.push_back(file.read_matrix<Scalar>(name, shape[0], shape[1]));
  }
  return noise;
}

/// The task's loss; its gradient replaces the logits.
template <class Scalar>
Scalar recorded_loss(const meo::io::SafetensorsReader& file, const RecordedTexts& texts, const Batch& batch,
                     Task task, Rows<Scalar> logits) {
  switch (task) {
    case Task::classification:
      return cross_entropy<Scalar>(logits, file.read<Index>("labels"));
    case Task::regression:
      return squared_error<Scalar>(logits, file.read<Scalar>("labels"));
    case Task::masked_words:
      return cross_entropy<Scalar>(logits, texts.unmasked("labels"));
    case Task::next_word:
    case Task::hidden_states:
      break;
  }
  return cross_entropy<Scalar>(logits, next_words(batch, texts.unmasked("labels")));
}

/// Results in the dtypes of the file's own, where it has them, and else of its logits.
class RecordedResults {
 public:
  explicit RecordedResults(const meo::io::SafetensorsReader& file) : file_(file) {}

  meo::io::DType dtype(const std::string& name) const {
    if (file_.contains(name)) return file_.info(name).dtype;
    return file_.contains("logits") ? file_.info("logits").dtype : meo::io::DType::F32;
  }
  meo::io::SafetensorsWriter& writer() { return writer_; }

 private:
  const meo::io::SafetensorsReader& file_;
  meo::io::SafetensorsWriter writer_;
};

template <class Scalar>
void run_recorded(const Config& config, const meo::io::SafetensorsReader& file, bool with_gradients,
                  const std::optional<std::filesystem::path>& output) {
  Model<Scalar> model(config);
  if (with_gradients && !file.contains("labels"))
    throw meo::io::Error(file.file(), "labels", "is not in the file, and --gradients needs them");
  load(model, TensorFiles(file, "param."));
  const RecordedTexts texts(file);
  const Batch batch = texts.batch();
  const std::vector<meo::Matrix<Scalar>> noise = recorded_noise<Scalar>(file);
  const Training<Scalar> training{.noise = GateNoise<Scalar>(std::span(noise)), .dropout_seed = {}};
  typename Model<Scalar>::Context context;
  Rows<Scalar> logits = model.forward(batch, &training, context);

  RecordedResults results(file);
  std::vector<Index> shape{logits.rows(), logits.cols()};
  const Task task = config.task;
  const bool of_words = task == Task::masked_words || task == Task::next_word;
  if (of_words && !texts.has_padding()) shape = {texts.shape()[0], texts.shape()[1], logits.cols()};
  results.writer().add("logits", shape, logits, results.dtype("logits"));
  Scalar loss = context.balance_loss;
  std::cout << "tokens: " << batch.tokens() << "\nlogits: " << logits.rows() << " x " << logits.cols()
            << '\n';
  if (config.mixture.kind != Mixture::none) {
    results.writer().add("moe_loss", {1}, std::vector<Scalar>{loss}, results.dtype("moe_loss"));
    std::cout << "moe_loss: " << loss << '\n';
  }
  std::optional<Model<Scalar>> gradients;
  if (file.contains("labels")) {
    loss += recorded_loss<Scalar>(file, texts, batch, task, logits);
    results.writer().add("loss", {1}, std::vector<Scalar>{loss}, results.dtype("loss"));
    std::cout << "loss: " << loss << '\n';
    if (with_gradients) {
      gradients.emplace(config);
      meo::set_zero(meo::parameters(*gradients));
      model.backward(batch, &training, context, *gradients);
      for (const Tensor<Scalar>& tensor : tensors_of_model(*gradients)) {
        const std::string name = "grad." + tensor.name();
        results.writer().add_deferred<Scalar>(
            name, tensor.shape(),
            [tensor](Index first, std::span<Scalar> values) { tensor.read(first, values); },
            results.dtype(name));
      }
    }
  }
  if (output) results.writer().write(*output);
}

/// Computes in double where the file's logits are, else in float.
inline void run_recorded(const std::filesystem::path& path, bool with_gradients,
                         const std::optional<std::filesystem::path>& output) {
  const meo::io::SafetensorsReader file(path);
  const Config config = config_from_json(json_of_metadata(file), file.file());
  if (file.contains("logits") && file.info("logits").dtype == meo::io::DType::F64)
    run_recorded<double>(config, file, with_gradients, output);
  else run_recorded<float>(config, file, with_gradients, output);
}

}  // namespace transformer

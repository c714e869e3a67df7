#pragma once

/// What a classifier says of texts: scores, and files as GLUE takes them.

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <meo/io/output_file.hpp>

#include "../model/batch.hpp"
#include "../model/model.hpp"
#include "glue_tasks.hpp"
#include "labelled_texts.hpp"
#include "metrics.hpp"

namespace transformer {

/// Of each text its class or its value.
struct Predictions {
  std::vector<Index> classes;
  std::vector<double> values;
};

/// Calls visit(numbers, texts) for all texts, some at a time.
template <class Visitor>
void for_each_batch(const LabelledTexts& all, const TaskWords& task, const Visitor& visit) {
  constexpr Index at_a_time = 32;
  std::vector<Index> numbers(static_cast<std::size_t>(all.size()));
  std::iota(numbers.begin(), numbers.end(), Index{0});
  for (Index first = 0; first < all.size(); first += at_a_time) {
    const auto some = std::span<const Index>(numbers).subspan(
        static_cast<std::size_t>(first), static_cast<std::size_t>((std::min)(at_a_time, all.size() - first)));
    visit(some, all.batch(some, task));
  }
}

inline Predictions predict(const Model<float>& model, const LabelledTexts& all, const TaskWords& task,
                           Model<float>::Context& context) {
  Predictions predictions;
  for_each_batch(all, task, [&](std::span<const Index>, const Texts<float>& texts) {
    const Rows<float> logits = model.forward(texts.batch, nullptr, context);
    for (Index row = 0; row < logits.rows(); ++row) {
      if (model.config().task == Task::regression) {
        predictions.values.push_back(static_cast<double>(logits(row, 0)));
        continue;
      }
      Index best = 0;
      logits.row(row).maxCoeff(&best);
      predictions.classes.push_back(best);
    }
  });
  return predictions;
}

inline double score(Metric metric, const Predictions& predictions, const LabelledTexts& texts,
                    Index classes) {
  switch (metric) {
    case Metric::f1:
      return f1(predictions.classes, texts.classes);
    case Metric::macro_f1:
      return macro_f1(predictions.classes, texts.classes, classes);
    case Metric::matthews:
      return matthews(predictions.classes, texts.classes, classes);
    case Metric::pearson:
      return pearson(predictions.values, texts.values);
    case Metric::spearman:
      return spearman(predictions.values, texts.values);
    case Metric::accuracy:
      break;
  }
  return accuracy(predictions.classes, texts.classes);
}

/// "index\tprediction", and a line for each text: its number from 0 on, and its label as the task's files
/// have it, or its value within the bounds, with three digits. Throws meo::io::Error if it cannot be written.
inline void write_predictions(const std::filesystem::path& file, const Predictions& predictions,
                              const TextTask& task) {
  std::string text = "index\tprediction\n";
  for (std::size_t i = 0; i < predictions.classes.size(); ++i)
    text += std::to_string(i) + '\t' + task.labels[static_cast<std::size_t>(predictions.classes[i])] + '\n';
  for (std::size_t i = 0; i < predictions.values.size(); ++i) {
    std::array<char, 64> value;
    std::snprintf(value.data(), value.size(), "%.3f",
                  std::clamp(predictions.values[i], task.least, task.most));
    text += std::to_string(i) + '\t' + value.data() + '\n';
  }
  meo::io::write_file(file, std::as_bytes(std::span(text)));
}

}  // namespace transformer

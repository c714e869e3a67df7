#pragma once

/// Runs the model of a folder on texts, and saves it, as it is or with other feed-forward blocks.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <iostream>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <meo/io/safetensors_writer.hpp>

#include "model/model_folder.hpp"

namespace transformer {

struct FolderRun {
  std::filesystem::path folder;
  std::optional<MixtureConfig> mixture;  ///< instead of the folder's own
  const Storage* storage = nullptr;      ///< of experts; null: as they are computed with
  std::optional<std::filesystem::path> save_to;
  std::optional<std::filesystem::path> output;  ///< for the logits or hidden states
  Index mask_word = 103;                        ///< that masked words are printed for; BERT's
  Index most_words = 5;                         ///< printed for a place
};

/// What an id stands for.
using WordText = std::function<std::string(Index)>;

/// Prints the most probable of the row's classes or words, which the row becomes the probabilities of.
template <class Scalar>
void print_most_probable(Rows<Scalar> logits, Index row, Index most, const WordText& text) {
  softmax(logits.row(row).data(), logits.cols());
  std::vector<Index> order(static_cast<std::size_t>(logits.cols()));
  std::iota(order.begin(), order.end(), Index{0});
  most = (std::min)(most, logits.cols());
  std::partial_sort(order.begin(), order.begin() + most, order.end(), [&](Index a, Index b) {
    return logits(row, a) > logits(row, b) || (logits(row, a) == logits(row, b) && a < b);
  });
  for (Index i = 0; i < most; ++i) {
    const Index at = order[static_cast<std::size_t>(i)];
    std::cout << "  " << text(at) << " (" << logits(row, at) << ')';
  }
  std::cout << '\n';
}

/// The tokens that words are printed for: the masks, or the last of each text.
inline std::vector<Index> asked_tokens(const FolderRun& run, Task task, const Batch& batch) {
  std::vector<Index> asked;
  for (Index b = 0; b < batch.sequences.size(); ++b) {
    const Index begin = batch.sequences.begin(b), end = batch.sequences.begin(b + 1);
    if (task == Task::next_word) asked.push_back(end - 1);
    for (Index t = begin; t < end && task == Task::masked_words; ++t) {
      if (batch.words[static_cast<std::size_t>(t)] == run.mask_word) asked.push_back(t);
    }
  }
  return asked;
}

/// asked: see asked_tokens. logits are overwritten.
template <class Scalar>
void print_outputs(const FolderRun& run, Task task, const Batch& batch, const std::vector<Index>& asked,
                   Rows<Scalar> logits, const WordText& word) {
  std::size_t next = 0;  // of those asked
  const auto row_of_next = [&] {
    const std::size_t place = next++;
    return batch.asked.empty() ? asked[place] : static_cast<Index>(place);
  };
  for (Index b = 0; b < batch.sequences.size(); ++b) {
    const Index begin = batch.sequences.begin(b), end = batch.sequences.begin(b + 1);
    std::cout << "text " << b << ", " << end - begin << " tokens";
    switch (task) {
      case Task::regression:
        std::cout << ": " << logits.row(b) << '\n';
        break;
      case Task::classification:
        std::cout << ", class (probability):";
        print_most_probable(logits, b, logits.cols(), [](Index i) { return std::to_string(i); });
        break;
      case Task::masked_words:
        std::cout << '\n';
        while (next < asked.size() && asked[next] < end) {
          std::cout << "  token " << asked[next] - begin << ", word (probability):";
          print_most_probable(logits, row_of_next(), run.most_words, word);
        }
        break;
      case Task::next_word:
        std::cout << ", next word (probability):";
        print_most_probable(logits, row_of_next(), run.most_words, word);
        break;
      case Task::hidden_states:
        std::cout << '\n';
        break;
    }
  }
}

/// Computes in float. batch: without texts, nothing is run. Throws meo::io::Error for a folder or an output
/// that does not work, std::invalid_argument for texts that the model cannot read.
inline void run_folder(const FolderRun& run, Batch batch, const WordText& word) {
  const Model<float> model =
      load_model<float>(run.folder, load_config_with(run.folder, run.mixture, run.storage));
  if (run.save_to) save_model(model, *run.save_to);
  if (batch.sequences.size() == 0) return;
  const Task task = model.config().task;
  const std::vector<Index> asked = asked_tokens(run, task, batch);
  if (!run.output) batch.asked = asked;  // or all that are written
  Model<float>::Context context;
  const Rows<float> outputs = model.forward(batch, nullptr, context);
  if (run.output) {
    meo::io::SafetensorsWriter writer;
    writer.add(task == Task::hidden_states ? "hidden_states" : "logits", outputs);
    writer.write(*run.output);
  }
  print_outputs<float>(run, task, batch, asked, outputs, word);
}

}  // namespace transformer

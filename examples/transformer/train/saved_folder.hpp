#pragma once

/// Folders of models that training begins with and ends as.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include <meo/io/error.hpp>
#include <meo/io/output_file.hpp>

#include "../model/model_folder.hpp"
#include "../text/files.hpp"
#include "../text/folder_tokenizer.hpp"
#include "random.hpp"

namespace transformer {

/// Throws meo::io::Error where the tokenizer has more words than the model.
inline void require_vocabulary(const FolderTokenizer& tokenizer, const Config& config,
                               const std::string& folder) {
  if (static_cast<Index>(tokenizer.size()) <= config.vocabulary) return;
  throw meo::io::Error(folder, "vocab_size: expected at least " + std::to_string(tokenizer.size()) +
                                   ", as the vocabulary has, got " + std::to_string(config.vocabulary));
}

/// The folder's parameters, its dense projections as mixtures where the config has them; random ones where it
/// has no file of them. seed: for what is drawn.
inline Model<float> start_model(const std::filesystem::path& folder, const Config& config,
                                std::uint64_t seed) {
  std::mt19937_64 rng = generator(seed, Draw::start_values);
  if (exists(folder / tensors_file) || exists(folder / index_file))
    return load_model<float>(folder, config, {.training = &rng});
  Model<float> model(config);
  model.initialize(rng);
  return model;
}

/// Writes the model and the tokenizer's files of the folder that it came from. Throws meo::io::Error if it
/// cannot.
inline void save_with_tokenizer(const Model<float>& model, const std::filesystem::path& from,
                                const std::filesystem::path& to) {
  save_model(model, to);
  for (const char* const name : FolderTokenizer::files) {
    std::error_code error;
    if (!exists(from / name) || equivalent(from / name, to / name, error)) continue;
    const std::string text = load_file(from / name);
    meo::io::write_file(to / name, std::as_bytes(std::span(text)));
  }
}

}  // namespace transformer

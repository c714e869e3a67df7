#pragma once

/// Folders of models as they are published: config.json, and model.safetensors or several files with an
/// index.

#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <system_error>

#include <nlohmann/json.hpp>

#include <meo/io/error.hpp>
#include <meo/io/output_file.hpp>
#include <meo/io/safetensors_writer.hpp>
#include <meo/io/tensor_files.hpp>

#include "config_json.hpp"
#include "model.hpp"
#include "weights.hpp"

namespace transformer {

using meo::io::index_file;
using meo::io::tensors_file;

inline constexpr const char* config_file = "config.json";

/// Throws meo::io::Error for a config.json that cannot be read or says of no model here.
inline Config load_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / config_file;
  std::ifstream file(path);
  if (!file) throw meo::io::Error(path.string(), "cannot be opened");
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object()) throw meo::io::Error(path.string(), "expected a JSON object");
  return config_from_json(json, path.string());
}

/// The same with a mixture instead of dense blocks, where one is asked for, and with experts stored so.
/// Throws meo::io::Error also where the folder has another mixture already, and where there are no experts to
/// store.
inline Config load_config_with(const std::filesystem::path& folder,
                               const std::optional<MixtureConfig>& mixture,
                               const Storage* storage = nullptr) {
  Config config = load_config(folder);
  const auto fault = [&](const char* what) { return meo::io::Error((folder / config_file).string(), what); };
  if (mixture) {
    if (config.mixture.kind != Mixture::none)
      throw fault("use_moe: expected none, as a mixture is asked for, got one");
    config.mixture = *mixture;
  }
  if (storage != nullptr && config.mixture.kind == Mixture::none)
    throw fault("use_moe: expected a mixture, whose experts are to be stored in fewer bits, got none");
  config.mixture.storage = storage;
  check_config(config);
  return config;
}

/// The parameters of a folder in a model of a config that need not be its own: with mixtures where the folder
/// has dense projections, or with a classifier where it has none. Throws meo::io::Error for tensors that do
/// not fit.
template <class Scalar>
Model<Scalar> load_model(const std::filesystem::path& folder, const Config& config,
                         const LoadOptions& options = {}) {
  Model<Scalar> model(config);
  if (options.training != nullptr) model.initialize_new(*options.training);
  load(model, TensorFiles::of_folder(folder), options);
  return model;
}

/// Creates the folder, or replaces both files in it. Throws meo::io::Error if it cannot.
template <class Scalar>
void save_model(const Model<Scalar>& model, const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw meo::io::Error(folder.string(), "cannot be created: " + error.message());
  meo::io::SafetensorsWriter writer;
  writer.set_metadata("format", "pt");  // the package reads no file without it
  save(model, writer);
  writer.write(folder / tensors_file);
  const std::string text = to_json(model.config()).dump(2) + "\n";
  meo::io::write_file(folder / config_file, std::as_bytes(std::span(text)));
}

}  // namespace transformer

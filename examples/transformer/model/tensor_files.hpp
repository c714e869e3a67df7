#pragma once

/// The tensors of a checkpoint that is one safetensors file, or several with an index beside them that says
/// which tensor is in which (model.safetensors.index.json, whose "weight_map" takes names to files).

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <meo/io/error.hpp>
#include <meo/io/safetensors_reader.hpp>

namespace transformer {

inline constexpr const char* tensors_file = "model.safetensors";
inline constexpr const char* index_file = "model.safetensors.index.json";

/// Throws meo::io::Error for a file that cannot be read or is no JSON object.
inline nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) throw meo::io::Error(path.string(), "cannot be opened");
  nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object()) throw meo::io::Error(path.string(), "expected a JSON object");
  return json;
}

/// Only names that begin with the prefix are seen, and seen without it.
class TensorFiles {
 public:
  /// Throws meo::io::Error for files that cannot be read.
  explicit TensorFiles(const meo::io::SafetensorsReader& file, std::string prefix = "")
      : name_(file.file()), prefix_(std::move(prefix)) {
    add(file);
  }

  /// Those of a folder. Throws meo::io::Error also where the index names a tensor that its file has not.
  static TensorFiles of_folder(const std::filesystem::path& folder) {
    if (!std::filesystem::exists(folder / index_file))
      return TensorFiles(meo::io::SafetensorsReader(folder / tensors_file));
    const std::string index = (folder / index_file).string();
    const nlohmann::json json = read_json(folder / index_file);
    if (!json.contains("weight_map") || !json["weight_map"].is_object())
      throw meo::io::Error(index, "weight_map: expected an object of tensors' names and their files");
    TensorFiles files(index);
    std::map<std::string, std::size_t> readers;
    for (const auto& [tensor, file] : json["weight_map"].items()) {
      if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos)
        throw meo::io::Error(index, tensor, "expected the name of a file beside the index");
      const auto name = file.get<std::string>();
      if (!readers.contains(name)) {
        readers.emplace(name, files.readers_.size());
        files.readers_.emplace_back(folder / name);
      }
      const std::size_t reader = readers.at(name);
      static_cast<void>(files.readers_[reader].info(tensor));
      files.places_.emplace(tensor, reader);
    }
    return files;
  }

  /// What messages call it.
  const std::string& name() const { return name_; }
  const std::string& prefix() const { return prefix_; }

  bool contains(const std::string& name) const { return places_.contains(name); }

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, place] : places_) names.push_back(name);
    return names;
  }

  /// The file that has the tensor, where it is prefix() + name. Throws meo::io::Error if none has.
  const meo::io::SafetensorsReader& file_of(const std::string& name) const {
    const auto place = places_.find(name);
    if (place == places_.end()) throw meo::io::Error(name_, prefix_ + name, "is not in the file");
    return readers_[place->second];
  }

 private:
  explicit TensorFiles(std::string name) : name_(std::move(name)) {}

  void add(const meo::io::SafetensorsReader& file) {
    for (const std::string& name : file.names()) {
      if (name.starts_with(prefix_)) places_.emplace(name.substr(prefix_.size()), readers_.size());
    }
    readers_.push_back(file);
  }

  std::string name_, prefix_;
  std::vector<meo::io::SafetensorsReader> readers_;
  std::map<std::string, std::size_t> places_;  ///< tensor → its reader
};

}  // namespace transformer

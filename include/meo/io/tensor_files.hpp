#pragma once

/// The tensors of a checkpoint that is one safetensors file, or several with an index beside them that says
/// which tensor is in which (model.safetensors.index.json, whose "weight_map" takes names to files).

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <meo/abi.hpp>
#include <meo/compiled.hpp>
#include <meo/io/error.hpp>
#include <meo/io/safetensors_reader.hpp>

#if defined(MEO_DEFINES_IO)
#include <fstream>

#include <nlohmann/json.hpp>
#endif

namespace meo::inline MEO_ABI::io {

/// How files of a folder are called.
inline constexpr const char* tensors_file = "model.safetensors";
inline constexpr const char* index_file = "model.safetensors.index.json";

#if defined(MEO_DEFINES_IO)

namespace detail {

/// Throws Error for a file that cannot be read or is no JSON object.
MEO_IO_INLINE nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) throw Error(in_utf8(path), "cannot be opened");
  nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object()) throw Error(in_utf8(path), "expected a JSON object");
  return json;
}

}  // namespace detail

#endif

/// Only names that begin with the prefix are seen, and seen without it. Const, and so safe to use from
/// several threads, as its readers are.
class TensorFiles {
 public:
  /// Those of one file.
  explicit TensorFiles(const SafetensorsReader& file, std::string prefix = "");

  /// Those of a folder: of its one file or, where it has none of that name, of those of its index. Throws
  /// Error for files that cannot be read, and where the index names a tensor that its file has not.
  static TensorFiles of_folder(const std::filesystem::path& folder);

  /// What messages call it: the file, or the index.
  const std::string& name() const { return name_; }
  const std::string& prefix() const { return prefix_; }

  /// Whether there is such a tensor, without the prefix.
  bool contains(std::string_view name) const { return places_.find(name) != places_.end(); }

  /// Names of all tensors in alphabetical order.
  std::vector<std::string> names() const;

  /// The file that has the tensor, where it is prefix() + name. Throws Error if none has.
  const SafetensorsReader& file_of(std::string_view name) const;

 private:
  explicit TensorFiles(std::string name) : name_(std::move(name)) {}

  std::string name_, prefix_;
  std::vector<SafetensorsReader> readers_;
  std::map<std::string, std::size_t, std::less<>> places_;  ///< tensor → its reader
};

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE TensorFiles::TensorFiles(const SafetensorsReader& file, std::string prefix)
    : name_(file.file()), prefix_(std::move(prefix)), readers_{file} {
  for (const std::string& name : file.names()) {
    if (name.starts_with(prefix_)) places_.emplace(name.substr(prefix_.size()), 0);
  }
}

MEO_IO_INLINE TensorFiles TensorFiles::of_folder(const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder / tensors_file) || !std::filesystem::exists(folder / index_file))
    return TensorFiles(SafetensorsReader(folder / tensors_file));
  const std::string index = detail::in_utf8(folder / index_file);
  const nlohmann::json json = detail::read_json(folder / index_file);
  if (!json.contains("weight_map") || !json["weight_map"].is_object())
    throw Error(index, "weight_map: expected an object of tensors' names and their files");
  TensorFiles files(index);
  std::map<std::string, std::size_t> readers;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos)
      throw Error(index, tensor, "expected the name of a file beside the index");
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

MEO_IO_INLINE std::vector<std::string> TensorFiles::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

MEO_IO_INLINE const SafetensorsReader& TensorFiles::file_of(std::string_view name) const {
  const auto place = places_.find(name);
  if (place == places_.end()) throw Error(name_, std::string(prefix_).append(name), "is not in the file");
  return readers_[place->second];
}

#endif

}  // namespace meo::io

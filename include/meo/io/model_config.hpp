#pragma once

/// The fields that say what a model is: those of a folder's config.json, or the metadata of a safetensors
/// file, all of whose values are strings ("True", "2.5").

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <locale>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>

#include <meo/compiled.hpp>
#include <meo/io/error.hpp>
#include <meo/io/safetensors_reader.hpp>
#include <meo/io/tensor_files.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::io {

/// How the file of a folder is called.
inline constexpr const char* config_file = "config.json";

/// Fields by name. Errors, Error, name the file, the field, what was expected and what came. A field that is
/// null is as if it were not there.
class ModelConfig {
 public:
  /// Of a JSON file. Throws Error for one that cannot be read or is no JSON object.
  explicit ModelConfig(const std::filesystem::path& path);

  /// Of a file's metadata.
  explicit ModelConfig(const SafetensorsReader& file);

  /// What messages call the file.
  const std::string& file() const { return file_; }

  /// Whether there is such a field.
  bool has(std::string_view name) const { return values_.find(name) != values_.end(); }

  /// A whole number, `least` or more. Throws Error if there is none.
  Index count(std::string_view name, Index least = 1) const;

  /// A number above 0. Throws Error if there is none.
  double number(std::string_view name) const;

  /// True or false, if there is either.
  bool flag(std::string_view name, bool otherwise) const;

  /// A text without escapes. Throws Error if there is none.
  std::string text(std::string_view name) const;

  /// Throws Error unless the field, if it is there, is what this is in JSON.
  void require(std::string_view name, std::string_view json) const {
    if (has(name) && !is(name, json)) fail(name, json);
  }

  /// Whether there is the field and it is what this is in JSON.
  bool is(std::string_view name, std::string_view json) const { return has(name) && value(name) == json; }

  /// Throws Error: the field is not what was expected.
  [[noreturn]] void fail(std::string_view name, std::string_view expected) const;

 private:
  /// As JSON has it.
  const std::string& value(std::string_view name) const;

  std::string file_;
  std::map<std::string, std::string, std::less<>> values_;
};

#if defined(MEO_DEFINES_IO)

namespace detail {

/// The number that is all of a text.
MEO_IO_INLINE bool is_number(const std::string& text, double& number) {
  std::istringstream stream(text);  // not from_chars, which libc++ has for whole numbers only
  stream.imbue(std::locale::classic());
  return (stream >> std::noskipws >> number) && stream.eof();
}

}  // namespace detail

MEO_IO_INLINE ModelConfig::ModelConfig(const std::filesystem::path& path) : file_(detail::in_utf8(path)) {
  const nlohmann::json json = detail::read_json(path);
  for (const auto& [name, value] : json.items()) {
    if (!value.is_null())
      values_.emplace(name, value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }
}

MEO_IO_INLINE ModelConfig::ModelConfig(const SafetensorsReader& file) : file_(file.file()) {
  for (const auto& [name, value] : file.metadata()) {
    double number = 0;
    if (value == "None") continue;
    if (value == "True" || value == "true") values_.emplace(name, "true");
    else if (value == "False" || value == "false") values_.emplace(name, "false");
    else if (detail::is_number(value, number)) values_.emplace(name, value);
    else values_.emplace(name, detail::in_quotes(value));
  }
}

MEO_IO_INLINE Index ModelConfig::count(std::string_view name, Index least) const {
  const std::string& text = value(name);
  Index count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  const bool is_whole = error == std::errc() && end == text.data() + text.size();
  if (!is_whole || count < least || count > (std::numeric_limits<std::int32_t>::max)())
    fail(name, detail::text_of(
                   {"a whole number from ", least, " to ", (std::numeric_limits<std::int32_t>::max)()}));
  return count;
}

MEO_IO_INLINE double ModelConfig::number(std::string_view name) const {
  double number = 0;
  if (!detail::is_number(value(name), number) || !(number > 0)) fail(name, "a number above 0");
  return number;
}

MEO_IO_INLINE bool ModelConfig::flag(std::string_view name, bool otherwise) const {
  if (!has(name)) return otherwise;
  const std::string& text = value(name);
  if (text != "true" && text != "false") fail(name, "true or false");
  return text == "true";
}

MEO_IO_INLINE std::string ModelConfig::text(std::string_view name) const {
  const std::string& quoted = value(name);
  if (!quoted.starts_with('"')) fail(name, "a text");
  return quoted.substr(1, quoted.size() - 2);
}

MEO_IO_INLINE void ModelConfig::fail(std::string_view name, std::string_view expected) const {
  throw Error(file_, detail::text_of({name, ": expected ", expected, ", got ", value(name)}));
}

MEO_IO_INLINE const std::string& ModelConfig::value(std::string_view name) const {
  const auto field = values_.find(name);
  if (field == values_.end()) throw Error(file_, detail::text_of({name, ": expected a value, got none"}));
  return field->second;
}

#endif

}  // namespace meo::io

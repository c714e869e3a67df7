#pragma once

/// Files of text.

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <ios>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>

#include <nlohmann/json.hpp>

#include <meo/io/error.hpp>

namespace transformer {

/// The bytes of a file. Throws meo::io::Error, which names it, if it cannot be read.
inline std::string load_file(const std::filesystem::path& path) {
  const auto fail = [&](std::errc error) {
    throw meo::io::Error(path.string(), "cannot be read: " + std::make_error_code(error).message());
  };
  std::error_code not_there;
  if (std::filesystem::is_directory(path, not_there)) fail(std::errc::is_a_directory);
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(static_cast<std::errc>(errno));
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Throws meo::io::Error, which names the file, for what is not JSON.
inline nlohmann::json parse_json(std::string_view text, const std::string& file) {
  // nlohmann::json takes a zero byte for the end of its input.
  if (text.find('\0') != std::string_view::npos) throw meo::io::Error(file, "expected JSON, got a zero byte");
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    const std::string_view what = error.what();  // "[json.exception.parse_error.101] parse error at …"
    throw meo::io::Error(file, "expected JSON: " + std::string(what.substr(what.find("] ") + 2)));
  }
}

/// Calls back with every line, without what ends it: \n, \r\n, or the end of the text.
template <class Function>
void for_each_line(std::string_view text, const Function& function) {
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    function(line);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
}

}  // namespace transformer

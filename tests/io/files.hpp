#pragma once

/// Safetensors files made by hand, and what reading them says.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meo/io/error.hpp>

namespace meo::test {

using Bytes = std::vector<std::byte>;

inline Bytes to_bytes(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

/// The bytes of an unsigned number, lowest first.
inline Bytes little_endian(std::uint64_t number, std::size_t size = 8) {
  Bytes bytes;
  for (std::size_t i = 0; i < size; ++i) bytes.push_back(static_cast<std::byte>(number >> (8 * i) & 0xff));
  return bytes;
}

inline Bytes operator+(Bytes left, const Bytes& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

/// A file of this header and this data.
inline Bytes file_of(std::string_view header, const Bytes& data = {}) {
  return little_endian(header.size()) + to_bytes(header) + data;
}

/// A file of one tensor named t.
inline Bytes file_of(std::string_view dtype, std::string_view shape, const Bytes& data) {
  return file_of(R"({"t":{"dtype":")" + std::string(dtype) + R"(","shape":)" + std::string(shape) +
                     R"(,"data_offsets":[0,)" + std::to_string(data.size()) + "]}}",
                 data);
}

/// What an io::Error of the action says.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const io::Error& error) {
    return error.what();
  }
  return "no error";
}

/// A folder for files, gone with all that is in it at the end of a test.
class Folder {
 public:
  Folder()
      : path_(std::filesystem::temp_directory_path() / ("meo-" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  operator const std::filesystem::path&() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Names of what is in a folder, in alphabetical order.
inline std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

inline void save(const std::filesystem::path& path, const Bytes& bytes) {
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

inline std::string load_text(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

inline Bytes load_bytes(const std::filesystem::path& path) { return to_bytes(load_text(path)); }

}  // namespace meo::test

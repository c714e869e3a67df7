#pragma once

/// How the readers and writers of files report what is wrong.

#include <stdexcept>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <meo/abi.hpp>

namespace meo::inline MEO_ABI::io {

namespace detail {

/// A name from a file as a JSON string: whatever bytes it holds, it can be printed and read back by eye.
inline std::string in_quotes(std::string_view name) {
  return nlohmann::json(name).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace detail

/// A file that cannot be read or written. what() names the file (once there is one), the tensor where there
/// is one, and the reason: what was expected and what came.
class Error : public std::runtime_error {
 public:
  Error(std::string_view file, std::string_view reason)
      : std::runtime_error("meo: " + std::string(file) + (file.empty() ? "" : ": ") + std::string(reason)) {}

  Error(std::string_view file, std::string_view tensor, std::string_view reason)
      : Error(file, "tensor " + detail::in_quotes(tensor) + ": " + std::string(reason)) {}
};

}  // namespace meo::inline MEO_ABI::io

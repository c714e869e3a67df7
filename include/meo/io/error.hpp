#pragma once

/// How the readers and writers of files report what is wrong.

#include <filesystem>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

#include <meo/abi.hpp>
#include <meo/compiled.hpp>
#include <meo/errors.hpp>

#if defined(MEO_DEFINES_IO)
#include <nlohmann/json.hpp>
#endif

namespace meo::inline MEO_ABI::io {

namespace detail {

/// The pieces, one after the other. Costs the compiler much less than a sum of strings.
MEO_IO_INLINE std::string text_of(std::initializer_list<meo::detail::MessagePart> parts);

/// A name from a file as a JSON string: whatever bytes it holds, it can be printed and read back by eye.
MEO_IO_INLINE std::string in_quotes(std::string_view name);

/// A path as UTF-8, for messages; path.string() throws on Windows for what the code page lacks.
MEO_IO_INLINE std::string in_utf8(const std::filesystem::path& path);

}  // namespace detail

/// A file that cannot be read or written. what() names the file (once there is one), the tensor where there
/// is one, and the reason: what was expected and what came.
class Error : public std::runtime_error {
 public:
  /// Of a file, or of a tensor in it.
  Error(std::string_view file, std::string_view reason);
  Error(std::string_view file, std::string_view tensor, std::string_view reason);
};

#if defined(MEO_DEFINES_IO)

namespace detail {

MEO_IO_INLINE std::string text_of(std::initializer_list<meo::detail::MessagePart> parts) {
  std::string text;
  for (const meo::detail::MessagePart& part : parts) part.append_to(text);
  return text;
}

MEO_IO_INLINE std::string in_quotes(std::string_view name) {
  return nlohmann::json(name).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

MEO_IO_INLINE std::string in_utf8(const std::filesystem::path& path) {
  try {
    const std::u8string text = path.u8string();
    return {text.begin(), text.end()};
  } catch (const std::system_error&) {  // a name on Windows that is no UTF-16
    std::string text;
    for (const auto unit : path.native()) {
      const auto code = static_cast<unsigned long>(unit);
      text += code < 128 ? static_cast<char>(code) : '?';
    }
    return text;
  }
}

}  // namespace detail

MEO_IO_INLINE Error::Error(std::string_view file, std::string_view reason)
    : std::runtime_error(detail::text_of({"meo: ", file, file.empty() ? "" : ": ", reason})) {}

MEO_IO_INLINE Error::Error(std::string_view file, std::string_view tensor, std::string_view reason)
    : Error(file, detail::text_of({"tensor ", detail::in_quotes(tensor), ": ", reason})) {}

#endif

}  // namespace meo::io

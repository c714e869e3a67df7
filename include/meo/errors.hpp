#pragma once

/// How bad input is reported: std::invalid_argument that says what was expected and what came. An object that
/// was moved from is no input: std::logic_error.

#include <concepts>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// A piece of a message: a view of a text or number and how it is written, so that all messages share one
/// function and a check costs its caller little code.
class MessagePart {
 public:
  MessagePart(const char* text) : value_(text), append_(append_text) {}  // NOLINT: meant to convert
  template <class T>
  MessagePart(const T& value) : value_(&value), append_(append_value<T>) {}  // NOLINT

  void append_to(std::string& text) const { append_(text, value_); }

 private:
  static void append_text(std::string& text, const void* value) { text += static_cast<const char*>(value); }
  template <class T>
  static void append_value(std::string& text, const void* value) {
    const T& part = *static_cast<const T*>(value);
    if constexpr (std::convertible_to<T, std::string_view>) {
      text += part;
    } else if constexpr (std::integral<T>) {
      text += std::to_string(part);
    } else {
      std::ostringstream stream;
      stream << part;
      text += stream.str();
    }
  }

  const void* value_;
  void (*append_)(std::string&, const void*);
};

inline std::string joined(std::initializer_list<MessagePart> parts) {
  std::string text = "meo: ";
  for (const MessagePart& part : parts) part.append_to(text);
  return text;
}

template <class... Parts>
std::string message(const Parts&... parts) {
  return joined({MessagePart(parts)...});
}

[[noreturn]] inline void refuse(std::initializer_list<MessagePart> parts) {
  throw std::invalid_argument(joined(parts));
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) refuse({MessagePart(parts)...});
}

template <class Matrix>
void require_shape(const Matrix& matrix, Index rows, Index cols, std::string_view name) {
  require(matrix.rows() == rows && matrix.cols() == cols, name, ": expected ", rows, " x ", cols, ", got ",
          matrix.rows(), " x ", matrix.cols());
}

/// is_empty: whether a move has taken what the object held.
inline void require_not_moved_from(bool is_empty, std::string_view name) {
  if (is_empty) throw std::logic_error(message(name, ": expected one to use, got one that was moved from"));
}

inline void require_expert(Index expert, Index num_experts) {
  require(expert >= 0 && expert < num_experts, "expert: expected 0 to ", num_experts - 1, ", got ", expert);
}

}  // namespace meo::detail

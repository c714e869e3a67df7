#pragma once

/// How bad input is reported: std::invalid_argument that says what was expected and what came. An object that
/// was moved from is no input: std::logic_error.

#include <array>
#include <concepts>
#include <cstdio>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// A piece of a message: a number or the view of a text, and how it is written, so that all messages share
/// one function and a check costs its caller little code. Numbers are printed by snprintf, which compiles in
/// a tenth of the time that streams and std::to_string do.
class MessagePart {
 public:
  MessagePart(const char* text) : object_(text), append_(append_text) {}  // NOLINT: meant to convert
  template <std::signed_integral T>
  MessagePart(const T& value) : signed_(value), append_(append_signed) {}  // NOLINT
  template <std::unsigned_integral T>
  MessagePart(const T& value) : unsigned_(value), append_(append_unsigned) {}   // NOLINT
  MessagePart(const float& value) : MessagePart(static_cast<double>(value)) {}  // NOLINT
  MessagePart(const double& value) : real_(value), append_(append_real) {}      // NOLINT
  template <class T>
  MessagePart(const T& value) : object_(&value), append_(append_object<T>) {}  // NOLINT

  void append_to(std::string& text) const { append_(text, *this); }

 private:
  static void append_text(std::string& text, const MessagePart& part) {
    text += static_cast<const char*>(part.object_);
  }
  static void append_signed(std::string& text, const MessagePart& part) {
    append_printed(text, "%lld", part.signed_);
  }
  static void append_unsigned(std::string& text, const MessagePart& part) {
    append_printed(text, "%llu", part.unsigned_);
  }
  static void append_real(std::string& text, const MessagePart& part) {
    append_printed(text, "%g", part.real_);
  }
  template <class T>
  static void append_object(std::string& text, const MessagePart& part) {
    const T& object = *static_cast<const T*>(part.object_);
    if constexpr (std::convertible_to<T, std::string_view>) {
      text += object;
    } else {
      std::ostringstream stream;
      stream << object;
      text += stream.str();
    }
  }

  template <class Number>
  static void append_printed(std::string& text, const char* format, Number number) {
    std::array<char, 32> digits;
    std::snprintf(digits.data(), digits.size(), format, number);
    text += digits.data();
  }

  union {
    const void* object_;
    long long signed_;
    unsigned long long unsigned_;
    double real_;
  };
  void (*append_)(std::string&, const MessagePart&);
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

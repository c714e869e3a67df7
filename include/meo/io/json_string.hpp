#pragma once

/// Strings of JSON: which bytes are UTF-8, and how they are written.

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include <meo/abi.hpp>

namespace meo::inline MEO_ABI::io::detail {

/// The bytes of a text that make a character.
struct Utf8Character {
  std::size_t size;  ///< how many of them are as they should be
  bool complete;     ///< whether these are all; if not, the next byte is wrong or the text ends before it
};

/// The character that begins at that place of a text. As in the Unicode standard, table 3-7: none is written
/// longer than it has to be, or stands for a surrogate or a number beyond 10FFFF.
constexpr Utf8Character utf8_character(std::string_view text, std::size_t place) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[place + i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return {1, true};
  if (first < 0xc2 || first > 0xf4) return {0, false};
  const std::size_t size = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  unsigned lowest = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  unsigned highest = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < size; ++i) {
    if (place + i == text.size() || byte(i) < lowest || byte(i) > highest) return {i, false};
    lowest = 0x80, highest = 0xbf;
  }
  return {size, true};
}

constexpr bool is_utf8(std::string_view text) {
  for (std::size_t place = 0; place < text.size();) {
    const Utf8Character character = utf8_character(text, place);
    if (!character.complete) return false;
    place += character.size;
  }
  return true;
}

/// A text as a JSON string. Whatever bytes it holds, it can be printed and read back by eye: what is no UTF-8
/// is replaced, each run of bytes that begin a character and then do not go on by one U+FFFD.
inline std::string in_quotes(std::string_view text) {
  std::string quoted = "\"";
  for (std::size_t place = 0; place < text.size();) {
    const Utf8Character character = utf8_character(text, place);
    const char first = text[place];
    if (!character.complete) {
      quoted += "\xef\xbf\xbd";
    } else if (first == '"' || first == '\\') {
      (quoted += '\\') += first;
    } else if (static_cast<unsigned char>(first) >= 0x20) {
      quoted += text.substr(place, character.size);
    } else if (const std::size_t letter = std::string_view("\b\t\n\f\r").find(first); letter != text.npos) {
      (quoted += '\\') += "btnfr"[letter];
    } else {
      constexpr std::string_view digits = "0123456789abcdef";
      ((quoted += "\\u00") += digits[static_cast<std::size_t>(first) >> 4]) +=
          digits[static_cast<std::size_t>(first) & 0xf];
    }
    place += (std::max<std::size_t>)(character.size, 1);
  }
  return quoted += '"';
}

}  // namespace meo::io::detail

#pragma once

/// Code points of UTF-8, and what Unicode says of them in the version of utf8proc's tables.

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utf8proc.h>

namespace transformer {

inline constexpr char32_t replacement_character = 0xfffd;

/// The code point that begins at the byte `at` of the text, which moves behind it. Of bytes that are not
/// UTF-8 every longest start of a code point, or a byte that starts none, is one U+FFFD: what the Unicode
/// Standard recommends (3.9) and Python's errors="replace" does.
inline char32_t next_code_point(std::string_view text, std::size_t& at) {
  const auto byte_at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const char32_t lead = byte_at(at++);
  if (lead < 0x80) return lead;
  if (lead < 0xc2 || lead > 0xf4) return replacement_character;
  const int more = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
  // The limits of the second byte leave out what has a shorter form, surrogates, and what is above U+10FFFF.
  char32_t least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  char32_t most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  char32_t code_point = lead & (0x3fU >> more);
  for (int i = 0; i < more; ++i) {
    if (at == text.size() || byte_at(at) < least || byte_at(at) > most) return replacement_character;
    code_point = code_point << 6 | (byte_at(at++) & 0x3fU);
    least = 0x80;
    most = 0xbf;
  }
  return code_point;
}

inline std::u32string code_points(std::string_view text) {
  std::u32string points;
  points.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) points += next_code_point(text, at);
  return points;
}

inline void append_utf8(std::string& text, char32_t code_point) {
  std::array<utf8proc_uint8_t, 4> bytes;
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes.data());
  text.append(bytes.begin(), bytes.begin() + size);
}

inline std::string utf8(std::u32string_view points) {
  std::string text;
  text.reserve(points.size());
  for (const char32_t point : points) append_utf8(text, point);
  return text;
}

inline utf8proc_category_t category(char32_t point) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(point));
}

/// General category L.
inline bool is_letter(char32_t point) {
  return category(point) >= UTF8PROC_CATEGORY_LU && category(point) <= UTF8PROC_CATEGORY_LO;
}
/// General category N.
inline bool is_number(char32_t point) {
  return category(point) >= UTF8PROC_CATEGORY_ND && category(point) <= UTF8PROC_CATEGORY_NO;
}
/// General category P.
inline bool is_punctuation(char32_t point) {
  return category(point) >= UTF8PROC_CATEGORY_PC && category(point) <= UTF8PROC_CATEGORY_PO;
}
/// General category Z.
inline bool is_separator(char32_t point) {
  return category(point) >= UTF8PROC_CATEGORY_ZS && category(point) <= UTF8PROC_CATEGORY_ZP;
}
/// General category C: control characters, formats, surrogates, private use, and what is not assigned.
inline bool is_other(char32_t point) {
  return category(point) == UTF8PROC_CATEGORY_CN || category(point) >= UTF8PROC_CATEGORY_CC;
}

/// By the simple mapping, a code point for a code point.
inline char32_t lower_case(char32_t point) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(point)));
}

/// Normalization form D.
inline std::u32string decomposed(std::u32string_view points) {
  std::u32string all;
  all.reserve(points.size());
  for (const char32_t point : points) {
    std::array<utf8proc_int32_t, 4> parts;  // no code point has more of them
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(point), parts.data(),
                                static_cast<utf8proc_ssize_t>(parts.size()), UTF8PROC_DECOMPOSE, nullptr);
    for (utf8proc_ssize_t i = 0; i < count; ++i)
      all += static_cast<char32_t>(parts[static_cast<std::size_t>(i)]);
  }
  const auto combining_class = [](char32_t point) {
    return utf8proc_get_property(static_cast<utf8proc_int32_t>(point))->combining_class;
  };
  const auto starts = [&](char32_t point) { return combining_class(point) == 0; };
  for (auto begin = all.begin(); begin != all.end();) {
    begin = std::find_if_not(begin, all.end(), starts);
    const auto end = std::find_if(begin, all.end(), starts);
    std::stable_sort(begin, end,
                     [&](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
  return all;
}

}  // namespace transformer

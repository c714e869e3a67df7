#pragma once

/// The words of a text as GPT-2's tokenizer sees them: all of it, cut into pieces that no token joins.

#include <array>
#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

#include "unicode.hpp"

namespace transformer {

enum class Gpt2Class { letter, number, space, sign };

inline Gpt2Class gpt2_class(char32_t point) {
  if (is_letter(point)) return Gpt2Class::letter;
  if (is_number(point)) return Gpt2Class::number;
  const bool control_space = (point >= '\t' && point <= '\r') || point == 0x85;
  return control_space || is_separator(point) ? Gpt2Class::space : Gpt2Class::sign;
}

/// How many bytes of 's, 't, 're, 've, 'm, 'll or 'd a text begins with.
inline std::size_t contraction_size(std::string_view text) {
  constexpr std::array<std::string_view, 7> contractions = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
  for (const std::string_view contraction : contractions) {
    if (text.starts_with(contraction)) return contraction.size();
  }
  return 0;
}

/// How many bytes the first word of a text has, which is not empty.
inline std::size_t gpt2_word_size(std::string_view text) {
  if (const std::size_t size = contraction_size(text)) return size;
  const auto class_and_end = [&](std::size_t at) {
    const Gpt2Class kind = gpt2_class(next_code_point(text, at));
    return std::pair(kind, at);
  };
  const auto [kind, first_end] = class_and_end(text.front() == ' ' && text.size() > 1 ? 1 : 0);
  if (kind != Gpt2Class::space) {
    std::size_t end = first_end;
    while (end < text.size() && class_and_end(end).first == kind) end = class_and_end(end).second;
    return end;
  }
  // The last of several white spaces is left to what follows them: a space begins the next word.
  std::size_t last = 0, end = 0;
  while (end < text.size()) {
    const auto [next_kind, next_end] = class_and_end(end);
    if (next_kind != Gpt2Class::space) return last > 0 ? last : end;
    last = std::exchange(end, next_end);
  }
  return end;
}

/// Cuts a text, UTF-8, as GPT-2's regular expression does,
///     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// and keeps every byte; bytes that are not UTF-8 are cut as the U+FFFD that would stand for them.
inline std::vector<std::string_view> gpt2_words(std::string_view text) {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    words.push_back(text.substr(0, gpt2_word_size(text)));
    text.remove_prefix(words.back().size());
  }
  return words;
}

}  // namespace transformer

#pragma once

/// The words of a text as BERT's tokenizer sees them, before it looks at any vocabulary.

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "unicode.hpp"

namespace transformer {

/// Category P, and every sign of ASCII, $ or ^ too, that is neither letter nor number.
inline bool is_bert_punctuation(char32_t point) {
  const bool ascii_sign = (point >= '!' && point <= '/') || (point >= ':' && point <= '@') ||
                          (point >= '[' && point <= '`') || (point >= '{' && point <= '~');
  return ascii_sign || is_punctuation(point);
}

/// The ideographs that BERT takes for words of their own. Hiragana, Katakana and Hangul are not among them,
/// nor what Unicode has added since.
inline bool is_bert_ideograph(char32_t point) {
  constexpr std::array<std::pair<char32_t, char32_t>, 8> ranges = {{{0x4e00, 0x9fff},
                                                                    {0x3400, 0x4dbf},
                                                                    {0x20000, 0x2a6df},
                                                                    {0x2a700, 0x2b73f},
                                                                    {0x2b740, 0x2b81f},
                                                                    {0x2b820, 0x2ceaf},
                                                                    {0xf900, 0xfaff},
                                                                    {0x2f800, 0x2fa1f}}};
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const auto& range) { return point >= range.first && point <= range.second; });
}

/// Tokens that no text is split within.
inline constexpr std::array<std::string_view, 5> bert_special_tokens = {"[CLS]", "[SEP]", "[PAD]", "[UNK]",
                                                                        "[MASK]"};

/// Splits a text, UTF-8, at white space, around ideographs, and around punctuation, each sign of which is a
/// word; without control characters and U+FFFD. uncased: in lower case, without accents (form D, without
/// category Mn). This is HuggingFace's BasicTokenizer, of the version before 4.32, which left cased text in
/// the normalization form that it has.
inline std::vector<std::u32string> bert_words(std::string_view text, bool uncased) {
  std::vector<std::u32string> words;
  std::u32string run;  // what is between white space
  const auto finish_run = [&] {
    if (uncased) {
      std::transform(run.begin(), run.end(), run.begin(), lower_case);
      run = decomposed(run);
      std::erase_if(run, [](char32_t point) { return category(point) == UTF8PROC_CATEGORY_MN; });
    }
    // A special token that was written out never comes here, but characters that are left out may have been
    // within one. In lower case it is none.
    const bool special = run.starts_with(U'[') &&
                         std::find(bert_special_tokens.begin(), bert_special_tokens.end(), utf8(run)) !=
                             bert_special_tokens.end();
    bool joins = false;  // whether the next character goes on with the last word
    for (const char32_t point : run) {
      const bool alone = !special && is_bert_punctuation(point);
      if (!joins || alone) words.emplace_back();
      words.back() += point;
      joins = !alone;
    }
    run.clear();
  };
  for (std::size_t at = 0; at < text.size();) {
    const char32_t point = next_code_point(text, at);
    if (point == '\t' || point == '\n' || point == '\r' || is_separator(point)) {
      finish_run();
    } else if (point == replacement_character || is_other(point)) {
      continue;  // also between ideographs, not all of which are assigned
    } else if (is_bert_ideograph(point)) {
      finish_run();
      run = point;
      finish_run();
    } else {
      run += point;
    }
  }
  finish_run();
  return words;
}

}  // namespace transformer

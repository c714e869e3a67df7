#pragma once

/// GPT-2's tokenizer: words as bytes, pairs of which are merged.

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "byte_alphabet.hpp"
#include "encoding.hpp"
#include "gpt2_words.hpp"
#include "merges.hpp"
#include "truncate.hpp"
#include "vocabulary.hpp"

namespace transformer {

/// Gives what HuggingFace's GPT2Tokenizer gives, and keeps every byte, be it UTF-8 or not.
class BytePairTokenizer {
 public:
  /// Throws std::invalid_argument if the vocabulary lacks a byte or a token of the merges, and also
  /// <|endoftext|>, which stands for what it lacks.
  BytePairTokenizer(Vocabulary vocabulary, Merges merges)
      : vocabulary_(std::move(vocabulary)),
        merges_(std::move(merges)),
        end_of_text_(vocabulary_.find(end_of_text)) {
    for (const std::string& token : merges_.tokens()) {
      ids_.push_back(end_of_text_ ? vocabulary_.find(token).value_or(*end_of_text_) : vocabulary_.at(token));
    }
  }

  /// The tokens of a text, and of a second one behind it, cut to max_length as truncate_longest_first does.
  /// Throws std::invalid_argument if max_length is too small.
  Encoding encode(std::string_view text, std::optional<std::string_view> pair, std::size_t max_length) const {
    Encoding encoding{ids(text), {}};
    std::optional<std::vector<Id>> second;
    if (pair) second = ids(*pair);
    truncate_longest_first(encoding.input_ids, second, 0, max_length);
    encoding.token_type_ids.resize(encoding.input_ids.size(), 0);
    if (second) {
      encoding.input_ids.insert(encoding.input_ids.end(), second->begin(), second->end());
      encoding.token_type_ids.resize(encoding.input_ids.size(), 1);
    }
    return encoding;
  }

  /// The tokens of a text. <|endoftext|>, written so, stands for itself where the vocabulary has it.
  std::vector<Id> ids(std::string_view text) const {
    std::vector<Id> ids;
    while (!text.empty()) {
      const std::size_t end = end_of_text_ ? (std::min)(text.find(end_of_text), text.size()) : text.size();
      for (const std::string_view word : gpt2_words(text.substr(0, end))) {
        for (const Merges::Symbol symbol : merges_.merged(word)) ids.push_back(ids_[symbol]);
      }
      text.remove_prefix(end);
      if (text.empty()) break;
      ids.push_back(*end_of_text_);
      text.remove_prefix(end_of_text.size());
    }
    return ids;
  }

  /// The text that has these tokens; a part of one may end within a character, and is then not UTF-8. Throws
  /// std::invalid_argument for an id that is not in the vocabulary.
  std::string decode(std::span<const Id> ids) const {
    std::string text;
    for (const Id id : ids) text += alphabet_.bytes(vocabulary_.token(id));
    return text;
  }

 private:
  static constexpr std::string_view end_of_text = "<|endoftext|>";

  Vocabulary vocabulary_;
  Merges merges_;
  std::optional<Id> end_of_text_;
  std::vector<Id> ids_;  // of the merges' symbols
  ByteAlphabet alphabet_;
};

}  // namespace transformer

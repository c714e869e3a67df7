#pragma once

/// GPT-2's tokenizer: words as bytes, of which pairs are merged in the order in which training merged them.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include <meo/io/error.hpp>

#include "encoding.hpp"
#include "files.hpp"
#include "gpt2_words.hpp"
#include "truncate.hpp"
#include "unicode.hpp"
#include "vocabulary.hpp"

namespace transformer {

/// The characters that stand for bytes in vocab.json and merges.txt: printable ones of Latin-1 for
/// themselves, the characters from U+0100 on for the others, in their order.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    char32_t next = 0x100;
    for (std::size_t byte = 0; byte < characters_.size(); ++byte) {
      const bool stands_for_itself =
          (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      const char32_t point = stands_for_itself ? static_cast<char32_t>(byte) : next++;
      append_utf8(characters_[byte], point);
      bytes_[point] = static_cast<char>(byte);
    }
  }

  const std::string& character(std::size_t byte) const { return characters_[byte]; }

  /// The bytes that a token stands for; a character that stands for none is kept as it is.
  std::string bytes(std::string_view token) const {
    std::string bytes;
    for (std::size_t at = 0; at < token.size();) {
      const std::size_t begin = at;
      const auto found = bytes_.find(next_code_point(token, at));
      if (found == bytes_.end()) bytes += token.substr(begin, at - begin);
      else bytes += found->second;
    }
    return bytes;
  }

 private:
  std::array<std::string, 256> characters_;
  std::unordered_map<char32_t, char> bytes_;
};

/// Gives what HuggingFace's GPT2Tokenizer gives, and keeps every byte, be it UTF-8 or not.
class BytePairTokenizer {
 public:
  /// merges: the text of a merges.txt, pairs of tokens in lines, in the order in which they are merged; file:
  /// its name. Throws meo::io::Error for another text; std::invalid_argument if the vocabulary lacks a byte
  /// or a token of a merge, and also <|endoftext|>, which then stands for it.
  BytePairTokenizer(Vocabulary vocabulary, std::string_view merges, const std::string& file)
      : vocabulary_(std::move(vocabulary)), end_of_text_(vocabulary_.find(end_of_text)) {
    std::unordered_map<std::string, Symbol> symbols;
    const auto symbol_of = [&](const std::string& token) {
      const auto [found, is_new] = symbols.try_emplace(token, static_cast<Symbol>(ids_.size()));
      if (is_new)
        ids_.push_back(end_of_text_ ? vocabulary_.find(token).value_or(*end_of_text_)
                                    : vocabulary_.at(token));
      return found->second;
    };
    for (std::size_t byte = 0; byte < bytes_.size(); ++byte)
      bytes_[byte] = symbol_of(alphabet_.character(byte));

    std::size_t number = 0, rank = 0;
    for_each_line(merges, [&](std::string_view line) {
      if ((++number == 1 && line.starts_with("#version")) || line.empty()) return;
      const std::size_t space = (std::min)(line.find(' '), line.size());
      const std::string left(line.substr(0, space)), right(line.substr((std::min)(space + 1, line.size())));
      if (left.empty() || right.empty() || right.find(' ') != std::string::npos) {
        throw meo::io::Error(file, "line " + std::to_string(number) +
                                       ": expected two tokens and a space between them, got '" +
                                       std::string(line) + "'");
      }
      merges_[key(symbol_of(left), symbol_of(right))] = {rank++, symbol_of(left + right)};
    });
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
      for (const std::string_view word : gpt2_words(text.substr(0, end))) add_word(word, ids);
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
  using Symbol = std::uint32_t;

  struct Merge {
    std::size_t rank;
    Symbol merged;
  };

  static constexpr std::string_view end_of_text = "<|endoftext|>";

  static std::uint64_t key(Symbol left, Symbol right) { return std::uint64_t{left} << 32 | right; }

  /// Merges, again and again, the pair of neighbours that comes first in merges.txt, wherever it stands.
  void add_word(std::string_view word, std::vector<Id>& ids) const {
    // The symbols that are left form a list: each is where its first byte is.
    constexpr auto merged_away = static_cast<Symbol>(-1);
    const std::size_t end = word.size();
    std::vector<Symbol> symbols(end);
    std::vector<std::size_t> previous(end), next(end);
    for (std::size_t i = 0; i < end; ++i) {
      symbols[i] = bytes_[static_cast<unsigned char>(word[i])];
      previous[i] = i - 1;
      next[i] = i + 1;
    }

    struct Candidate {
      Merge merge;
      std::size_t at;
      Symbol left, right;

      bool operator>(const Candidate& other) const {
        return std::tie(merge.rank, at) > std::tie(other.merge.rank, other.at);
      }
    };
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
    const auto consider = [&](std::size_t at) {
      if (next[at] == end) return;
      const Symbol left = symbols[at], right = symbols[next[at]];
      const auto found = merges_.find(key(left, right));
      if (found != merges_.end()) candidates.push({found->second, at, left, right});
    };
    for (std::size_t i = 0; i < end; ++i) consider(i);

    std::vector<std::size_t> merged;
    while (!candidates.empty()) {
      // The pairs that merging makes wait until all of this rank are merged, also if they come before it.
      const std::size_t rank = candidates.top().merge.rank;
      merged.clear();
      while (!candidates.empty() && candidates.top().merge.rank == rank) {
        const Candidate candidate = candidates.top();
        candidates.pop();
        const std::size_t at = candidate.at, right = next[at];
        const bool is_still_there =
            symbols[at] == candidate.left && right != end && symbols[right] == candidate.right;
        if (!is_still_there) continue;
        symbols[at] = candidate.merge.merged;
        symbols[right] = merged_away;
        next[at] = next[right];
        if (next[at] != end) previous[next[at]] = at;
        merged.push_back(at);
      }
      for (const std::size_t at : merged) {
        if (at > 0) consider(previous[at]);
        consider(at);
      }
    }
    for (std::size_t i = 0; i < end; i = next[i]) ids.push_back(ids_[symbols[i]]);
  }

  ByteAlphabet alphabet_;
  Vocabulary vocabulary_;
  std::optional<Id> end_of_text_;
  std::vector<Id> ids_;  // of symbols
  std::array<Symbol, 256> bytes_;
  std::unordered_map<std::uint64_t, Merge> merges_;  // of pairs of symbols
};

}  // namespace transformer

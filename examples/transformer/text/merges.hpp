#pragma once

/// Byte-pair encoding: a word as bytes, of which pairs are merged in the order in which training merged them.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include <meo/io/error.hpp>

#include "byte_alphabet.hpp"
#include "files.hpp"

namespace transformer {

class Merges {
 public:
  using Symbol = std::uint32_t;  ///< number of a token

  /// text: of a merges.txt, pairs of tokens in lines, the first to be merged first, perhaps under a line with
  /// the version; file: its name. Throws meo::io::Error for another text.
  Merges(std::string_view text, const std::string& file) {
    std::unordered_map<std::string, Symbol> symbols;
    const auto symbol_of = [&](const std::string& token) {
      const auto [found, is_new] = symbols.try_emplace(token, static_cast<Symbol>(tokens_.size()));
      if (is_new) tokens_.push_back(token);
      return found->second;
    };
    const ByteAlphabet alphabet;
    for (std::size_t byte = 0; byte < bytes_.size(); ++byte)
      bytes_[byte] = symbol_of(alphabet.character(byte));

    std::size_t number = 0;
    for_each_line(text, [&](std::string_view line) {
      if ((++number == 1 && line.starts_with("#version")) || line.empty()) return;
      const std::size_t space = (std::min)(line.find(' '), line.size());
      const std::string left(line.substr(0, space)), right(line.substr((std::min)(space + 1, line.size())));
      if (left.empty() || right.empty() || right.find(' ') != std::string::npos) {
        throw meo::io::Error(file, "line " + std::to_string(number) +
                                       ": expected two tokens and a space between them, got '" +
                                       std::string(line) + "'");
      }
      merges_[key(symbol_of(left), symbol_of(right))] = {number, symbol_of(left + right)};
    });
  }

  /// The token of every symbol: bytes, and what lines hold and make.
  const std::vector<std::string>& tokens() const { return tokens_; }

  /// Merges, again and again, all pairs of neighbours that are the first line's of those that are there.
  /// Takes O(n log n) time for n bytes.
  std::vector<Symbol> merged(std::string_view word) const {
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

    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
    const auto consider = [&](std::size_t at) {
      if (next[at] == end) return;
      const Symbol left = symbols[at], right = symbols[next[at]];
      const auto found = merges_.find(key(left, right));
      if (found != merges_.end()) candidates.push({found->second, at, left, right});
    };
    for (std::size_t i = 0; i < end; ++i) consider(i);

    std::vector<std::size_t> places;
    while (!candidates.empty()) {
      // The pairs that merging makes wait until all of this line are merged, also if their line comes before.
      const std::size_t line = candidates.top().merge.line;
      places.clear();
      while (!candidates.empty() && candidates.top().merge.line == line) {
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
        places.push_back(at);
      }
      for (const std::size_t at : places) {
        if (at > 0) consider(previous[at]);
        consider(at);
      }
    }

    std::vector<Symbol> left_over;
    for (std::size_t i = 0; i < end; i = next[i]) left_over.push_back(symbols[i]);
    return left_over;
  }

 private:
  struct Merge {
    std::size_t line;
    Symbol merged;
  };

  /// A pair of neighbours, as it was when it was found.
  struct Candidate {
    Merge merge;
    std::size_t at;
    Symbol left, right;

    bool operator>(const Candidate& other) const {
      return std::tie(merge.line, at) > std::tie(other.merge.line, other.at);
    }
  };

  static std::uint64_t key(Symbol left, Symbol right) { return std::uint64_t{left} << 32 | right; }

  std::vector<std::string> tokens_;
  std::array<Symbol, 256> bytes_;
  std::unordered_map<std::uint64_t, Merge> merges_;
};

}  // namespace transformer

#pragma once

/// Byte-pair encoding as it is told: the pair of the list that comes first and is there, all of it from the
/// left, again and again.

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../../examples/transformer/text/byte_alphabet.hpp"

namespace meo::test {

using TokenPairs = std::vector<std::pair<std::string, std::string>>;

/// The tokens of a word, in characters that stand for bytes. Takes quadratic time.
inline std::vector<std::string> merged_naively(std::string_view word, const TokenPairs& merges) {
  static const transformer::ByteAlphabet alphabet;
  std::vector<std::string> tokens;
  for (const char byte : word) tokens.push_back(alphabet.character(static_cast<unsigned char>(byte)));
  while (true) {
    const auto first = std::find_if(merges.begin(), merges.end(), [&](const auto& pair) {
      return std::adjacent_find(tokens.begin(), tokens.end(), [&](const auto& left, const auto& right) {
               return left == pair.first && right == pair.second;
             }) != tokens.end();
    });
    if (first == merges.end()) return tokens;
    std::vector<std::string> shorter;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      shorter.push_back(tokens[i]);
      if (tokens[i] == first->first && i + 1 < tokens.size() && tokens[i + 1] == first->second)
        shorter.back() += tokens[++i];
    }
    tokens = std::move(shorter);
  }
}

}  // namespace meo::test

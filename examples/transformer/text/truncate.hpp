#pragma once

/// Texts that are too long for a model.

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "encoding.hpp"

namespace transformer {

/// Shortens a text, or a pair of them, until with so many special tokens beside it has no more than
/// max_length: token by token from the end of whichever is longer, of the second where both are as long. This
/// is HuggingFace's "longest first". Throws std::invalid_argument where that makes do with an error as well:
/// if there is no room for the special tokens, or none for a single text that has tokens.
inline void truncate_longest_first(std::vector<Id>& first, std::optional<std::vector<Id>>& second,
                                   std::size_t special_tokens, std::size_t max_length) {
  const std::size_t least = special_tokens + (!second && !first.empty() ? 1 : 0);
  if (max_length < least) {
    throw std::invalid_argument("max_length: expected at least " + std::to_string(least) + ", got " +
                                std::to_string(max_length));
  }
  const auto second_size = [&] { return second ? second->size() : 0; };
  while (special_tokens + first.size() + second_size() > max_length) {
    (first.size() > second_size() ? first : *second).pop_back();
  }
}

}  // namespace transformer

#pragma once

/// How GPT-2's files write bytes.

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>

#include "unicode.hpp"

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

}  // namespace transformer

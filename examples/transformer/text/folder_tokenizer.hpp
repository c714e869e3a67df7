#pragma once

/// The tokenizer of a folder as models are published: vocab.txt and, where there is one,
/// tokenizer_config.json for BERT's WordPiece; vocab.json and merges.txt for GPT-2's byte pairs.

#include <array>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include <meo/io/error.hpp>

#include "byte_pair.hpp"
#include "encoding.hpp"
#include "files.hpp"
#include "merges.hpp"
#include "vocabulary.hpp"
#include "word_piece.hpp"

namespace transformer {

class FolderTokenizer {
 public:
  /// Throws meo::io::Error for files that are missing or do not fit.
  explicit FolderTokenizer(const std::filesystem::path& folder)
      : vocabulary_(load_vocabulary(folder)), tokenizer_(make(folder, vocabulary_)) {}

  /// However long it is. Throws std::invalid_argument for a text without tokens.
  Encoding encode(const std::string& text, const std::optional<std::string>& pair) const {
    require_tokens("text", text);
    if (pair) require_tokens("pair", *pair);
    return std::visit(
        [&](const auto& of_kind) {
          return of_kind.encode(text, pair, (std::numeric_limits<std::size_t>::max)());
        },
        tokenizer_);
  }

  /// Cut to max_length, and with any text, be it of no token. Throws std::invalid_argument if max_length is
  /// too small for that.
  Encoding encode(std::string_view text, std::optional<std::string_view> pair, std::size_t max_length) const {
    return std::visit([&](const auto& of_kind) { return of_kind.encode(text, pair, max_length); },
                      tokenizer_);
  }

  /// The tokens of a text alone, without those that stand at its ends.
  std::vector<Id> ids(std::string_view text) const {
    return std::visit([&](const auto& of_kind) { return of_kind.ids(text); }, tokenizer_);
  }

  std::size_t size() const { return vocabulary_.size(); }
  /// Of a token as the vocabulary has it.
  std::optional<Id> find(std::string_view token) const { return vocabulary_.find(token); }
  /// [MASK], where the vocabulary has it.
  std::optional<Id> mask() const { return find("[MASK]"); }

  /// The text that has these tokens, which with WordPiece none can tell. Throws std::invalid_argument for
  /// that tokenizer, and for an id that is not in the vocabulary.
  std::string decode(std::span<const Id> ids) const {
    const auto* byte_pairs = std::get_if<BytePairTokenizer>(&tokenizer_);
    if (byte_pairs == nullptr) throw std::invalid_argument("tokenizer: expected byte pairs, got WordPiece");
    return byte_pairs->decode(ids);
  }

  /// The token as the vocabulary spells it, or the id where it has none.
  std::string spelling(Id id) const {
    return vocabulary_.contains(id) ? vocabulary_.token(id) : std::to_string(id);
  }

  /// What a folder may have of it.
  static constexpr std::array files{"vocab.txt", "tokenizer_config.json", "vocab.json", "merges.txt"};

 private:
  using Tokenizer = std::variant<WordPieceTokenizer, BytePairTokenizer>;

  static constexpr const char *lines_file = files[0], *config_file = files[1], *json_file = files[2],
                              *merges_file = files[3];

  static bool has_word_pieces(const std::filesystem::path& folder) { return exists(folder / lines_file); }

  static Vocabulary load_vocabulary(const std::filesystem::path& folder) {
    if (has_word_pieces(folder)) return Vocabulary::from_lines(load_file(folder / lines_file));
    if (!exists(folder / json_file)) {
      throw meo::io::Error(
          folder.string(),
          "expected vocab.txt, or vocab.json and merges.txt, to read texts, got none of them");
    }
    return Vocabulary::from_json(load_file(folder / json_file), (folder / json_file).string());
  }

  static Tokenizer make(const std::filesystem::path& folder, const Vocabulary& vocabulary) {
    const bool word_pieces = has_word_pieces(folder);
    try {
      if (word_pieces) return WordPieceTokenizer(vocabulary, is_uncased(folder));
      const std::filesystem::path merges = folder / merges_file;
      return BytePairTokenizer(vocabulary, Merges(load_file(merges), merges.string()));
    } catch (const std::invalid_argument& error) {
      throw meo::io::Error((folder / (word_pieces ? lines_file : json_file)).string(), error.what());
    }
  }

  /// As BertTokenizer, which takes text for uncased where nothing is said.
  static bool is_uncased(const std::filesystem::path& folder) {
    const std::filesystem::path path = folder / config_file;
    if (!exists(path)) return true;
    const nlohmann::json json = parse_json(load_file(path), path.string());
    if (!json.is_object())
      throw meo::io::Error(path.string(), std::string("expected an object, got ") + json.type_name());
    if (!json.contains("do_lower_case")) return true;
    const nlohmann::json& value = json["do_lower_case"];
    if (!value.is_boolean())
      throw meo::io::Error(path.string(), "do_lower_case: expected true or false, got " + value.dump());
    return value.get<bool>();
  }

  void require_tokens(std::string_view name, const std::string& text) const {
    if (ids(text).empty())
      throw std::invalid_argument(std::string(name) + ": expected at least one token, got '" + text + "'");
  }

  Vocabulary vocabulary_;
  Tokenizer tokenizer_;
};

}  // namespace transformer

#pragma once

/// Tokens and their ids.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include <nlohmann/json.hpp>

#include <meo/io/error.hpp>

#include "encoding.hpp"
#include "files.hpp"

namespace transformer {

class Vocabulary {
 public:
  /// The lines of a vocab.txt; a token's id is its line's number, from 0 on, and of a token that stands twice
  /// the last.
  static Vocabulary from_lines(std::string_view text) {
    Vocabulary vocabulary;
    Id id = 0;
    for_each_line(text, [&](std::string_view line) { vocabulary.add(std::string(line), id++); });
    return vocabulary;
  }

  /// A vocab.json, an object of tokens with their ids. Throws meo::io::Error, which names the file, for any
  /// other text.
  static Vocabulary from_json(std::string_view text, const std::string& file) {
    const nlohmann::json json = parse_json(text, file);
    if (!json.is_object())
      throw meo::io::Error(file, std::string("expected an object, got ") + json.type_name());
    Vocabulary vocabulary;
    for (const auto& [token, id] : json.items()) {
      constexpr auto most = static_cast<std::uint64_t>((std::numeric_limits<Id>::max)());
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() > most) {
        throw meo::io::Error(
            file, "token '" + token + "': expected a whole number of at least 0, got " + id.dump());
      }
      vocabulary.add(token, id.get<Id>());
    }
    return vocabulary;
  }

  std::size_t size() const { return ids_.size(); }

  std::optional<Id> find(std::string_view token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }

  /// Throws std::invalid_argument for a token that is not there.
  Id at(std::string_view token) const {
    if (const std::optional<Id> id = find(token)) return *id;
    throw std::invalid_argument("expected the vocabulary to have '" + std::string(token) + "'");
  }

  bool contains(Id id) const { return tokens_.contains(id); }

  /// Throws std::invalid_argument for an id that is not there.
  const std::string& token(Id id) const {
    const auto found = tokens_.find(id);
    if (found == tokens_.end())
      throw std::invalid_argument("id: expected one of the vocabulary, got " + std::to_string(id));
    return found->second;
  }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  void add(const std::string& token, Id id) {
    ids_[token] = id;
    tokens_[id] = token;
  }

  std::unordered_map<std::string, Id, Hash, std::equal_to<>> ids_;
  std::unordered_map<Id, std::string> tokens_;
};

}  // namespace transformer

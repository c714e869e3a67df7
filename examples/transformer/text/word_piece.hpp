#pragma once

/// BERT's tokenizer: words, of which those that are not in the vocabulary are pieced together from it.

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bert_words.hpp"
#include "encoding.hpp"
#include "truncate.hpp"
#include "unicode.hpp"
#include "vocabulary.hpp"

namespace transformer {

/// Gives what HuggingFace's BertTokenizer gives, the one in Python of a published model.
class WordPieceTokenizer {
 public:
  /// uncased: the vocabulary has lower case and no accents. Throws std::invalid_argument if it lacks [CLS],
  /// [SEP] or [UNK].
  WordPieceTokenizer(Vocabulary vocabulary, bool uncased)
      : vocabulary_(std::move(vocabulary)),
        uncased_(uncased),
        start_(vocabulary_.at("[CLS]")),
        separator_(vocabulary_.at("[SEP]")),
        unknown_(vocabulary_.at("[UNK]")) {}

  /// [CLS] text [SEP], or [CLS] text [SEP] pair [SEP], cut to max_length as truncate_longest_first does. The
  /// texts are UTF-8; what in them is not is passed over. Throws std::invalid_argument if max_length is too
  /// small.
  Encoding encode(std::string_view text, std::optional<std::string_view> pair, std::size_t max_length) const {
    std::vector<Id> first = ids(text);
    std::optional<std::vector<Id>> second;
    if (pair) second = ids(*pair);
    truncate_longest_first(first, second, second ? 3 : 2, max_length);

    Encoding encoding;
    const auto add = [&](const std::vector<Id>& ids, Id type) {
      encoding.input_ids.insert(encoding.input_ids.end(), ids.begin(), ids.end());
      encoding.input_ids.push_back(separator_);
      encoding.token_type_ids.resize(encoding.input_ids.size(), type);
    };
    encoding.input_ids.push_back(start_);
    add(first, 0);
    if (second) add(*second, 1);
    return encoding;
  }

  /// The tokens of a text alone. [CLS], [SEP], [PAD], [UNK] and [MASK], written out, stand for themselves
  /// wherever they are.
  std::vector<Id> ids(std::string_view text) const {
    std::vector<Id> ids;
    while (!text.empty()) {
      const auto [begin, token] = next_special(text);
      for (const std::u32string& word : bert_words(text.substr(0, begin), uncased_)) add_word(word, ids);
      if (!token.empty()) ids.push_back(vocabulary_.find(token).value_or(unknown_));
      text.remove_prefix(begin + token.size());
    }
    return ids;
  }

 private:
  /// Where the first special token of a text begins, and the token; the end and nothing if there is none.
  static std::pair<std::size_t, std::string_view> next_special(std::string_view text) {
    for (std::size_t at = text.find('['); at != std::string_view::npos; at = text.find('[', at + 1)) {
      for (const std::string_view token : bert_special_tokens) {
        if (text.substr(at).starts_with(token)) return {at, token};
      }
    }
    return {text.size(), {}};
  }

  /// Adds the longest token that the word begins with, the longest one that the rest goes on with, marked by
  /// ##, and so on; [UNK] for a word that cannot be pieced together so, or is too long.
  void add_word(const std::u32string& word, std::vector<Id>& ids) const {
    constexpr std::size_t longest_word = 100;
    const std::size_t before = ids.size();
    bool known = word.size() <= longest_word;
    for (std::size_t begin = 0; known && begin < word.size();) {
      std::string piece = begin > 0 ? "##" : "";
      std::vector<std::size_t> ends;  // of the piece, if it ends behind the next character, the one after, …
      for (const char32_t point : std::u32string_view(word).substr(begin)) {
        append_utf8(piece, point);
        ends.push_back(piece.size());
      }
      std::optional<Id> id;
      while (!ends.empty() && !id) {
        id = vocabulary_.find(std::string_view(piece).substr(0, ends.back()));
        if (!id) ends.pop_back();
      }
      known = id.has_value();
      if (known) ids.push_back(*id);
      begin += ends.size();
    }
    if (known) return;
    ids.resize(before);
    ids.push_back(unknown_);
  }

  Vocabulary vocabulary_;
  bool uncased_;
  Id start_, separator_, unknown_;
};

}  // namespace transformer

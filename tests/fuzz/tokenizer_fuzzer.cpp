// The tokenizers of the example transformer take text of any bytes, and vocabularies and merges of any, or
// refuse them with an Error or std::invalid_argument; nothing else may happen. Byte pairs lose nothing, and
// are merged as by a search for the first pair of the list, again and again.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <meo/io/error.hpp>

#include "../support/naive_merges.hpp"
#include "text/bert_words.hpp"
#include "text/byte_alphabet.hpp"
#include "text/byte_pair.hpp"
#include "text/encoding.hpp"
#include "text/gpt2_words.hpp"
#include "text/merges.hpp"
#include "text/unicode.hpp"
#include "text/vocabulary.hpp"
#include "text/word_piece.hpp"

namespace {

using transformer::BytePairTokenizer;
using transformer::Encoding;
using transformer::Id;
using transformer::Merges;
using transformer::Vocabulary;
using transformer::WordPieceTokenizer;

void require(bool holds) {
  if (!holds) std::abort();
}

// What may be refused.
template <class Action>
void refuse_at_most(const Action& action) {
  try {
    action();
  } catch (const meo::io::Error&) {
  } catch (const std::invalid_argument&) {
  }
}

// Pairs of tokens, in the order in which they are merged, which is none that training gives.
const meo::test::TokenPairs merges = {{"ab", "a"},  {"a", "b"},           {"a", "a"},
                                      {"a", "ab"},  {"aa", "ab"},         {"b", "a"},
                                      {"aa", "aa"}, {"\u00c3", "\u00a9"}, {"\u0120", "a"}};

BytePairTokenizer byte_pairs() {
  const transformer::ByteAlphabet alphabet;
  nlohmann::json vocabulary = nlohmann::json::object();
  for (std::size_t byte = 0; byte < 256; ++byte) vocabulary[alphabet.character(byte)] = byte;
  std::string lines = "#version: 0.2\n";
  for (const auto& [left, right] : merges) {
    lines += left + ' ' + right + '\n';
    vocabulary[left + right] = vocabulary.size();
  }
  return {Vocabulary::from_json(vocabulary.dump(), "vocabulary"), Merges(lines, "merges")};
}

void try_byte_pairs(std::string_view text) {
  static const BytePairTokenizer tokenizer = byte_pairs();
  const std::vector<Id> ids = tokenizer.ids(text);
  require(tokenizer.decode(ids) == text);

  std::size_t next = 0;
  std::string joined;
  for (const std::string_view word : transformer::gpt2_words(text)) {
    joined += word;
    if (word.size() > 1000) return;  // the search takes quadratic time
    for (const std::string& token : meo::test::merged_naively(word, merges)) {
      static const transformer::ByteAlphabet alphabet;
      require(next < ids.size() && tokenizer.decode({&ids[next], 1}) == alphabet.bytes(token));
      ++next;
    }
  }
  require(next == ids.size() && joined == text);
}

void try_word_pieces(std::string_view text, std::string_view pair, std::size_t max_length) {
  static const Vocabulary vocabulary = Vocabulary::from_lines(
      "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##a\nab\n##ab\ne\n##e\n!\n[\n]\n\u6771\n##\u0e01\n");
  static const WordPieceTokenizer for_uncased(vocabulary, true), for_cased(vocabulary, false);
  for (const bool uncased : {true, false}) {
    const WordPieceTokenizer& tokenizer = uncased ? for_uncased : for_cased;
    refuse_at_most([&] {
      const Encoding encoding = tokenizer.encode(text, pair, max_length);
      require(encoding.input_ids.size() <= max_length);
      require(encoding.input_ids.size() == encoding.token_type_ids.size());
      for (const Id id : encoding.input_ids) require(id >= 0 && id < static_cast<Id>(vocabulary.size()));
    });
    // What has been split once is not split again.
    for (const std::u32string& word : transformer::bert_words(text, uncased)) {
      require(transformer::bert_words(transformer::utf8(word), uncased) == std::vector{word});
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Not a string, whose end may be read.
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::u32string points = transformer::code_points(text);
  require(transformer::code_points(transformer::utf8(points)) == points);
  try_byte_pairs(text);
  try_word_pieces(text.substr(0, size / 2), text.substr(size / 2), size == 0 ? 0 : data[0]);

  // As files, whose reading takes longer, those that begin as such do.
  if (text.starts_with('[')) {
    refuse_at_most([&] { WordPieceTokenizer(Vocabulary::from_lines(text), true); });
  } else if (text.starts_with('{')) {
    refuse_at_most([&] { Vocabulary::from_json(text, "vocabulary"); });
  } else if (text.starts_with('#')) {
    refuse_at_most([&] {
      static const Vocabulary everything = Vocabulary::from_json(R"({"<|endoftext|>": 0})", "vocabulary");
      const BytePairTokenizer tokenizer(everything, Merges(text, "merges"));
      static_cast<void>(tokenizer.ids(text));
    });
  }
  return 0;
}

/// Turns texts into the ids that BERT or GPT-2 reads: one learns how the tokenizers are used. `--help` says
/// what it reads and writes.

#include <cstddef>
#include <filesystem>
#include <iostream>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <meo/io/error.hpp>
#include <meo/io/output_file.hpp>

#include "command_line.hpp"
#include "text/byte_pair.hpp"
#include "text/encoding.hpp"
#include "text/files.hpp"
#include "text/merges.hpp"
#include "text/unicode.hpp"
#include "text/vocabulary.hpp"
#include "text/word_piece.hpp"

namespace {

using transformer::UsageError;

constexpr std::string_view help_text = R"(usage: tokenize --vocab vocab.txt IN.json OUT.json
       tokenize --vocab vocab.json --merges merges.txt IN.json OUT.json

Turns texts into token ids: without --merges by BERT's WordPiece, with it by GPT-2's
byte pairs, as HuggingFace's BertTokenizer and GPT2Tokenizer do.

  --vocab FILE    the vocabulary: a token a line, or with --merges an object of ids
  --merges FILE   the pairs to merge, one a line, the first to be merged first
  --help          this text

IN is a list of objects:
  text            the text
  pair            the second text of a pair, or null
  max_length      how many tokens there may be; the longer of two texts is cut first
  cased           false: lower case, accents stripped; for BERT only
For GPT-2 pair and max_length may be missing.

OUT gets a list of as many objects:
  input_ids       BERT: [CLS] text [SEP], or [CLS] text [SEP] pair [SEP]
  token_type_ids  BERT: 1 for pair and its [SEP], else 0

Texts are UTF-8; what is not becomes U+FFFD.

Exit code: 0 fine, 1 a file does not fit, or OUT cannot be written (which is tried
first), 2 wrong options.
)";

struct Arguments {
  std::optional<std::string> vocabulary, merges;
  std::vector<std::string> files;
  bool help = false;

  const std::string& in() const { return files[0]; }
  const std::string& out() const { return files[1]; }
};

Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const auto value = [&] {
      if (i + 1 == words.size()) throw UsageError(word + " needs a value");
      return words[++i];
    };
    if (word == "--help" || word == "-h") arguments.help = true;
    else if (word == "--vocab") arguments.vocabulary = value();
    else if (word == "--merges") arguments.merges = value();
    else if (word.starts_with("-")) throw UsageError("unknown option '" + word + "'");
    else arguments.files.push_back(word);
  }
  if (arguments.help) return arguments;
  if (!arguments.vocabulary) throw UsageError("expected --vocab");
  if (arguments.files.size() != 2)
    throw UsageError("expected two files, IN and OUT, got " + std::to_string(arguments.files.size()));
  return arguments;
}

/// An object of IN, with errors that name the file, the object by its number from 0 on, and the field.
class Item {
 public:
  Item(const nlohmann::json& json, const std::string& file, std::size_t number)
      : json_(json), place_(file + ": object " + std::to_string(number)) {
    if (!json.is_object()) fail("expected an object, got " + shown(json));
  }

  bool has(const char* name) const { return json_.contains(name); }

  std::string text(const char* name) const {
    const nlohmann::json& value = field(name);
    if (!value.is_string()) fail(name, "a string", value);
    return value.get<std::string>();
  }
  std::optional<std::string> text_or_null(const char* name) const {
    const nlohmann::json& value = field(name);
    if (value.is_null()) return std::nullopt;
    if (!value.is_string()) fail(name, "a string or null", value);
    return value.get<std::string>();
  }
  bool flag(const char* name) const {
    const nlohmann::json& value = field(name);
    if (!value.is_boolean()) fail(name, "true or false", value);
    return value.get<bool>();
  }
  std::size_t count(const char* name) const {
    const nlohmann::json& value = field(name);
    if (!value.is_number_unsigned()) fail(name, "a whole number of at least 0", value);
    return value.get<std::size_t>();
  }

  [[noreturn]] void fail(const std::string& reason) const { throw meo::io::Error(place_, reason); }

 private:
  /// A number as it is, for the others what they are.
  static std::string shown(const nlohmann::json& value) {
    return value.is_number() ? value.dump() : value.type_name();
  }

  [[noreturn]] void fail(const char* name, const char* expected, const nlohmann::json& got) const {
    fail(std::string(name) + ": expected " + expected + ", got " + shown(got));
  }

  const nlohmann::json& field(const char* name) const {
    if (!has(name)) fail(std::string(name) + ": expected a value, got none");
    return json_[name];
  }

  const nlohmann::json& json_;
  std::string place_;
};

/// encode: gives the Encoding of an Item; std::invalid_argument is a fault of the Item.
template <class Encode>
nlohmann::ordered_json encode_all(const std::string& file, bool with_types, const Encode& encode) {
  // Strings of JSON are UTF-8, or no JSON.
  const std::string text = transformer::utf8(transformer::code_points(transformer::load_file(file)));
  const nlohmann::json items = transformer::parse_json(text, file);
  if (!items.is_array()) throw meo::io::Error(file, std::string("expected a list, got ") + items.type_name());
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < items.size(); ++i) {
    const Item item(items[i], file, i);
    try {
      const transformer::Encoding encoding = encode(item);
      nlohmann::ordered_json result;
      result["input_ids"] = encoding.input_ids;
      if (with_types) result["token_type_ids"] = encoding.token_type_ids;
      results.push_back(std::move(result));
    } catch (const std::invalid_argument& error) {
      item.fail(error.what());
    }
  }
  return results;
}

/// make: gives a tokenizer; std::invalid_argument is a fault of its vocabulary.
template <class Make>
auto make_tokenizer(const std::string& vocabulary_file, const Make& make) {
  try {
    return make();
  } catch (const std::invalid_argument& error) {
    throw meo::io::Error(vocabulary_file, error.what());
  }
}

nlohmann::ordered_json encode_by_word_piece(const Arguments& arguments) {
  const std::string& file = *arguments.vocabulary;
  const auto vocabulary = transformer::Vocabulary::from_lines(transformer::load_file(file));
  const auto make = [&](bool uncased) {
    return make_tokenizer(file, [&] { return transformer::WordPieceTokenizer(vocabulary, uncased); });
  };
  const transformer::WordPieceTokenizer uncased = make(true), cased = make(false);
  return encode_all(arguments.in(), true, [&](const Item& item) {
    const std::string text = item.text("text");
    const std::optional<std::string> pair = item.text_or_null("pair");
    return (item.flag("cased") ? cased : uncased).encode(text, pair, item.count("max_length"));
  });
}

nlohmann::ordered_json encode_by_byte_pairs(const Arguments& arguments) {
  const std::string& file = *arguments.vocabulary;
  const auto vocabulary = transformer::Vocabulary::from_json(transformer::load_file(file), file);
  const transformer::Merges merges(transformer::load_file(*arguments.merges), *arguments.merges);
  const auto tokenizer =
      make_tokenizer(file, [&] { return transformer::BytePairTokenizer(vocabulary, merges); });
  return encode_all(arguments.in(), false, [&](const Item& item) {
    const std::optional<std::string> pair = item.has("pair") ? item.text_or_null("pair") : std::nullopt;
    const std::size_t max_length =
        item.has("max_length") ? item.count("max_length") : (std::numeric_limits<std::size_t>::max)();
    return tokenizer.encode(item.text("text"), pair, max_length);
  });
}

void run(const Arguments& arguments) {
  for (const std::string& file : {*arguments.vocabulary, arguments.merges.value_or(""), arguments.in()}) {
    std::error_code not_there;
    if (std::filesystem::equivalent(file, arguments.out(), not_there))
      throw UsageError("OUT would replace what is read, '" + file + "'");
  }
  meo::io::require_writable(arguments.out());
  const nlohmann::ordered_json results =
      arguments.merges ? encode_by_byte_pairs(arguments) : encode_by_word_piece(arguments);
  const std::string text = results.dump() + "\n";
  meo::io::write_file(arguments.out(), std::as_bytes(std::span(text)));
}

}  // namespace

int main(int argc, char** argv) {
  return transformer::exit_code_of("tokenize", [&] {
    const Arguments arguments = parse({argv + 1, argv + argc});
    if (arguments.help) std::cout << help_text;
    else run(arguments);
  });
}

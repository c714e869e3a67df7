// The tokenizers of the example transformer: Unicode, words, WordPiece, byte pairs, and what does not fit.

#include <algorithm>
#include <array>
#include <cstddef>
#include <fstream>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <meo/io/error.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/naive_merges.hpp"
#include "text/bert_words.hpp"
#include "text/byte_alphabet.hpp"
#include "text/byte_pair.hpp"
#include "text/encoding.hpp"
#include "text/files.hpp"
#include "text/gpt2_words.hpp"
#include "text/merges.hpp"
#include "text/truncate.hpp"
#include "text/unicode.hpp"
#include "text/vocabulary.hpp"
#include "text/word_piece.hpp"

namespace {

using transformer::BytePairTokenizer;
using transformer::code_points;
using transformer::Encoding;
using transformer::Id;
using transformer::Merges;
using transformer::utf8;
using transformer::Vocabulary;
using transformer::WordPieceTokenizer;
using Words = std::vector<std::string>;
using Ids = std::vector<Id>;

constexpr std::size_t no_limit = (std::numeric_limits<std::size_t>::max)();
const std::string data = MEO_TEST_DATA_DIR "/tokenizer/";

// What a std::invalid_argument of the action says.
template <class Action>
std::string fault_of(const Action& action) {
  try {
    action();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

std::string repeated(std::string_view text, std::size_t times) {
  std::string all;
  for (std::size_t i = 0; i < times; ++i) all += text;
  return all;
}

std::vector<char32_t> all_code_points() {
  std::vector<char32_t> all;
  for (char32_t point = 0; point <= 0x10ffff; ++point) {
    if (point < 0xd800 || point > 0xdfff) all.push_back(point);
  }
  return all;
}

std::string random_bytes(std::mt19937& rng, std::size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(rng() & 0xff);
  return bytes;
}

}  // namespace

TEST_CASE("code points and UTF-8 are each other's inverses", "[tokenizer]") {
  const std::vector<char32_t> all = all_code_points();
  const std::u32string points(all.begin(), all.end());
  CHECK(code_points(utf8(points)) == points);
  CHECK(utf8(U"aé€😀") == "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
}

TEST_CASE("what is not UTF-8 is U+FFFD, one for each longest start of a character", "[tokenizer]") {
  // The Unicode Standard's tables 3-8 to 3-11, and what ends too early.
  const std::vector<std::pair<std::string, std::u32string>> cases = {
      {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", U"\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffdA"},
      {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", U"\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffdA"},
      {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", U"\ufffd\ufffd\ufffd\ufffd\ufffdA\ufffd\ufffdB"},
      {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", U"\ufffd\ufffd\ufffd\ufffdA"},
      {"\xc3", U"\ufffd"},
      {"\xe2\x82", U"\ufffd"},
      {"\xf0\x9f\x98", U"\ufffd"},
      {"\xf0\x9f\x98\xc3\xa9", U"\ufffdé"},
      {"\xc1\xbf\xf5\x80\x80\x80", U"\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd"},
      {std::string("a\0b", 3), std::u32string(U"a\0b", 3)}};
  for (const auto& [bytes, expected] : cases) CHECK(code_points(bytes) == expected);
}

TEST_CASE("form D decomposes to the end and orders marks by their class", "[tokenizer]") {
  using transformer::decomposed;
  CHECK(decomposed(U"") == U"");
  CHECK(decomposed(U"plain") == U"plain");
  CHECK(decomposed(U"\u1e69") == U"s\u0323\u0307");
  CHECK(decomposed(U"s\u0307\u0323x") == U"s\u0323\u0307x");
  CHECK(decomposed(U"\u1e0b\u0323\u1e0d\u0307") == U"d\u0323\u0307d\u0323\u0307");
  CHECK(decomposed(U"a\u0301\u0300") == U"a\u0301\u0300");  // of one class: in their own order
  CHECK(decomposed(U"\u0301\u0323") == U"\u0323\u0301");
  CHECK(decomposed(U"\ud55c") == U"\u1112\u1161\u11ab");
  CHECK(decomposed(U"\u1fef\u212b\u0390") == U"`A\u030a\u03b9\u0308\u0301");
  CHECK(decomposed(U"\ufb01\u00bd") == U"\ufb01\u00bd");  // compatibility only
}

TEST_CASE("BERT's words", "[tokenizer]") {
  struct Case {
    std::u32string text;
    std::vector<std::u32string> uncased, cased;
  };
  using namespace std::string_literals;
  const std::vector<Case> cases = {
      {U"", {}, {}},
      {U" \t\r\n\u00a0\u3000\u2028\u2029", {}, {}},
      {U"The  Café", {U"the", U"cafe"}, {U"The", U"Café"}},
      {U"Cafe\u0301", {U"cafe"}, {U"Cafe\u0301"}},
      {U"a\tb\nc\rd\u2009e\u2028f\u2029g",
       {U"a", U"b", U"c", U"d", U"e", U"f", U"g"},
       {U"a", U"b", U"c", U"d", U"e", U"f", U"g"}},
      {U"a\u0000b\u0001c\u001cd\u0085e\u00adf\u200bg\ufeffh\ufffdi\ue000j\u0378k"s,
       {U"abcdefghijk"},
       {U"abcdefghijk"}},
      {U"Don't!!", {U"don", U"'", U"t", U"!", U"!"}, {U"Don", U"'", U"t", U"!", U"!"}},
      {U"$1+2^3`~|<=>",
       {U"$", U"1", U"+", U"2", U"^", U"3", U"`", U"~", U"|", U"<", U"=", U">"},
       {U"$", U"1", U"+", U"2", U"^", U"3", U"`", U"~", U"|", U"<", U"=", U">"}},
      {U"x—y。z€w", {U"x", U"—", U"y", U"。", U"z€w"}, {U"x", U"—", U"y", U"。", U"z€w"}},
      {U"/09:@AZ[`az{",
       {U"/", U"09", U":", U"@", U"az", U"[", U"`", U"az", U"{"},
       {U"/", U"09", U":", U"@", U"AZ", U"[", U"`", U"az", U"{"}},
      {U"a東京b", {U"a", U"東", U"京", U"b"}, {U"a", U"東", U"京", U"b"}},
      {U"x\u33ffy\u3400z\u4dbfx\u4dc0y\u4e00z\u9fffx\ua000y",
       {U"x\u33ffy", U"\u3400", U"z", U"\u4dbf", U"x\u4dc0y", U"\u4e00", U"z", U"\u9fff", U"x\ua000y"},
       {U"x\u33ffy", U"\u3400", U"z", U"\u4dbf", U"x\u4dc0y", U"\u4e00", U"z", U"\u9fff", U"x\ua000y"}},
      {U"x\uf900y\ufad9z\ufb00x",
       {U"x", U"\u8c48", U"y", U"\u9f8e", U"z\ufb00x"},
       {U"x", U"\uf900", U"y", U"\ufad9", U"z\ufb00x"}},
      {U"x\U00020000y\U0002f800z\U0002fa1d",
       {U"x", U"\U00020000", U"y", U"\u4e3d", U"z", U"\U0002a600"},
       {U"x", U"\U00020000", U"y", U"\U0002f800", U"z", U"\U0002fa1d"}},
      {U"a\ufadfb", {U"ab"}, {U"ab"}},  // among the ideographs, but not assigned
      {U"かな", {U"かな"}, {U"かな"}},
      {U"が", {U"か"}, {U"が"}},
      {U"İSTANBUL ΟΔΟΣ ẞ \u212a",
       {U"istanbul", U"οδοσ", U"ß", U"k"},
       {U"İSTANBUL", U"ΟΔΟΣ", U"ẞ", U"\u212a"}},
      {U"\u0301 x", {U"x"}, {U"\u0301", U"x"}},
      {U"a\u1fefb", {U"a", U"`", U"b"}, {U"a\u1fefb"}},  // a punctuation mark once decomposed
  };
  for (const Case& c : cases) {
    CAPTURE(utf8(c.text));
    CHECK(transformer::bert_words(utf8(c.text), true) == c.uncased);
    CHECK(transformer::bert_words(utf8(c.text), false) == c.cased);
  }
  CHECK(transformer::bert_words("a\xff\xe2\x82z", true) == std::vector<std::u32string>{U"az"});
}

namespace {

// [PAD] is 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, and so on.
const std::string small_vocabulary =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nun\n##aff\n##able\n##a\n##ff\nunaf\n!\ne\n##e\n[\n]\ncls\n";

WordPieceTokenizer small_tokenizer(bool uncased = true) {
  return {Vocabulary::from_lines(small_vocabulary), uncased};
}

}  // namespace

TEST_CASE("WordPiece takes the longest token there is, from left to right", "[tokenizer]") {
  const WordPieceTokenizer tokenizer = small_tokenizer();
  CHECK(tokenizer.ids("") == Ids{});
  CHECK(tokenizer.ids("un Un!") == Ids{5, 5, 11});
  CHECK(tokenizer.ids("una") == Ids{5, 8});
  CHECK(tokenizer.ids("unaff unaffable") == Ids{1, 1});  // unaf is taken, and no ##f is there
  CHECK(tokenizer.ids("unafffable") == Ids{10, 9, 7});
  CHECK(tokenizer.ids("able ##able x un") == Ids{1, 1, 1, 1, 1, 5});
  CHECK(tokenizer.ids("unx!") == Ids{1, 11});
}

TEST_CASE("a word of over 100 characters is unknown", "[tokenizer]") {
  Ids hundred(100, 13);
  hundred[0] = 12;
  const WordPieceTokenizer uncased = small_tokenizer(), cased = small_tokenizer(false);
  CHECK(uncased.ids(repeated("e", 100)) == hundred);
  CHECK(uncased.ids(repeated("e", 101)) == Ids{1});
  CHECK(uncased.ids(repeated("E\u0301", 100)) == hundred);  // without accents
  CHECK(uncased.ids(repeated("\u00e9", 101) + " e") == Ids{1, 12});
  CHECK(cased.ids(repeated("e", 100)) == hundred);
  CHECK(cased.ids("\u00e9") == Ids{1});
}

TEST_CASE("special tokens stand for themselves in a text", "[tokenizer]") {
  for (const bool uncased : {true, false}) {
    const WordPieceTokenizer tokenizer = small_tokenizer(uncased);
    CHECK(tokenizer.ids("[CLS] [SEP][PAD] [UNK]un[MASK]") == Ids{2, 3, 0, 1, 5, 4});
    CHECK(tokenizer.ids("un[SEP]un![[CLS]]") == Ids{5, 3, 5, 11, 14, 2, 15});
    // A character that is left out, within one: found again only in the case that it has.
    CHECK(tokenizer.ids("[C\u200dLS] x[S\u00adEP]") ==
          (uncased ? Ids{14, 16, 15, 1, 14, 1, 15} : Ids{2, 1, 14, 1, 15}));
    CHECK(tokenizer.ids("[cls] [CLS") == (uncased ? Ids{14, 16, 15, 14, 16} : Ids{14, 16, 15, 14, 1}));
  }
  // HuggingFace has the unknown token for one that the vocabulary lacks.
  CHECK(WordPieceTokenizer(Vocabulary::from_lines("[UNK]\n[CLS]\n[SEP]"), true).ids("[MASK]") == Ids{0});
}

TEST_CASE("WordPiece needs [CLS], [SEP] and [UNK]", "[tokenizer]") {
  const auto fault = [](std::string_view lines) {
    return fault_of([&] { WordPieceTokenizer(Vocabulary::from_lines(lines), true); });
  };
  CHECK(fault("[SEP]\n[UNK]") == "expected the vocabulary to have '[CLS]'");
  CHECK(fault("[CLS]\n[UNK]") == "expected the vocabulary to have '[SEP]'");
  CHECK(fault("[CLS]\n[SEP]") == "expected the vocabulary to have '[UNK]'");
}

TEST_CASE("WordPiece encodes texts and pairs", "[tokenizer]") {
  const WordPieceTokenizer tokenizer = small_tokenizer();
  const auto check = [&](const Encoding& encoding, const Ids& ids, const Ids& types) {
    CHECK(encoding.input_ids == ids);
    CHECK(encoding.token_type_ids == types);
  };
  check(tokenizer.encode("", std::nullopt, 2), {2, 3}, {0, 0});
  check(tokenizer.encode("un!", std::nullopt, no_limit), {2, 5, 11, 3}, {0, 0, 0, 0});
  check(tokenizer.encode("un!", std::nullopt, 3), {2, 5, 3}, {0, 0, 0});
  check(tokenizer.encode("un", "", no_limit), {2, 5, 3, 3}, {0, 0, 0, 1});
  check(tokenizer.encode("", "un", no_limit), {2, 3, 5, 3}, {0, 0, 1, 1});
  check(tokenizer.encode("un!", "e e", 7), {2, 5, 11, 3, 12, 12, 3}, {0, 0, 0, 0, 1, 1, 1});
  check(tokenizer.encode("un!", "e e", 6), {2, 5, 11, 3, 12, 3}, {0, 0, 0, 0, 1, 1});
  check(tokenizer.encode("un!", "e e", 3), {2, 3, 3}, {0, 0, 1});
  CHECK(fault_of([&] { tokenizer.encode("un", std::nullopt, 2); }) ==
        "max_length: expected at least 3, got 2");
  CHECK(fault_of([&] { tokenizer.encode("", std::nullopt, 1); }) == "max_length: expected at least 2, got 1");
  CHECK(fault_of([&] { tokenizer.encode("un", "un", 2); }) == "max_length: expected at least 3, got 2");
}

TEST_CASE("the longer text is cut first, the second where both are as long", "[tokenizer]") {
  for (std::size_t a = 0; a <= 7; ++a) {
    for (std::size_t b = 0; b <= 7; ++b) {
      for (std::size_t room = 0; room <= 15; ++room) {
        CAPTURE(a, b, room);
        Ids first(a), rest(b);
        for (std::size_t i = 0; i < a; ++i) first[i] = static_cast<Id>(i);
        for (std::size_t i = 0; i < b; ++i) rest[i] = static_cast<Id>(10 + i);
        // The second keeps half of the room, rounded down, or what the first leaves of it if that is more.
        const std::size_t b_kept = (std::min)(b, (std::max)(room / 2, room - (std::min)(a, room)));
        const std::size_t a_kept = (std::min)(a, room - b_kept);
        const Ids first_kept(first.begin(), first.begin() + static_cast<Id>(a_kept));
        const Ids rest_kept(rest.begin(), rest.begin() + static_cast<Id>(b_kept));
        std::optional<Ids> second = rest;
        transformer::truncate_longest_first(first, second, 3, 3 + room);
        CHECK(first == first_kept);
        CHECK(second == rest_kept);
      }
    }
  }
}

TEST_CASE("WordPiece gives what BertTokenizer gave for 100 cases", "[tokenizer][golden]") {
  const auto vocabulary = Vocabulary::from_lines(transformer::load_file(data + "vocab.txt"));
  CHECK(vocabulary.size() == 30522);
  const WordPieceTokenizer uncased(vocabulary, true), cased(vocabulary, false);
  std::ifstream file(data + "cases.json");
  const nlohmann::json cases = nlohmann::json::parse(file);
  CHECK(cases.size() == 100);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    CAPTURE(i);
    const nlohmann::json& c = cases[i];
    std::optional<std::string> pair;
    if (!c["pair"].is_null()) pair = c["pair"].get<std::string>();
    const Encoding encoding =
        (c["cased"].get<bool>() ? cased : uncased)
            .encode(c["text"].get<std::string>(), pair, c["max_length"].get<std::size_t>());
    CHECK(encoding.input_ids == c["input_ids"].get<Ids>());
    CHECK(encoding.token_type_ids == c["token_type_ids"].get<Ids>());
  }
}

TEST_CASE("GPT-2's words", "[tokenizer]") {
  const std::vector<std::pair<std::string, Words>> cases = {
      {"", {}},
      {"Hello world", {"Hello", " world"}},
      {"don't we'll I'd you're they've it's I'm",
       {"don", "'t", " we", "'ll", " I", "'d", " you", "'re", " they", "'ve", " it", "'s", " I", "'m"}},
      {"'sunny 'sun DON'T", {"'s", "unny", " '", "sun", " DON", "'", "T"}},
      {"!'s ''s", {"!'", "s", " ''", "s"}},
      {"abc123 45", {"abc", "123", " 45"}},
      {"x²½Ⅷ٣", {"x", "²½Ⅷ٣"}},
      {"a+b=$5.00!", {"a", "+", "b", "=$", "5", ".", "00", "!"}},
      {"é東한ª", {"é東한ª"}},
      {"e\u0301a", {"e", "\u0301", "a"}},  // an accent is no letter
      {" ", {" "}},
      {"a ", {"a", " "}},
      {"a  ", {"a", "  "}},
      {"a  b", {"a", " ", " b"}},
      {"a   b", {"a", "  ", " b"}},
      {"a\nb", {"a", "\n", "b"}},
      {"a\n\nb", {"a", "\n", "\n", "b"}},
      {"a \n b", {"a", " \n", " b"}},
      {"a\t !", {"a", "\t", " !"}},
      {"a \t!", {"a", " ", "\t", "!"}},
      {"  \n", {"  \n"}},
      {"a\u00a0b\u3000\u2028c", {"a", "\u00a0", "b", "\u3000", "\u2028", "c"}},
      {"a\x1c b", {"a", "\x1c", " b"}},  // white space to Python's re, but not to regex
      {"a\xff\xe2\x82 b", {"a", "\xff\xe2\x82", " b"}},
  };
  for (const auto& [text, expected] : cases) {
    CAPTURE(text);
    const std::vector<std::string_view> words = transformer::gpt2_words(text);
    CHECK(Words(words.begin(), words.end()) == expected);
  }
}

TEST_CASE("GPT-2's white space is Unicode's", "[tokenizer]") {
  std::u32string found;
  for (const char32_t point : all_code_points()) {
    if (transformer::gpt2_class(point) == transformer::Gpt2Class::space) found += point;
  }
  CHECK(found ==
        U"\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
        U"\u2028\u2029\u202f\u205f\u3000");
}

TEST_CASE("characters that stand for bytes", "[tokenizer]") {
  const transformer::ByteAlphabet alphabet;
  std::string all;
  std::vector<std::string> characters;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    all += alphabet.character(byte);
    characters.push_back(alphabet.character(byte));
    CHECK(alphabet.bytes(alphabet.character(byte)) == std::string(1, static_cast<char>(byte)));
  }
  std::sort(characters.begin(), characters.end());
  CHECK(std::unique(characters.begin(), characters.end()) == characters.end());
  CHECK(alphabet.character('a') == "a");
  CHECK(alphabet.character('!') == "!");
  CHECK(alphabet.character('~') == "~");
  CHECK(alphabet.character(0x00) == "\u0100");
  CHECK(alphabet.character('\n') == "\u010a");
  CHECK(alphabet.character(' ') == "\u0120");
  CHECK(alphabet.character(0x7f) == "\u0121");
  CHECK(alphabet.character(0xa0) == "\u0142");
  CHECK(alphabet.character(0xa1) == "\u00a1");
  CHECK(alphabet.character(0xac) == "\u00ac");
  CHECK(alphabet.character(0xad) == "\u0143");
  CHECK(alphabet.character(0xff) == "\u00ff");
  CHECK(alphabet.bytes("a\u0120\u6771") == "a \u6771");
}

namespace {

// Bytes have their own number, and then come the tokens.
Vocabulary byte_vocabulary(const std::vector<std::string>& tokens) {
  const transformer::ByteAlphabet alphabet;
  nlohmann::json json = nlohmann::json::object();
  for (std::size_t byte = 0; byte < 256; ++byte) json[alphabet.character(byte)] = byte;
  for (std::size_t i = 0; i < tokens.size(); ++i) json[tokens[i]] = 256 + i;
  return Vocabulary::from_json(json.dump(), "vocab.json");
}

BytePairTokenizer byte_pairs(const std::vector<std::string>& tokens, std::string_view merges) {
  return {byte_vocabulary(tokens), Merges(merges, "merges.txt")};
}

}  // namespace

TEST_CASE("byte pairs are merged in the order of the list", "[tokenizer]") {
  const BytePairTokenizer tokenizer =
      byte_pairs({"lo", "low", "er", "\u0120low", "we"}, "#version: 0.2\nl o\nlo w\ne r\n\u0120 low\nw e\n");
  CHECK(tokenizer.ids("") == Ids{});
  CHECK(tokenizer.ids("low") == Ids{257});
  CHECK(tokenizer.ids("lower low") == Ids{257, 258, 259});  // not l o we r: w e comes last
  CHECK(tokenizer.ids("we slow") == Ids{260, ' ', 's', 257});
  CHECK(tokenizer.ids("x\u00e9\n") == Ids{'x', 0xc3, 0xa9, '\n'});
}

TEST_CASE("byte pairs: all of a rank are merged, from the left, before what they make", "[tokenizer]") {
  CHECK(byte_pairs({"aa"}, "a a").ids("aaaaa") == Ids{256, 256, 'a'});
  CHECK(byte_pairs({"aa", "aaaa"}, "a a\naa aa").ids("aaaaaaaaa") == Ids{257, 257, 'a'});
  // No training gives such lists. The pair ab a comes first, but is not there when both a b have been merged.
  CHECK(byte_pairs({"aba", "ab"}, "ab a\na b").ids("abab") == Ids{257, 257});
  CHECK(byte_pairs({"aba", "ab"}, "ab a\na b").ids("aba") == Ids{256});
  CHECK(byte_pairs({"bcd", "bc", "xb"}, "bc d\nb c\nx b").ids("xbcd") == Ids{'x', 256});
  CHECK(byte_pairs({"bc", "ab"}, "b c\na b\n").ids("abc") == Ids{'a', 256});
}

TEST_CASE("byte pairs are those of a search for the first pair, again and again", "[tokenizer]") {
  std::mt19937 rng(2);
  const auto below = [&](std::size_t count) { return static_cast<std::size_t>(rng()) % count; };
  const transformer::ByteAlphabet alphabet;
  const std::string bytes = "abc\xc3\xa9";
  for (int list = 0; list < 60; ++list) {
    // Each list joins what it has already. As training gives it, or, every other one, in no order.
    std::vector<std::string> tokens, made;
    for (const char byte : bytes) tokens.push_back(alphabet.character(static_cast<unsigned char>(byte)));
    meo::test::TokenPairs merges;
    for (std::size_t i = 0; i < 4 + below(20); ++i) {
      const std::string left = tokens[below(tokens.size())], right = tokens[below(tokens.size())];
      if (std::find(tokens.begin(), tokens.end(), left + right) != tokens.end()) continue;
      merges.emplace_back(left, right);
      tokens.push_back(left + right);
      made.push_back(left + right);
    }
    if (list % 2 == 1) std::shuffle(merges.begin(), merges.end(), rng);
    std::string lines = "#version: 0.2\n";
    for (const auto& [left, right] : merges) lines += left + ' ' + right + '\n';
    CAPTURE(lines);
    const Vocabulary vocabulary = byte_vocabulary(made);
    const BytePairTokenizer tokenizer(vocabulary, Merges(lines, "merges.txt"));
    for (int i = 0; i < 40; ++i) {
      std::string word;
      for (std::size_t size = 1 + below(50); word.size() < size;) word += bytes[below(bytes.size())];
      Ids expected;
      for (const std::string_view part : transformer::gpt2_words(word)) {
        for (const std::string& token : meo::test::merged_naively(part, merges))
          expected.push_back(vocabulary.at(token));
      }
      REQUIRE(tokenizer.ids(word) == expected);
    }
  }
}

// The first merges of GPT-2's merges.txt, whose tokens its vocab.json numbers in their order, behind the
// bytes: those that stand for themselves, and then the others.
TEST_CASE("GPT-2's first tokens have the ids that they are published with", "[tokenizer]") {
  const std::string lines =
      "#version: 0.2\n\u0120 t\n\u0120 a\nh e\ni n\nr e\no n\n\u0120t he\ne r\n\u0120 s\na t\n\u0120 w\n"
      "\u0120 o\ne n\n\u0120 c\ni t\ni s\na n\no r\ne s\n\u0120 b\ne d\n\u0120 f\nin g\n\u0120 p\no u\n"
      "\u0120a n\na l\na r\n\u0120t o\n\u0120 m\n\u0120o f\n\u0120 in\n\u0120 d\n\u0120 h\n\u0120an d\n";
  const transformer::ByteAlphabet alphabet;
  nlohmann::json json;
  for (const bool itself : {true, false}) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      std::string latin;
      transformer::append_utf8(latin, static_cast<char32_t>(byte));
      if ((alphabet.character(byte) == latin) == itself) json[alphabet.character(byte)] = json.size();
    }
  }
  transformer::for_each_line(lines, [&](std::string_view line) {
    const std::size_t space = line.find(' ');
    if (line.starts_with('#')) return;
    json[std::string(line.substr(0, space)).append(line.substr(space + 1))] = json.size();
  });
  const BytePairTokenizer tokenizer(Vocabulary::from_json(json.dump(), "vocab.json"), Merges(lines, "m"));
  CHECK(tokenizer.ids("!") == Ids{0});
  CHECK(tokenizer.ids("A,.\n") == Ids{32, 11, 13, 198});
  CHECK(tokenizer.ids(" ") == Ids{220});
  CHECK(tokenizer.ids("ing of the and in to") == Ids{278, 286, 262, 290, 287, 284});
}

TEST_CASE("byte pairs do not cross words", "[tokenizer]") {
  CHECK(byte_pairs({"a1", "\u0120a"}, "a 1\n\u0120 a").ids("a1 a  a") == Ids{'a', '1', 257, ' ', 257});
}

TEST_CASE("<|endoftext|> stands for itself where the vocabulary has it", "[tokenizer]") {
  const BytePairTokenizer with = byte_pairs({"<|endoftext|>", "<|"}, "< |\n");
  CHECK(with.ids("a <|endoftext|> b<|endoftext|><|") == Ids{'a', ' ', 256, ' ', 'b', 256, 257});
  CHECK(with.decode(Ids{'a', 256, ' '}) == "a<|endoftext|> ");
  const BytePairTokenizer without = byte_pairs({"<|"}, "< |\n");
  CHECK(without.decode(without.ids("<|endoftext|>")) == "<|endoftext|>");
  CHECK(without.ids("<|endoftext|>").size() == 12);

  // It also is what the vocabulary lacks; without it there is nothing that could be.
  const auto lacking = [](const std::string& vocabulary) {
    return BytePairTokenizer(Vocabulary::from_json(vocabulary, "v"), Merges("a b", "m")).ids("aba");
  };
  CHECK(lacking(R"({"<|endoftext|>": 7, "a": 3})") == Ids{7, 3});
  CHECK(fault_of([&] { lacking(R"({"a": 3})"); }) == "expected the vocabulary to have '\u0100'");
  CHECK(fault_of([&] { byte_pairs({}, "a b"); }) == "expected the vocabulary to have 'ab'");
}

TEST_CASE("decoded byte pairs are the text, whatever its bytes", "[tokenizer]") {
  std::mt19937 rng(1);
  const BytePairTokenizer bytes = byte_pairs({}, "");
  const BytePairTokenizer merging = byte_pairs({"\u0120\u0120", "an", "\u00c3\u00a9", "\u00c3\u00c3"},
                                               "\u0120 \u0120\na n\n\u00c3 \u00a9\n\u00c3 \u00c3\n");
  for (std::size_t size = 0; size < 300; ++size) {
    const std::string text = random_bytes(rng, size);
    const Ids ids = bytes.ids(text);
    REQUIRE(ids.size() == size);
    for (std::size_t i = 0; i < size; ++i) REQUIRE(ids[i] == static_cast<unsigned char>(text[i]));
    REQUIRE(bytes.decode(ids) == text);
    std::string mergeable;
    for (const char byte : text) mergeable += "an \u00e9\xc3"[static_cast<unsigned char>(byte) % 6];
    REQUIRE(merging.decode(merging.ids(mergeable)) == mergeable);
  }
  CHECK(merging.ids("an  \u00e9\xc3\xc3").size() == 5);
  CHECK(fault_of([&] { bytes.decode(Ids{65, 256}); }) == "id: expected one of the vocabulary, got 256");
}

TEST_CASE("byte pairs of long words take no quadratic time", "[tokenizer]") {
  const BytePairTokenizer tokenizer = byte_pairs({"aa", "aaaa"}, "a a\naa aa");
  CHECK(tokenizer.ids(std::string(1 << 18, 'a')) == Ids(1 << 16, 257));
}

TEST_CASE("byte pairs encode texts and pairs", "[tokenizer]") {
  const BytePairTokenizer tokenizer = byte_pairs({}, "");
  const Encoding one = tokenizer.encode("abc", std::nullopt, 2);
  CHECK(one.input_ids == Ids{'a', 'b'});
  CHECK(one.token_type_ids == Ids{0, 0});
  const Encoding two = tokenizer.encode("abc", "de", 4);
  CHECK(two.input_ids == Ids{'a', 'b', 'd', 'e'});
  CHECK(two.token_type_ids == Ids{0, 0, 1, 1});
  CHECK(tokenizer.encode("", std::nullopt, 0).input_ids == Ids{});
  CHECK(fault_of([&] { tokenizer.encode("a", std::nullopt, 0); }) ==
        "max_length: expected at least 1, got 0");
}

TEST_CASE("a vocabulary of lines", "[tokenizer]") {
  const Vocabulary vocabulary = Vocabulary::from_lines("a\nb\r\n\nc\na\nd");
  CHECK(vocabulary.find("a") == 4);  // the last of its lines, as a dict has it
  CHECK(vocabulary.find("b") == 1);
  CHECK(vocabulary.find("") == 2);
  CHECK(vocabulary.find("c") == 3);
  CHECK(vocabulary.find("d") == 5);
  CHECK(vocabulary.find("e") == std::nullopt);
  CHECK(vocabulary.token(5) == "d");
  CHECK(vocabulary.size() == 5);
}

TEST_CASE("a vocabulary or merges that do not fit are refused", "[tokenizer]") {
  const auto vocabulary_fault = [](std::string_view json) {
    return meo::test::error_of([&] { Vocabulary::from_json(json, "v.json"); });
  };
  CHECK(vocabulary_fault("[]") == "meo: v.json: expected an object, got array");
  CHECK(vocabulary_fault("{\"a\":") ==
        "meo: v.json: expected JSON: parse error at line 1, column 6: syntax error while parsing value - "
        "unexpected "
        "end of input; expected '[', '{', or a literal");
  CHECK(vocabulary_fault(std::string_view("{}\0", 3)) == "meo: v.json: expected JSON, got a zero byte");
  for (const std::string id : {"-1", "1.5", "\"1\"", "null", "9223372036854775808"}) {
    CHECK(vocabulary_fault("{\"a\": " + id + "}") ==
          "meo: v.json: token 'a': expected a whole number of at least 0, got " + id);
  }
  CHECK(vocabulary_fault("{\"a\": 9223372036854775807}") == "no error");

  const auto merges_fault = [](std::string_view merges) {
    return meo::test::error_of([&] { Merges(merges, "merges.txt"); });
  };
  for (const std::string line : {"ab", "a ", " b", "a b c", "#version: 0.2 x"}) {
    CHECK(merges_fault("#version: 0.2\na b\n" + line + "\n") ==
          "meo: merges.txt: line 3: expected two tokens and a space between them, got '" + line + "'");
  }
  CHECK(merges_fault("a b\r\n\n") == "no error");
}

TEST_CASE("files that cannot be read are named", "[tokenizer]") {
  const meo::test::Folder folder;
  const std::string missing = (folder / "missing").string(), itself = std::filesystem::path(folder).string();
  CHECK(meo::test::error_of([&] { transformer::load_file(missing); }) ==
        "meo: " + missing + ": cannot be read: No such file or directory");
  CHECK(meo::test::error_of([&] { transformer::load_file(itself); }) ==
        "meo: " + itself + ": cannot be read: Is a directory");
}

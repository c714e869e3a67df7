// The library's JSON beside nlohmann::json, which it stands in for: the same text, events and messages for
// whatever there is to write and to read.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <meo/io/json_parser.hpp>
#include <meo/io/json_string.hpp>

#include "support/catch.hpp"

namespace {

using meo::io::detail::in_quotes;
using meo::io::detail::is_utf8;

// Calls visit with all texts of at most so many of these pieces.
void for_each_text(const std::vector<std::string>& pieces, int most,
                   const std::function<void(const std::string&)>& visit, const std::string& start = "") {
  visit(start);
  if (most == 0) return;
  for (const std::string& piece : pieces) for_each_text(pieces, most - 1, visit, start + piece);
}

// The bytes on both sides of every bound that UTF-8 and JSON have.
std::vector<std::string> bytes_at_bounds() {
  std::vector<std::string> bytes;
  for (const int byte :
       {0x00, 0x08, 0x0d, 0x1f, 0x20, 0x22, 0x5c, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0,
        0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef, 0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xff})
    bytes.emplace_back(1, static_cast<char>(byte));
  return bytes;
}

std::string quoted_by_nlohmann(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool is_utf8_to_nlohmann(const std::string& text) {
  try {
    static_cast<void>(nlohmann::json(text).dump());
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

// Writes down the events.
struct Recorder final : meo::io::detail::JsonListener {
  std::string events;
  void add(const std::string& event) { events += event + "\n"; }
  void null() override { add("null"); }
  void boolean(bool value) override { add(value ? "true" : "false"); }
  void unsigned_integer(std::uint64_t value) override { add("unsigned " + std::to_string(value)); }
  void negative_integer(std::int64_t value) override { add("integer " + std::to_string(value)); }
  void other_number(std::string text) override { add("float " + text); }
  void string(std::string value) override { add("string " + value); }
  void begin_object() override { add("{"); }
  void key(std::string name) override { add("key " + name); }
  void end_object() override { add("}"); }
  void begin_array() override { add("["); }
  void end_array() override { add("]"); }
};

struct NlohmannRecorder final : nlohmann::json_sax<nlohmann::json> {
  Recorder recorder;
  bool null() override { return recorder.null(), true; }
  bool boolean(bool value) override { return recorder.boolean(value), true; }
  bool number_unsigned(number_unsigned_t value) override { return recorder.unsigned_integer(value), true; }
  bool number_integer(number_integer_t value) override { return recorder.negative_integer(value), true; }
  bool number_float(number_float_t, const string_t& text) override {
    return recorder.other_number(text), true;
  }
  bool string(string_t& value) override { return recorder.string(value), true; }
  bool binary(binary_t&) override { return recorder.add("binary"), true; }
  bool start_object(std::size_t) override { return recorder.begin_object(), true; }
  bool key(string_t& name) override { return recorder.key(name), true; }
  bool end_object() override { return recorder.end_object(), true; }
  bool start_array(std::size_t) override { return recorder.begin_array(), true; }
  bool end_array() override { return recorder.end_array(), true; }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception& error) override {
    const std::string what = error.what();  // "[json.exception.parse_error.101] parse error at …"
    recorder.add("error " + what.substr(what.find(' ') + 1));
    return false;
  }
};

std::string events_of(std::string_view text) {
  Recorder recorder;
  try {
    meo::io::detail::JsonParser(text, recorder).parse();
  } catch (const meo::io::detail::JsonError& error) {
    recorder.add(std::string("error ") + error.what());
  }
  return recorder.events;
}

std::string events_of_nlohmann(std::string_view text) {
  NlohmannRecorder sax;
  nlohmann::json::sax_parse(text, &sax);
  return sax.recorder.events;
}

// Not CHECK for each of very many.
struct Comparison {
  std::size_t texts = 0, accepted = 0;
  void operator()(const std::string& text) {
    const std::string expected = events_of_nlohmann(text);
    const std::string events = events_of(text);
    ++texts;
    accepted += expected.find("error ") == expected.npos;
    if (events != expected) {
      CAPTURE(text);
      REQUIRE(events == expected);
    }
  }
};

}  // namespace

TEST_CASE("strings of JSON are those of nlohmann::json", "[io][json]") {
  std::size_t texts = 0, valid = 0;
  const auto compare = [&](const std::string& text) {
    const bool expected = is_utf8_to_nlohmann(text);
    ++texts;
    valid += expected;
    if (is_utf8(text) != expected || in_quotes(text) != quoted_by_nlohmann(text)) {
      CAPTURE(quoted_by_nlohmann(text));
      CHECK(is_utf8(text) == expected);
      REQUIRE(in_quotes(text) == quoted_by_nlohmann(text));
    }
  };
  for_each_text(bytes_at_bounds(), 3, compare);
  std::vector<std::string> all_bytes;
  for (int byte = 0; byte < 256; ++byte) all_bytes.emplace_back(1, static_cast<char>(byte));
  for_each_text(all_bytes, 2, compare);
  CHECK(valid > 1000);
  CHECK(texts - valid > 1000);

  std::minstd_rand rng(1);
  const std::vector<std::string> at_bounds = bytes_at_bounds();
  for (int i = 0; i < 100'000; ++i) {
    std::string text;
    for (auto size = rng() % 12; size > 0; --size) {
      text += rng() % 4 == 0 ? all_bytes[rng() % all_bytes.size()] : at_bounds[rng() % at_bounds.size()];
    }
    compare(text);
  }
  // Every character.
  for (unsigned code = 0x80; code < 0x110000; code += code < 0x10000 ? 1 : 61) {
    std::string text;
    if (code < 0x800) {
      text = {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
    } else if (code < 0x10000) {
      text = {static_cast<char>(0xe0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 0x3f)),
              static_cast<char>(0x80 | (code & 0x3f))};
    } else {
      text = {static_cast<char>(0xf0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 0x3f)),
              static_cast<char>(0x80 | (code >> 6 & 0x3f)), static_cast<char>(0x80 | (code & 0x3f))};
    }
    compare(text);
  }
}

TEST_CASE("a text is read as nlohmann::json reads it, or refused in its words", "[io][json]") {
  Comparison compare;
  SECTION("tokens in any order") {
    for_each_text({"{", "}", "[", "]", ":", ",", "null", "true", "false", "\"a\"", "1", "-2", "1.5", "\n",
                   "nul", "\"a", "-"},
                  4, std::ref(compare));
    CHECK(compare.accepted > 100);
  }
  SECTION("numbers") {
    for_each_text({"0", "1", "9", "-", "+", ".", "e", "E"}, 5, std::ref(compare));
    for (const char* number :
         {"18446744073709551615", "18446744073709551616", "-9223372036854775808", "-9223372036854775809",
          "-0", "1e308", "1e309", "-1e309", "1e-400", "0.1e310", "0e999", "0x1", "1e+", "00"}) {
      for (const char* end : {"", "\n", ",", "]", " x"}) compare(number + std::string(end));
    }
    compare(std::string(400, '9'));
    compare('-' + std::string(400, '9'));
    CHECK(compare.accepted > 100);
  }
  SECTION("bytes within a string") {
    for (int byte = 1; byte < 256; ++byte) compare("[\"" + std::string(1, static_cast<char>(byte)));
    std::vector<std::string> pieces = bytes_at_bounds();
    pieces.erase(pieces.begin());  // where nlohmann::json takes the text to end
    for_each_text(pieces, 3, [&](const std::string& bytes) { compare("[\"" + bytes + "\"]"); });
    CHECK(compare.accepted > 100);
  }
  SECTION("escapes") {
    for (int byte = 1; byte < 256; ++byte) {
      const std::string escape{'"', '\\', static_cast<char>(byte)};
      compare(escape);
      compare(escape + '"');
    }
    std::vector<std::string> pieces{"\\u",  "\\",   "u",    "\"",   "x",    "0",    "d800", "DBFF", "dc00",
                                    "dFfF", "D7fF", "e000", "0000", "007f", "0080", "07FF", "0800", "fFFF"};
    for_each_text(pieces, 4, [&](const std::string& text) { compare("\"" + text + "\""); });
    CHECK(compare.accepted > 100);
  }
  SECTION("texts with faults") {
    const std::vector<std::string> seeds{
        R"({"__metadata__":{"k":"v","":"é"},"a":{"dtype":"F32","shape":[1, 2],"data_offsets":[0,8]}}  )",
        "[[],{},\n[null,true ,false],{\"a\\u00e9\":-1.5e+3}\r\n, \"\\\"\\ud83d\\ude00\"]", "{\"a\":[1e999]}",
        "  -17 "};
    const std::string with = "{}[]:,\"\\ntruefalse0123456789-+.eE \n\t\x80\xc3\xa9\x1f/";
    std::minstd_rand rng(2);
    for (const std::string& seed : seeds) {
      for (std::size_t size = 0; size <= seed.size(); ++size) compare(seed.substr(0, size));
      for (int i = 0; i < 20'000; ++i) {
        std::string text = seed;
        for (auto faults = 1 + rng() % 3; faults > 0; --faults) {
          const std::size_t place = rng() % (text.size() + 1);
          const char c = with[rng() % with.size()];
          if (const auto kind = rng() % 3; kind == 0) text.insert(place, 1, c);
          else if (kind == 1) text.erase(place, 1 + rng() % 4);
          else if (place < text.size()) text[place] = c;
        }
        if (!text.starts_with('\xef')) compare(text);
      }
    }
    CHECK(compare.accepted > 100);
  }
  SECTION("depth") {
    compare(std::string(100'000, '['));
    compare(std::string(100'000, '[') + std::string(100'000, ']'));
  }
  CHECK(compare.texts > 0);
}

TEST_CASE("a zero byte is no end of JSON", "[io][json]") {
  const std::string_view text("{}\0", 3);
  CHECK(events_of(text) == std::string("{\n}\nerror parse error at line 1, column 3: syntax error while "
                                       "parsing value - invalid literal; last "
                                       "read: '{}<U+0000>'; expected end of input\n"));
  CHECK(events_of(std::string_view("\"\0\"", 3)) ==
        "error parse error at line 1, column 2: syntax error while parsing value - invalid string: control "
        "character "
        "U+0000 (NUL) must be escaped to \\u0000; last read: '\"<U+0000>'\n");
}

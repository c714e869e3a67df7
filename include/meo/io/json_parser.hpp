#pragma once

/// Tells of what a JSON text holds, one event after the other.
///
/// Source: RFC 8259, to the letter. There is no tree of values: whoever listens decides what it keeps, and
/// depth costs no stack. Messages are those of nlohmann::json, in whose terms many will look for a fault.

#include <algorithm>
#include <cerrno>
#include <clocale>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meo/abi.hpp>
#include <meo/finite.hpp>
#include <meo/io/error.hpp>
#include <meo/io/json_string.hpp>

namespace meo::inline MEO_ABI::io::detail {

/// A text that is no JSON; what() says where and why.
class JsonError : public std::runtime_error {
  using runtime_error::runtime_error;
};

/// Listens to a parser. Ends the parsing by an exception.
class JsonListener {
 public:
  virtual void null() = 0;
  virtual void boolean(bool value) = 0;
  virtual void unsigned_integer(std::uint64_t value) = 0;
  virtual void negative_integer(std::int64_t value) = 0;  ///< or −0, which is given as 0
  virtual void other_number(std::string text) = 0;        ///< with a fraction, an exponent or too many digits
  virtual void string(std::string value) = 0;
  virtual void begin_object() = 0;
  virtual void key(std::string name) = 0;
  virtual void end_object() = 0;
  virtual void begin_array() = 0;
  virtual void end_array() = 0;

 protected:
  ~JsonListener() = default;
};

class JsonParser {
 public:
  JsonParser(std::string_view text, JsonListener& listener) : text_(text), listener_(listener) {}

  /// The text is one value. Throws JsonError where it is not, after the events of what is before.
  void parse() {
    scan();
    do {
      while (enters()) {
      }
    } while (goes_on());
  }

 private:
  enum class Token {
    error,
    end,
    begin_object,
    end_object,
    begin_array,
    end_array,
    colon,
    comma,
    null,
    true_literal,
    false_literal,
    string,
    unsigned_integer,
    negative_integer,
    other_number
  };

  static constexpr int no_character = -1;

  static std::string_view name_of(Token token) {
    switch (token) {
      case Token::error:
        break;
      case Token::end:
        return "end of input";
      case Token::begin_object:
        return "'{'";
      case Token::end_object:
        return "'}'";
      case Token::begin_array:
        return "'['";
      case Token::end_array:
        return "']'";
      case Token::colon:
        return "':'";
      case Token::comma:
        return "','";
      case Token::null:
        return "null literal";
      case Token::true_literal:
        return "true literal";
      case Token::false_literal:
        return "false literal";
      case Token::string:
        return "string literal";
      case Token::unsigned_integer:
      case Token::negative_integer:
      case Token::other_number:
        return "number literal";
    }
    return "<parse error>";
  }

  // Grammar.

  /// Tells of the value that begins with the token. True if that is an object or array that holds something;
  /// the token is then the first of that.
  bool enters() {
    if (token_ == Token::begin_object) {
      listener_.begin_object();
      scan();
      if (token_ != Token::end_object) {
        key();
        nesting_.push_back(Token::end_object);
        return true;
      }
      listener_.end_object();
    } else if (token_ == Token::begin_array) {
      listener_.begin_array();
      scan();
      if (token_ != Token::end_array) {
        nesting_.push_back(Token::end_array);
        return true;
      }
      listener_.end_array();
    } else {
      scalar();
    }
    return false;
  }

  /// From the end of a value to the first token of the next; false at the end of the text.
  bool goes_on() {
    for (;;) {
      scan();
      if (nesting_.empty()) {
        if (token_ != Token::end) fail("value", name_of(Token::end));
        return false;
      }
      const Token end = nesting_.back();
      const bool in_object = end == Token::end_object;
      if (token_ == Token::comma) {
        scan();
        if (in_object) key();
        return true;
      }
      if (token_ != end) fail(in_object ? "object" : "array", name_of(end));
      if (in_object) listener_.end_object();
      else listener_.end_array();
      nesting_.pop_back();
    }
  }

  /// From the token of a key to that of its value.
  void key() {
    if (token_ != Token::string) fail("object key", name_of(Token::string));
    listener_.key(std::move(value_));
    scan();
    if (token_ != Token::colon) fail("object separator", name_of(Token::colon));
    scan();
  }

  void scalar() {
    switch (token_) {
      case Token::null:
        return listener_.null();
      case Token::true_literal:
      case Token::false_literal:
        return listener_.boolean(token_ == Token::true_literal);
      case Token::string:
        return listener_.string(std::move(value_));
      case Token::unsigned_integer:
        return listener_.unsigned_integer(unsigned_);
      case Token::negative_integer:
        return listener_.negative_integer(negative_);
      case Token::other_number:
        if (overflows(value_)) throw JsonError(text_of({"number overflow parsing '", last_read(), "'"}));
        return listener_.other_number(std::move(value_));
      case Token::error:
        fail("value", "");
      default:
        fail("value", "'[', '{', or a literal");
    }
  }

  /// Whether a number is beyond what a double holds.
  static bool overflows(std::string number) {
    const std::size_t point = number.find('.');
    if (point != number.npos) number[point] = *std::localeconv()->decimal_point;  // which strtod goes by
    return !meo::detail::is_finite(std::strtod(number.c_str(), nullptr));
  }

  [[noreturn]] void fail(std::string_view context, std::string_view expected) const {
    throw JsonError(text_of({"parse error at line ", line_, ", column ", column_,
                             ": syntax error while parsing ", context, " - ",
                             token_ == Token::error ? text_of({error_, "; last read: '", last_read(), "'"})
                                                    : text_of({"unexpected ", name_of(token_)}),
                             expected.empty() ? "" : "; expected ", expected}));
  }

  /// What has been read since the last string or number began, that included.
  std::string last_read() const {
    std::string read;
    for (const char c : text_.substr(token_begin_, (std::min)(next_, text_.size()) - token_begin_)) {
      if (static_cast<unsigned char>(c) < 0x20) read += text_of({"<U+", hex(c), ">"});
      else read += c;
    }
    return read;
  }

  /// Four digits.
  static std::string hex(char c) {
    constexpr std::string_view digits = "0123456789ABCDEF";
    return {'0', '0', digits[static_cast<std::size_t>(c) >> 4], digits[static_cast<std::size_t>(c) & 0xf]};
  }

  // Tokens.

  /// The next byte, or no_character at the end, which is as if there were one more.
  int read() {
    ++column_;
    current_ = next_ < text_.size() ? static_cast<unsigned char>(text_[next_]) : no_character;
    ++next_;
    if (current_ == '\n') ++line_, column_ = 0;
    return current_;
  }

  /// The next read gives the same again.
  void unread() {
    --next_;
    if (column_ > 0) --column_;
    else --line_;  // the column where it ended is not known any more
  }

  void scan() {
    do read();
    while (current_ == ' ' || current_ == '\t' || current_ == '\n' || current_ == '\r');
    token_ = scan_token();
  }

  Token error(std::string why) {
    error_ = std::move(why);
    return Token::error;
  }

  Token scan_token() {
    switch (current_) {
      case no_character:
        return Token::end;
      case '{':
        return Token::begin_object;
      case '}':
        return Token::end_object;
      case '[':
        return Token::begin_array;
      case ']':
        return Token::end_array;
      case ':':
        return Token::colon;
      case ',':
        return Token::comma;
      case 'n':
        return scan_rest("ull", Token::null);
      case 't':
        return scan_rest("rue", Token::true_literal);
      case 'f':
        return scan_rest("alse", Token::false_literal);
      case '"':
        return scan_string();
      default:
        return current_ == '-' || is_digit() ? scan_number() : error("invalid literal");
    }
  }

  Token scan_rest(std::string_view rest, Token literal) {
    for (const char c : rest) {
      if (read() != c) return error("invalid literal");
    }
    return literal;
  }

  bool is_digit() const { return '0' <= current_ && current_ <= '9'; }

  /// One digit at least.
  bool skip_digits() {
    if (!is_digit()) return false;
    while (is_digit()) read();
    return true;
  }

  Token scan_number() {
    token_begin_ = next_ - 1;
    const bool negative = current_ == '-';
    bool integer = true;
    if (negative) read();
    if (current_ == '0') read();
    else if (!skip_digits()) return error("invalid number; expected digit after '-'");
    if (current_ == '.') {
      integer = false;
      read();
      if (!skip_digits()) return error("invalid number; expected digit after '.'");
    }
    if (current_ == 'e' || current_ == 'E') {
      integer = false;
      read();
      if (current_ == '+' || current_ == '-') {
        read();
        if (!skip_digits()) return error("invalid number; expected digit after exponent sign");
      } else if (!skip_digits()) {
        return error("invalid number; expected '+', '-', or digit after exponent");
      }
    }
    unread();
    value_ = text_.substr(token_begin_, next_ - token_begin_);
    errno = 0;
    if (integer && negative) negative_ = std::strtoll(value_.c_str(), nullptr, 10);
    else if (integer) unsigned_ = std::strtoull(value_.c_str(), nullptr, 10);
    if (integer && errno == 0) return negative ? Token::negative_integer : Token::unsigned_integer;
    return Token::other_number;
  }

  Token scan_string() {
    token_begin_ = next_ - 1;
    value_.clear();
    while (read() != '"') {
      if (current_ == no_character) return error("invalid string: missing closing quote");
      if (current_ < 0x20) return error(control_character(static_cast<char>(current_)));
      if (current_ == '\\') {
        if (!scan_escape()) return Token::error;
      } else {
        const std::size_t begin = next_ - 1;
        const Utf8Character character = utf8_character(text_, begin);
        for (std::size_t i = character.complete ? 1 : 0; i < character.size; ++i) read();
        if (!character.complete) return error("invalid string: ill-formed UTF-8 byte");
        value_ += text_.substr(begin, character.size);
      }
    }
    return Token::string;
  }

  static std::string control_character(char c) {
    constexpr std::string_view names[] = {"NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL",
                                          "BS",  "HT",  "LF",  "VT",  "FF",  "CR",  "SO",  "SI",
                                          "DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB",
                                          "CAN", "EM",  "SUB", "ESC", "FS",  "GS",  "RS",  "US"};
    const std::string escaped = in_quotes({&c, 1});  // \uXXXX or two characters, between quotes
    return text_of({"invalid string: control character U+", hex(c), " (", names[static_cast<std::size_t>(c)],
                    ") must be escaped to \\u", hex(c),
                    escaped.size() == 4 ? text_of({" or ", escaped.substr(1, 2)}) : ""});
  }

  /// What comes after a backslash.
  bool scan_escape() {
    constexpr std::string_view letters = "\"\\/bfnrt", characters = "\"\\/\b\f\n\r\t";
    if (read() == 'u') return scan_unicode_escape();
    const std::size_t letter =
        current_ == no_character ? letters.npos : letters.find(static_cast<char>(current_));
    if (letter == letters.npos) {
      error("invalid string: forbidden character after backslash");
      return false;
    }
    value_ += characters[letter];
    return true;
  }

  bool scan_unicode_escape() {
    constexpr const char* no_low =
        "invalid string: surrogate U+D800..U+DBFF must be followed by U+DC00..U+DFFF";
    unsigned code = 0;
    if (!scan_hex(code)) return false;
    if (code >= 0xdc00 && code < 0xe000) {
      error("invalid string: surrogate U+DC00..U+DFFF must follow U+D800..U+DBFF");
      return false;
    }
    if (code >= 0xd800 && code < 0xdc00) {
      unsigned low = 0;
      if (read() != '\\' || read() != 'u') {
        error(no_low);
        return false;
      }
      if (!scan_hex(low)) return false;
      if (low < 0xdc00 || low >= 0xe000) {
        error(no_low);
        return false;
      }
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;  // bytes after the first
    constexpr unsigned first[] = {0, 0xc0, 0xe0, 0xf0};
    value_ += static_cast<char>(first[more] | code >> (6 * more));
    for (int i = more - 1; i >= 0; --i) value_ += static_cast<char>(0x80 | (code >> (6 * i) & 0x3f));
    return true;
  }

  bool scan_hex(unsigned& code) {
    for (int i = 0; i < 4; ++i) {
      read();
      const int lower = current_ | 0x20;  // of a letter
      unsigned digit = 0;
      if (is_digit()) {
        digit = static_cast<unsigned>(current_ - '0');
      } else if ('a' <= lower && lower <= 'f') {
        digit = static_cast<unsigned>(lower - 'a' + 10);
      } else {
        error("invalid string: '\\u' must be followed by 4 hex digits");
        return false;
      }
      code = code << 4 | digit;
    }
    return true;
  }

  std::string_view text_;
  JsonListener& listener_;
  std::vector<Token> nesting_;  // what ends the objects and arrays that the token is in
  int current_ = no_character;
  std::size_t next_ = 0;               // place in the text
  std::size_t line_ = 1, column_ = 0;  // of the current byte
  std::size_t token_begin_ = 0;        // of the last string or number
  Token token_ = Token::end;
  std::string value_;  // of a string or number
  std::uint64_t unsigned_ = 0;
  std::int64_t negative_ = 0;
  std::string error_;
};

}  // namespace meo::io::detail

#pragma once

/// What the programs here do alike.

#include <charconv>
#include <cmath>
#include <exception>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace transformer {

/// Wrong options. Says what was expected and what came.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Calls run(), which prints, and says on standard error what it throws. Returns the exit code: 0, 2 for a
/// UsageError, 1 for all else, and where what was printed cannot be written.
template <class Run>
int exit_code_of(std::string_view program, const Run& run) {
  try {
    run();
    if (!std::cout.flush()) throw std::runtime_error("cannot write to standard output");
    return 0;
  } catch (const UsageError& error) {
    std::cerr << program << ": " << error.what() << "; --help says more\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << program << ": " << error.what() << '\n';
    return 1;
  }
}

/// The words of a command line one after another, "--name=value" as two.
class CommandWords {
 public:
  explicit CommandWords(const std::vector<std::string>& words) {
    for (const std::string& word : words) {
      const std::size_t equals = word.starts_with("--") ? word.find('=') : std::string::npos;
      words_.push_back(word.substr(0, equals));
      if (equals != std::string::npos) words_.push_back(word.substr(equals + 1));
    }
  }

  bool done() const { return next_ == words_.size(); }
  const std::string& take() { return words_[next_++]; }
  const std::string& value_of(const std::string& option) {
    if (done()) throw UsageError(option + " needs a value");
    return take();
  }
  const std::string& path_of(const std::string& option) {
    const std::string& path = value_of(option);
    if (path.empty()) throw UsageError(option + " needs a path");
    return path;
  }

 private:
  std::vector<std::string> words_;
  std::size_t next_ = 0;
};

/// A whole number of at least `least`. Throws UsageError for any other text.
template <class Integer>
Integer whole_number(const std::string& option, std::string_view text, Integer least) {
  Integer value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least) {
    throw UsageError(option + ": expected a number of at least " + std::to_string(least) + ", got '" +
                     std::string(text) + "'");
  }
  return value;
}

/// A number from `least` to below `limit`. Throws UsageError for any other text.
inline double number_within(const std::string& option, const std::string& text, double least,
                            double limit = std::numeric_limits<double>::infinity()) {
  std::size_t end = 0;
  double value = std::numeric_limits<double>::quiet_NaN();
  try {
    value = std::stod(text, &end);  // not from_chars, which libc++ has for whole numbers only
  } catch (const std::exception&) {
  }
  if (end == text.size() && value >= least && value < limit) return value;
  std::string expected = "a number of at least " + std::to_string(least);
  if (std::isfinite(limit)) expected += " and below " + std::to_string(limit);
  throw UsageError(option + ": expected " + expected + ", got '" + text + "'");
}

}  // namespace transformer

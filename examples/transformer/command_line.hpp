#pragma once

/// What the programs here do alike.

#include <exception>
#include <iostream>
#include <stdexcept>
#include <string_view>

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

}  // namespace transformer

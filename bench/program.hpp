#pragma once

/// What the programs have in common: how they end.

#include <exception>
#include <iostream>
#include <stdexcept>
#include <string_view>

namespace bench {

/// Wrong options. Says what was expected and what came.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The exit code of run(), or 2 for one that throws, with what it throws on the standard error.
template <class Run>
int run_program(std::string_view program, const Run& run) {
  try {
    return run();
  } catch (const UsageError& error) {
    std::cerr << program << ": " << error.what() << "; --help lists the options\n";
  } catch (const std::exception& error) {
    std::cerr << program << ": " << error.what() << '\n';
  }
  return 2;
}

}  // namespace bench

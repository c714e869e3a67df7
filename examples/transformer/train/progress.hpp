#pragma once

/// How far a run is: a bar on a terminal, and how much time is left.

#include <chrono>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string>

#include <meo/types.hpp>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace transformer {

using meo::Index;

class Progress {
 public:
  /// Of a run of `steps` steps, of which some have been made before.
  Progress(Index steps, Index made) : steps_(steps), begin_(made), start_(Clock::now()) {}

  /// As hours:minutes:seconds, by the pace so far, after at least one step.
  std::string left(Index step) const {
    const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
    const auto seconds =
        static_cast<Index>(elapsed / static_cast<double>(step - begin_) * static_cast<double>(steps_ - step));
    std::ostringstream text;
    text << seconds / 3600 << std::setfill('0') << ':' << std::setw(2) << seconds / 60 % 60 << ':'
         << std::setw(2) << seconds % 60;
    return text.str();
  }

  /// On a terminal alone.
  void draw_bar(Index step) const {
    if (!is_terminal_) return;
    constexpr Index width = 40;
    const Index filled = width * step / steps_;
    std::cerr << '\r' << std::string(static_cast<std::size_t>(filled), '#')
              << std::string(static_cast<std::size_t>(width - filled), '.') << ' ' << step << " of " << steps_
              << ", left " << left(step) << "  " << std::flush;
  }

  /// Before a line is printed.
  void clear_bar() const {
    if (is_terminal_) std::cerr << '\r' << std::string(79, ' ') << '\r' << std::flush;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static bool is_a_terminal() {
#if __has_include(<unistd.h>)
    return isatty(STDERR_FILENO) == 1;
#else
    return false;
#endif
  }

  Index steps_, begin_;
  Clock::time_point start_;
  bool is_terminal_ = is_a_terminal();
};

}  // namespace transformer

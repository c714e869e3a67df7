#pragma once

/// How bad input is reported.

#include <sstream>
#include <stdexcept>

namespace transformer {

/// Throws std::invalid_argument, which says what the parts are, unless the condition holds.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace transformer

#pragma once

/// How bad input is reported: std::invalid_argument that says what was expected and what came. An object that
/// was moved from is no input: std::logic_error.

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include <meo/types.hpp>

namespace meo::detail {

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  text << "meo: ";
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument(message(parts...));
}

template <class Matrix>
void require_shape(const Matrix& matrix, Index rows, Index cols, std::string_view name) {
  require(matrix.rows() == rows && matrix.cols() == cols, name, ": expected ", rows, " x ", cols, ", got ",
          matrix.rows(), " x ", matrix.cols());
}

/// is_empty: whether a move has taken what the object held.
inline void require_not_moved_from(bool is_empty, std::string_view name) {
  if (is_empty) throw std::logic_error(message(name, ": expected one to use, got one that was moved from"));
}

inline void require_expert(Index expert, Index num_experts) {
  require(expert >= 0 && expert < num_experts, "expert: expected 0 to ", num_experts - 1, ", got ", expert);
}

}  // namespace meo::detail

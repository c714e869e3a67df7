#pragma once

/// Whether matrices share memory. Blocks of columns of one matrix lie between one another's rows and share
/// none.

#include <algorithm>
#include <cstdint>
#include <string_view>

#include <meo/errors.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Rows of bytes, ascending; one at least.
struct RowsInMemory {
  std::uintptr_t begin;
  Index rows;
  Index width;
  Index stride;  ///< from a row to the next, positive

  std::uintptr_t end() const { return begin + static_cast<std::uintptr_t>((rows - 1) * stride + width); }
};

/// Of a matrix that is not empty.
template <class Scalar>
RowsInMemory rows_in_memory(const MatrixView<Scalar>& matrix) {
  constexpr Index size = sizeof(Scalar);
  const auto address = [&](Index row) { return reinterpret_cast<std::uintptr_t>(matrix.row(row)); };
  const Index width = matrix.cols() * size, stride = matrix.row_stride() * size;
  if (stride == 0) return {address(0), 1, width, width};
  return {address(stride > 0 ? 0 : matrix.rows() - 1), matrix.rows(), width, stride > 0 ? stride : -stride};
}

/// Whether some value of one is a value of the other, for any strides.
template <class Scalar>
bool overlap(const MatrixView<Scalar>& matrix, const MatrixView<Scalar>& other) {
  if (matrix.rows() == 0 || matrix.cols() == 0 || other.rows() == 0 || other.cols() == 0) return false;
  const RowsInMemory a = rows_in_memory(matrix), b = rows_in_memory(other);
  if (a.end() <= b.begin || b.end() <= a.begin) return false;
  for (Index row = 0; row < a.rows; ++row) {
    const Index begin = static_cast<Index>(a.begin - b.begin) + row * a.stride, end = begin + a.width;
    if (end <= 0) continue;
    // Of b's rows that begin before this one ends, the last reaches furthest.
    const Index last = (std::min)((end - 1) / b.stride, b.rows - 1);
    if (last * b.stride + b.width > begin) return true;
  }
  return false;
}

/// Throws std::invalid_argument if what is written shares memory with what is read.
template <class Scalar>
void require_apart(const MatrixView<Scalar>& written, std::string_view written_name,
                   const MatrixView<Scalar>& read, std::string_view read_name) {
  require(!overlap(written, read), written_name, ": expected memory that does not overlap ", read_name,
          ", got some that does");
}

}  // namespace meo::detail

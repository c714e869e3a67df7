#pragma once

/// Rows of a matrix that somebody else owns: what kernels read and write.

#include <type_traits>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// A view of contiguous rows at a distance of `stride`, in a given order, each with an optional weight. T is
/// const for rows that are only read. How many rows there are is said beside it.
template <class T>
struct Rows {
  using Scalar = std::remove_const_t<T>;

  T* data = nullptr;
  Index stride = 0;
  const Index* order = nullptr;     ///< row r is the matrix's row order[r]; null: r
  const Scalar* weights = nullptr;  ///< of each row in this order; null: 1

  T* row(Index r) const { return data + (order != nullptr ? order[r] : r) * stride; }

  /// The same rows without the columns before `column`.
  Rows from_column(Index column) const { return {data + column, stride, order, weights}; }

  /// Without the rows before `row`.
  Rows from(Index row) const {
    return {order != nullptr ? data : data + row * stride, stride, order != nullptr ? order + row : nullptr,
            weights != nullptr ? weights + row : nullptr};
  }
};

template <class Scalar>
Rows<const Scalar> rows_of(const MatrixView<Scalar>& matrix) {
  return {matrix.data(), matrix.row_stride()};
}
template <class Scalar>
Rows<Scalar> rows_of(MatrixRef<Scalar>& matrix) {
  return {matrix.data(), matrix.outerStride()};
}

}  // namespace meo::detail

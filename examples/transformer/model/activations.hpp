#pragma once

/// Memory of activations: matrices of one row a token, which keep what they have grown to, so that a pass of
/// no larger a batch allocates nothing.

#include <cstddef>

#include <meo/experts/aligned_vector.hpp>
#include <meo/types.hpp>

namespace transformer {

using meo::Index;

template <class Scalar>
using Rows = Eigen::Map<meo::Matrix<Scalar>>;
template <class Scalar>
using ConstRows = Eigen::Map<const meo::Matrix<Scalar>>;

/// Memory for `count` values: more of it if it has to be, never less.
template <class Scalar>
Scalar* grown(meo::AlignedVector<Scalar>& memory, Index count) {
  if (static_cast<Index>(memory.size()) < count) memory.resize(static_cast<std::size_t>(count));
  return memory.data();
}

template <class Scalar>
class Activations {
 public:
  /// Values are what was there before.
  Rows<Scalar> resize(Index rows, Index columns) {
    rows_ = rows;
    columns_ = columns;
    return {grown(values_, rows * columns), rows, columns};
  }
  ConstRows<Scalar> get() const { return {values_.data(), rows_, columns_}; }

 private:
  meo::AlignedVector<Scalar> values_;
  Index rows_ = 0, columns_ = 0;
};

/// The same rows, to be read.
template <class Scalar>
ConstRows<Scalar> read(const Rows<Scalar>& rows) {
  return {rows.data(), rows.rows(), rows.cols()};
}

}  // namespace transformer

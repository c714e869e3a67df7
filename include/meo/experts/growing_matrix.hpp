#pragma once

/// A matrix that keeps its memory when it shrinks.

#include <meo/experts/aligned_vector.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// After a move it has no rows.
template <class Scalar>
class GrowingMatrix {
 public:
  Eigen::Map<Matrix<Scalar>> resize(Index rows, Index cols) {
    rows_ = rows;
    cols_ = cols;
    return {reserve(values_, rows * cols), rows, cols};
  }
  Eigen::Map<const Matrix<Scalar>> get() const {
    return {values_.data(), values_.empty() ? 0 : rows_, cols_};
  }

 private:
  AlignedVector<Scalar> values_;
  Index rows_ = 0;
  Index cols_ = 0;
};

}  // namespace meo::detail

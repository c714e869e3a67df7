#pragma once

/// The product of two matrices by plain loops: Eigen's, for every expression and scalar that tests have,
/// would be most of what they take to compile.

#include <meo/types.hpp>

namespace meo::test {

/// y = a bᵀ, each element a sum over the columns in their order.
template <class S>
void multiply_transposed(const Matrix<S>& a, const Matrix<S>& b, Matrix<S>& y) {
  eigen_assert(a.cols() == b.cols());
  for (Index r = 0; r < a.rows(); ++r) {
    for (Index c = 0; c < b.rows(); ++c) {
      S sum(0);
      const S* const left = a.data() + r * a.cols();
      const S* const right = b.data() + c * b.cols();
      for (Index k = 0; k < a.cols(); ++k) sum += left[k] * right[k];
      y(r, c) = sum;
    }
  }
}

/// a bᵀ.
template <class A, class B>
Matrix<typename A::Scalar> times_transposed(const Eigen::MatrixBase<A>& a, const Eigen::MatrixBase<B>& b) {
  using S = typename A::Scalar;
  Matrix<S> y(a.rows(), b.rows());
  multiply_transposed<S>(a, b, y);
  return y;
}

}  // namespace meo::test

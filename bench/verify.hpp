#pragma once

/// Holds what is timed against plain Eigen, every element within the error that rounding may have caused.
///
/// A sum of products whose terms pass at most n roundings is within γ_n Σ|a||b| of the exact one, see
/// support/bounds.hpp, and Σ|a||b| ≤ ‖a‖‖b‖. Two computations of it differ by at most twice that.

#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include <meo/layers/token_attention.hpp>
#include <meo/types.hpp>

#include "baselines.hpp"
#include "support/bounds.hpp"

namespace bench {

template <class Scalar>
Scalar twice_gamma(Index n) {
  return static_cast<Scalar>(2 * meo::test::gamma<Scalar>(n));
}

/// Ends the program with exit code 1 if an element of `actual` is further than `bound` from `expected`; NaN
/// is.
template <class Scalar>
void require_within(std::string_view what, const ConstMatrixRef<Scalar>& actual,
                    const Matrix<Scalar>& expected, const Matrix<Scalar>& bound) {
  const std::string disagreement = meo::test::disagreement(actual, expected, bound);
  if (disagreement.empty()) return;
  std::cerr << "meo_bench: " << what << " is wrong: " << disagreement << '\n';
  std::exit(1);
}

/// x Wᵀ
template <class Scalar>
Matrix<Scalar> product(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& weight) {
  Matrix<Scalar> y(x.rows(), weight.rows());
  eigen_product<Scalar>(x, weight, y);
  return y;
}

/// Requires y_t = f(Σ_e gates_te x_t W_eᵀ). x: T × D; experts: N times F × D; gates: T × N; y: T × F. f has
/// |f'| ≤ 1.2, |f(x)| ≤ |x| and takes at most 2 function_roundings, as GELU does beside its erf, or is the
/// identity.
///
/// A term passes D roundings in the product and K + 1 in the weighting and the sum over experts.
template <class Scalar, class Function>
void verify_mixture(std::string_view what, const ConstMatrixRef<Scalar>& x,
                    const std::vector<Matrix<Scalar>>& experts, const Matrix<Scalar>& gates,
                    const Function& f, const ConstMatrixRef<Scalar>& y) {
  Matrix<Scalar> expected = Matrix<Scalar>::Zero(y.rows(), y.cols());
  Matrix<Scalar> norms(y.cols(), gates.cols());  // ‖row f of W_e‖
  for (Index e = 0; e < gates.cols(); ++e) {
    const Matrix<Scalar>& weight = experts[static_cast<std::size_t>(e)];
    norms.col(e) = weight.rowwise().norm();
    std::vector<Index> tokens;
    for (Index t = 0; t < gates.rows(); ++t) {
      if (gates(t, e) != 0) tokens.push_back(t);
    }
    Matrix<Scalar> rows(static_cast<Index>(tokens.size()), x.cols());
    for (Index i = 0; i < rows.rows(); ++i) rows.row(i) = x.row(tokens[static_cast<std::size_t>(i)]);
    const Matrix<Scalar> outputs = product<Scalar>(rows, weight);
    for (Index i = 0; i < rows.rows(); ++i) {
      const Index t = tokens[static_cast<std::size_t>(i)];
      expected.row(t) += gates(t, e) * outputs.row(i);
    }
  }
  for (Scalar& value : expected.reshaped()) value = f(value);

  const Index top_k = (gates.array() != 0).rowwise().count().maxCoeff();
  const Scalar factor =
      Scalar(1.2) * twice_gamma<Scalar>(x.cols() + top_k + 1 + 2 * meo::test::function_roundings);
  Matrix<Scalar> bound = product<Scalar>(gates, norms);
  for (Index t = 0; t < bound.rows(); ++t) bound.row(t) *= factor * x.row(t).norm();
  require_within<Scalar>(what, y, expected, bound);
}

/// Requires dx_t = Σ_e g_te dy_t W_e. dy: T × F; experts: N times F × D; gates: T × N; dx: T × D.
///
/// A term passes at most F roundings in the product and N + 4 in the weighting, the sum over experts and in
/// what was taken away from dx.
template <class Scalar>
void verify_input_gradient(std::string_view what, const Matrix<Scalar>& dy,
                           const std::vector<Matrix<Scalar>>& experts, const Matrix<Scalar>& gates,
                           const Matrix<Scalar>& dx) {
  Matrix<Scalar> expected = Matrix<Scalar>::Zero(dx.rows(), dx.cols()), bound = expected;
  for (Index e = 0; e < gates.cols(); ++e) {
    const Matrix<Scalar>& weight = experts[static_cast<std::size_t>(e)];
    const Matrix<Scalar> weighted = gates.col(e).asDiagonal() * dy;
    expected.noalias() += weighted * weight;
    bound.noalias() += weighted.rowwise().norm() * weight.colwise().norm();
  }
  bound *= twice_gamma<Scalar>(dy.cols() + gates.cols() + 4);
  require_within<Scalar>(what, dx, expected, bound);
}

/// Requires dW = Σ_t dy_tᵀ x_t, with dy weighted by the gates of one of N experts. x: T × D; dy: T × F; dW:
/// F × D.
///
/// A term passes at most T roundings in the product and N + 4 in the weighting and the rest.
template <class Scalar>
void verify_weight_gradient(std::string_view what, const Matrix<Scalar>& x, const Matrix<Scalar>& dy,
                            Index num_experts, const Matrix<Scalar>& d_weight) {
  const Matrix<Scalar> expected = dy.transpose() * x;
  const Matrix<Scalar> bound = twice_gamma<Scalar>(x.rows() + num_experts + 4) *
                               (dy.colwise().norm().transpose() * x.colwise().norm());
  require_within<Scalar>(what, d_weight, expected, bound);
}

/// Requires attended = x + TokenAttention(x).
///
/// A term passes D + 1 roundings in the first product and ⌊D/r⌋ + 2 in the second and its sums.
template <class Scalar>
void verify_attention(std::string_view what, const Matrix<Scalar>& x,
                      const meo::TokenAttention<Scalar>& attention, const ConstMatrixRef<Scalar>& attended) {
  const Matrix<Scalar> down = attention.down().weight(), up = attention.up().weight();
  const meo::Vector<Scalar> down_bias = attention.down().bias(), up_bias = attention.up().bias();
  Matrix<Scalar> rows = product<Scalar>(x, down);
  rows = (rows.rowwise() + down_bias.transpose()).cwiseMax(Scalar(0));
  Matrix<Scalar> expected = product<Scalar>(rows, up);
  expected += x.rowwise() + up_bias.transpose();

  Matrix<Scalar> row_bound(rows.rows(), rows.cols());
  for (Index t = 0; t < x.rows(); ++t)
    row_bound.row(t) = (x.row(t).norm() * down.rowwise().norm() + down_bias.cwiseAbs()).transpose();
  Matrix<Scalar> bound = product<Scalar>(row_bound, up.cwiseAbs());
  bound += x.cwiseAbs().rowwise() + up_bias.cwiseAbs().transpose();
  bound *= twice_gamma<Scalar>(x.cols() + up.cols() + 3);
  require_within<Scalar>(what, attended, expected, bound);
}

}  // namespace bench

#pragma once

/// How far a computation in scalar S may end up from the exact value, element by element, and a comparison
/// that says so: for the tests, and for what the benchmarks verify.
///
/// u is the unit roundoff of S and γ_n = n·u / (1 − n·u): n roundings on the way to a term change it by a
/// factor 1 + θ, |θ| ≤ γ_n (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., lemma 3.1). A
/// sum of n products is therefore within γ_n Σ|a||b| of the exact one in whatever order it is summed, fused
/// or not, in blocks or in packets. The bounds add two parts:
///
///   rounding      γ_n × the sum of the magnitudes of the terms, n the longest chain of any sensible order
///   propagation   the error of every argument × how much the exact result depends on it
///
/// Nothing is tuned: where a bound has a constant that is not a count of operations, it is the one named
/// below. The reference works in Wide<S>; its own roundings are counted in u as well, so that long double,
/// whose wide type is itself, is bounded too.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <sstream>
#include <string>
#include <type_traits>

#include <Eigen/Core>

#include <meo/types.hpp>

#include "support/product.hpp"

namespace meo::test {

/// What the reference computes in when S is tested.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, float>, double, long double>;

template <class S>
constexpr Wide<S> unit_roundoff() {
  return Wide<S>(std::numeric_limits<S>::epsilon()) / 2 + std::numeric_limits<Wide<S>>::epsilon() / 2;
}

template <class S>
constexpr Wide<S> gamma(Index n) {
  const Wide<S> nu = Wide<S>(n) * unit_roundoff<S>();
  return nu / (1 - nu);
}

/// Roundings granted to one call of exp, log, erf or tanh: glibc's are within 1 unit in the last place (2
/// roundings), Eigen's packet versions within 4.
inline constexpr Index function_roundings = 8;

/// A matrix and, for each element, the most by which a computation of it in scalar S may differ.
template <class S>
struct Bounded {
  Matrix<Wide<S>> value;
  Matrix<Wide<S>> error;

  Bounded() = default;
  Bounded(Index rows, Index cols)
      : value(Matrix<Wide<S>>::Zero(rows, cols)), error(Matrix<Wide<S>>::Zero(rows, cols)) {}

  /// Data: known exactly.
  template <class Derived>
  static Bounded exact(const Eigen::MatrixBase<Derived>& data) {
    Bounded result(data.rows(), data.cols());
    result.value = data.template cast<Wide<S>>();
    return result;
  }

  Index rows() const { return value.rows(); }
  Index cols() const { return value.cols(); }

  /// The largest absolute values that the computed elements can have.
  Matrix<Wide<S>> magnitude() const { return value.cwiseAbs() + error; }

  Bounded middle_rows(Index begin, Index count) const {
    Bounded result(count, cols());
    result.value = value.middleRows(begin, count);
    result.error = error.middleRows(begin, count);
    return result;
  }

  void set_middle_rows(Index begin, const Bounded& rows) {
    value.middleRows(begin, rows.rows()) = rows.value;
    error.middleRows(begin, rows.rows()) = rows.error;
  }
};

/// x Wᵀ + b for data W (F × D) and b (F, or empty for none). D products, D + 1 terms.
template <class S>
Bounded<S> affine(const Bounded<S>& x, const Matrix<Wide<S>>& weight, const Vector<Wide<S>>& bias) {
  Bounded<S> y(x.rows(), weight.rows());
  Matrix<Wide<S>> magnitude = times_transposed(x.magnitude(), weight.cwiseAbs());
  y.value = times_transposed(x.value, weight);
  if (bias.size() != 0) {
    y.value.rowwise() += bias.transpose();
    magnitude.rowwise() += bias.cwiseAbs().transpose();
  }
  y.error = times_transposed(x.error, weight.cwiseAbs()) + gamma<S>(x.cols() + 1) * magnitude;
  return y;
}

template <class S>
Bounded<S> add(const Bounded<S>& a, const Bounded<S>& b) {
  Bounded<S> sum(a.rows(), a.cols());
  sum.value = a.value + b.value;
  sum.error = a.error + b.error + gamma<S>(1) * (a.magnitude() + b.magnitude());
  return sum;
}

/// a ⊙ b.
template <class S>
Bounded<S> multiply(const Bounded<S>& a, const Bounded<S>& b) {
  Bounded<S> product(a.rows(), a.cols());
  product.value = a.value.cwiseProduct(b.value);
  product.error = a.error.cwiseProduct(b.value.cwiseAbs()) + b.error.cwiseProduct(a.value.cwiseAbs()) +
                  a.error.cwiseProduct(b.error) + gamma<S>(1) * a.magnitude().cwiseProduct(b.magnitude());
  return product;
}

/// Σ over the rows: 1 × cols; zero where there are none, which Eigen would read from a null pointer.
template <class S>
Bounded<S> sum_of_rows(const Bounded<S>& a) {
  Bounded<S> sum(1, a.cols());
  if (a.rows() == 0) return sum;
  sum.value = a.value.colwise().sum();
  sum.error = a.error.colwise().sum() + gamma<S>(a.rows()) * a.magnitude().colwise().sum();
  return sum;
}

/// The mean of the rows: 1 × cols; zero where there are none. One rounding for 1/T and one for the product
/// with it.
template <class S>
Bounded<S> mean_of_rows(const Bounded<S>& a) {
  Bounded<S> mean = sum_of_rows(a);
  if (a.rows() == 0) return mean;
  mean.value /= Wide<S>(a.rows());
  mean.error /= Wide<S>(a.rows());
  mean.error += gamma<S>(2) * mean.magnitude();
  return mean;
}

/// f of every element, f with |f'| ≤ slope; its evaluation is granted `roundings` of the magnitude |x| +
/// |f(x)| + offset.
template <class S, class Function>
Bounded<S> apply(const Bounded<S>& x, Function f, Wide<S> slope, Index roundings, Wide<S> offset = 0) {
  Bounded<S> y(x.rows(), x.cols());
  y.value = x.value.unaryExpr(f);
  y.error = slope * x.error;
  y.error.array() +=
      gamma<S>(roundings) * (x.magnitude() + y.magnitude()).array() + gamma<S>(roundings) * offset;
  return y;
}

/// Softmax of a row of logits ℓ with errors δ (1 × K). Errors d_j of the logits turn weight w_i into
/// w_i / (w_i + Σ_{j≠i} w_j e^{d_j − d_i}), which is within w_i (1 − w_i) (e^Δ − 1) of it, Δ = δ_i +
/// max_{j≠i} δ_j. Taking the maximum away rounds each exponent once, which counts into δ; then an exponential
/// each, K − 1 additions and a division. The last term covers gradual underflow, where no relative bound
/// holds.
template <class S>
Bounded<S> softmax(const Bounded<S>& logits) {
  using W = Wide<S>;
  Bounded<S> weights(1, logits.cols());
  if (logits.cols() == 0) return weights;
  const W largest = logits.value.maxCoeff();
  const Matrix<W> exponents = (logits.value.array() - largest).matrix();
  const Matrix<W> delta = logits.error + gamma<S>(1) * (exponents.cwiseAbs() + 2 * logits.error);
  weights.value = exponents.array().exp().matrix();
  weights.value /= weights.value.sum();
  const W rounding = gamma<S>(2 * function_roundings + logits.cols() + 1);
  for (Index i = 0; i < logits.cols(); ++i) {
    W largest_other = 0;
    for (Index j = 0; j < logits.cols(); ++j) {
      if (j != i) largest_other = std::max(largest_other, delta(0, j));
    }
    const W weight = weights.value(0, i);
    const W propagated = weight * (1 - weight) * std::expm1(delta(0, i) + largest_other);
    weights.error(0, i) =
        propagated + rounding * (weight + propagated) + W(logits.cols()) * W(std::numeric_limits<S>::min());
  }
  return weights;
}

/// |actual − expected| as a share of the bound: at most 1 within it. Infinite where something is NaN, and for
/// a bound that is negative or not finite, which could not hold or not fail.
template <class S>
S share_of_bound(S actual, S expected, S bound) {
  const S error = std::abs(actual - expected);
  if (!(bound >= 0) || !std::isfinite(bound) || std::isnan(error)) return std::numeric_limits<S>::infinity();
  return error == 0 ? S(0) : error / bound;
}

/// How a matrix lies within its bounds.
template <class S>
struct Comparison {
  S worst = 0;             ///< the largest share of a bound
  Index row = 0, col = 0;  ///< of the element that has it
  Index beyond = 0;        ///< elements that are further off than their bound
};

/// Of three matrices of one shape.
template <class Actual, class Expected, class Bound>
Comparison<typename Expected::Scalar> compare(const Eigen::MatrixBase<Actual>& actual,
                                              const Eigen::MatrixBase<Expected>& expected,
                                              const Eigen::MatrixBase<Bound>& bound) {
  using W = typename Expected::Scalar;
  eigen_assert(actual.rows() == expected.rows() && actual.cols() == expected.cols());
  eigen_assert(bound.rows() == expected.rows() && bound.cols() == expected.cols());
  Comparison<W> comparison;
  for (Index r = 0; r < expected.rows(); ++r) {
    for (Index c = 0; c < expected.cols(); ++c) {
      const W share = share_of_bound(W(actual(r, c)), expected(r, c), W(bound(r, c)));
      if (share > 1) ++comparison.beyond;
      if (share > comparison.worst) {
        comparison.worst = share;
        comparison.row = r;
        comparison.col = c;
      }
    }
  }
  return comparison;
}

/// Which elements of `actual` lie beyond `bound` from `expected`: empty when none does, so that a test can
/// say CHECK(disagreement(...) == "") and show the worst element when it fails.
template <class Actual, class Expected, class Bound>
std::string disagreement(const Eigen::MatrixBase<Actual>& actual, const Eigen::MatrixBase<Expected>& expected,
                         const Eigen::MatrixBase<Bound>& bound) {
  std::ostringstream report;
  report.precision(10);
  if (actual.rows() != expected.rows() || actual.cols() != expected.cols() ||
      bound.rows() != expected.rows() || bound.cols() != expected.cols()) {
    report << "shape " << actual.rows() << " x " << actual.cols() << ", expected " << expected.rows() << " x "
           << expected.cols() << " (bounds " << bound.rows() << " x " << bound.cols() << ")";
    return report.str();
  }
  using W = typename Expected::Scalar;
  const Comparison<W> comparison = compare(actual, expected, bound);
  if (comparison.beyond == 0) return "";
  const Index row = comparison.row, col = comparison.col;
  const W error = std::abs(W(actual(row, col)) - expected(row, col));
  report << comparison.beyond << " of " << expected.size() << " elements beyond their bound; worst (" << row
         << ", " << col << "): got " << actual(row, col) << ", expected " << expected(row, col) << ", error "
         << error << ", bound " << bound(row, col) << ", error/bound " << comparison.worst;
  return report.str();
}

template <class Actual, class S>
std::string disagreement(const Eigen::MatrixBase<Actual>& actual, const Bounded<S>& expected) {
  return disagreement(actual, expected.value, expected.error);
}

/// The same with one bound for all elements: `tolerance` times the largest absolute value that is expected.
template <class Actual, class Expected>
std::string disagreement_in_max_norm(const Eigen::MatrixBase<Actual>& actual,
                                     const Eigen::MatrixBase<Expected>& expected,
                                     typename Expected::Scalar tolerance) {
  using W = typename Expected::Scalar;
  const W norm = expected.size() == 0 ? W(0) : expected.cwiseAbs().maxCoeff();
  return disagreement(actual, expected,
                      Matrix<W>::Constant(expected.rows(), expected.cols(), tolerance * norm));
}

/// Which elements of `actual` do not have the very bits of `expected` (two NaN agree): empty when all do.
template <class Actual, class Expected>
std::string bit_difference(const Eigen::MatrixBase<Actual>& actual,
                           const Eigen::MatrixBase<Expected>& expected) {
  static_assert(std::is_same_v<typename Actual::Scalar, typename Expected::Scalar>);
  std::ostringstream report;
  report.precision(20);
  if (actual.rows() != expected.rows() || actual.cols() != expected.cols()) {
    report << "shape " << actual.rows() << " x " << actual.cols() << ", expected " << expected.rows() << " x "
           << expected.cols();
    return report.str();
  }
  for (Index r = 0; r < expected.rows(); ++r) {
    for (Index c = 0; c < expected.cols(); ++c) {
      const auto a = actual(r, c), e = expected(r, c);
      if ((a == e && std::signbit(a) == std::signbit(e)) || (std::isnan(a) && std::isnan(e))) continue;
      report << "(" << r << ", " << c << "): got " << a << ", expected exactly " << e;
      return report.str();
    }
  }
  return "";
}

}  // namespace meo::test

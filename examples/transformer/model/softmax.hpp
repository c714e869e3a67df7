#pragma once

/// Softmax of rows, and its gradient.

#include <algorithm>
#include <cmath>

#include <Eigen/Core>

#include <meo/types.hpp>

#include "sums.hpp"

namespace transformer {

/// exp of each value, in place. Eigen's packets and the scalars it would take at an array's ends differ in
/// the last bit: so all are packets, wherever a value stands.
template <class Scalar>
void exponentials(Scalar* x, Index count) {
  using Lanes = Eigen::Array<Scalar, 16, 1>;
  const Index rest = count % Lanes::SizeAtCompileTime;
  for (Index i = 0; i < count - rest; i += Lanes::SizeAtCompileTime) {
    Eigen::Map<Lanes> lanes(x + i);
    lanes = lanes.exp();
  }
  Lanes last = Lanes::Zero();
  std::copy_n(x + count - rest, rest, last.data());
  last = last.exp();
  std::copy_n(last.data(), rest, x + count - rest);
}

/// x_i ← exp(x_i) / Σ exp(x_j), in place; count ≥ 1. Returns log Σ exp(x_j).
template <class Scalar>
Scalar softmax(Scalar* x, Index count) {
  Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>> row(x, count);
  const Scalar largest = row.maxCoeff();
  row -= largest;
  exponentials(x, count);
  const Scalar sum =
      sum_in_lanes<Scalar>(count, [x](Index i, auto lanes) { return values_at(x + i, lanes); });
  row *= Scalar(1) / sum;
  using std::log;
  return largest + log(sum);
}

/// From the gradient of the probabilities p to that of x, in place: d_i ← p_i (d_i − Σ p_j d_j).
template <class Scalar>
void softmax_backward(const Scalar* p, Scalar* d, Index count) {
  const Scalar along = sum_in_lanes<Scalar>(
      count, [=](Index i, auto lanes) { return values_at(p + i, lanes) * values_at(d + i, lanes); });
  Eigen::Map<Eigen::Array<Scalar, Eigen::Dynamic, 1>> row(d, count);
  row = Eigen::Map<const Eigen::Array<Scalar, Eigen::Dynamic, 1>>(p, count) * (row - along);
}

}  // namespace transformer

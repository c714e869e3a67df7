#pragma once

/// Start values as BERT and GPT-2 have them: weights normal, biases zero.

#include <random>

#include <meo/experts/linear.hpp>
#include <meo/types.hpp>

#include "parameter.hpp"

namespace transformer {

template <class Scalar>
meo::Matrix<Scalar> normal_matrix(Index rows, Index columns, std::mt19937_64& rng, double deviation) {
  std::normal_distribution<double> normal(0, deviation);
  meo::Matrix<Scalar> matrix(rows, columns);
  for (Index i = 0; i < matrix.size(); ++i) matrix.data()[i] = static_cast<Scalar>(normal(rng));
  return matrix;
}

template <class Scalar>
void initialize_normal(meo::Linear<Scalar>& linear, std::mt19937_64& rng, double deviation) {
  linear.set_weight(normal_matrix<Scalar>(linear.out_features(), linear.in_features(), rng, deviation));
}

template <class Scalar>
void initialize_normal(Parameter<Scalar>& table, std::mt19937_64& rng, double deviation) {
  table.matrix = normal_matrix<Scalar>(table.matrix.rows(), table.matrix.cols(), rng, deviation);
}

}  // namespace transformer

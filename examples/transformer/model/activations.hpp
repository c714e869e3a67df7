#pragma once

/// Memory of activations: matrices of one row a token, which keep what they have grown to, so that a pass of
/// no larger a batch allocates nothing.

#include <meo/experts/growing_matrix.hpp>
#include <meo/types.hpp>

namespace transformer {

using meo::Index;

/// resize(rows, columns) gives it as Rows, whose values are what was there before; get() as ConstRows.
template <class Scalar>
using Activations = meo::detail::GrowingMatrix<Scalar>;

template <class Scalar>
using Rows = Eigen::Map<meo::Matrix<Scalar>>;
template <class Scalar>
using ConstRows = Eigen::Map<const meo::Matrix<Scalar>>;

/// The same rows, to be read.
template <class Scalar>
ConstRows<Scalar> read(const Rows<Scalar>& rows) {
  return {rows.data(), rows.rows(), rows.cols()};
}

}  // namespace transformer

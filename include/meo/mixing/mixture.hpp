#pragma once

/// What a mixer is given: experts, the assignment of rows to them, and the tokens that each row governs.

#include <algorithm>
#include <span>

#include <meo/experts/expert_bank.hpp>
#include <meo/mixing/memory.hpp>
#include <meo/routing/assignment.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Views.
template <class Scalar, class Storage = Scalar>
struct Mixture {
  const ExpertBank<Scalar, Storage>& experts;
  const Assignment<Scalar>& assignment;
  std::span<const Index> governed;  ///< rows + 1: row r governs the tokens governed[r] … governed[r + 1] − 1
};

/// What forward has read, and where its gradients go.
template <class Scalar>
struct MixtureGradient {
  MatrixView<Scalar> x;         ///< T × in_features
  MatrixView<Scalar> dy;        ///< T × out_features
  ExpertBank<Scalar>& experts;  ///< added to
  MatrixRef<Scalar> dx;         ///< T × in_features, overwritten
  std::span<Scalar> d_weights;  ///< of each pair of the assignment, added to
};

/// Nobody writes to the tokens of a row without experts.
template <class Scalar>
void zero_rows_without_experts(const Assignment<Scalar>& assignment, std::span<const Index> governed,
                               MatrixRef<Scalar> y) {
  for (Index row = 0; row < assignment.rows; ++row) {
    if (assignment.begin(row + 1) > assignment.begin(row)) continue;
    const Index first = governed[static_cast<std::size_t>(row)];
    for (Index t = first; t < governed[static_cast<std::size_t>(row) + 1]; ++t)
      std::fill_n(y.data() + t * y.outerStride(), y.cols(), Scalar(0));
  }
}

}  // namespace meo::detail

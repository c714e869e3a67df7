#pragma once

/// What a gate decided, with what its balance loss is made of. Plain data.

#include <vector>

#include <meo/routing/assignment.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Each row has K pairs, by descending logit, ties by ascending expert; their weights are the softmax over
/// the selected logits of the row.
template <class Scalar>
struct Routing : Assignment<Scalar> {
  /// N; sum of an expert's weights over the rows. Float where Scalar has 16 bits, as `load`.
  std::vector<detail::Sum<Scalar>> importance;
  /// N; rows that select an expert: a count, or its smooth estimate in training.
  std::vector<detail::Sum<Scalar>> load;
  Scalar loss = Scalar(0);  ///< coefficient · (cv²(importance) + cv²(load))
};

}  // namespace meo

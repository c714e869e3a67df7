#pragma once

/// What a gate decided, with what its balance loss is made of. Plain data.

#include <vector>

#include <meo/routing/assignment.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// By default each row has K pairs, by descending logit, ties by ascending expert; their weights are the
/// softmax over the selected logits of the row. See RoutingOptions for what else there is. With expert choice
/// a row's pairs are by ascending expert. Where there are shared experts, their pairs are the last S of each
/// row, and `num_experts` counts them; importance, load and loss are of the N others alone.
template <class Scalar>
struct Routing : Assignment<Scalar> {
  /// N; sum of an expert's weights over the rows, or over those of all processes, as Inputs::reduction adds
  /// them up. Float where Scalar has 16 bits; as is `load`.
  std::vector<detail::Sum<Scalar>> importance;
  /// N; rows that select an expert, be there room for them or not: a count, or, with noise and K < N, its
  /// smooth estimate, unless something else than the largest logits selects, or a mask.
  std::vector<detail::Sum<Scalar>> load;
  Scalar loss = Scalar(0);  ///< loss_coefficient · (cv²(importance) + cv²(load)), and LossOptions' losses
};

}  // namespace meo

#pragma once

/// What the ways to spread a mixture over ranks cost in bytes sent, on paper.
///
/// Counted is what all ranks together send to others, for one block D → H → D with one router; divided by the
/// ranks it is what goes through one's link. Letters: P ranks, D features, H hidden_features, N num_experts,
/// K top_k, T tokens of all ranks' batch.

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

/// data: MEO or MoE, every rank has all experts and a part of the batch (GradientReducer, StatisticsSum).
/// tensor: MEO or MoE, every rank has all tokens and a part of the hidden features (TensorParallel). expert:
/// MoE, every rank has some of the experts and a part of the batch (ExpertParallel). padded: the same as
/// GShard, Tutel and DeepSpeed-MoE have it: each rank sends each expert as many rows as it has capacity for,
/// be they full or not.
enum class Parallelism { data, tensor, expert, padded };

/// A block and how it is spread. Nothing is checked.
struct TrafficShape {
  Index ranks = 1;             ///< P
  Index features = 0;          ///< D
  Index hidden_features = 0;   ///< H
  Index num_experts = 1;       ///< N
  Index top_k = 1;             ///< K, of MoE
  Index value_bytes = 4;       ///< of an activation, a weight, a gradient
  double capacity_factor = 1;  ///< padded: an expert's capacity over K T / N; 1 is DeepSpeed's default
};

/// Bytes that all ranks together send to others.
struct Traffic {
  double forward = 0;   ///< for a token
  double backward = 0;  ///< for a token
  double step = 0;      ///< once a step of training, whatever the tokens: sums of gradients and statistics
};

/// Of a sum over ranks in which each has all values: of the parts one way, of the sums the other. No
/// algorithm sends less (Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms).
constexpr double reduced_bytes(double values, const TrafficShape& shape) {
  return 2 * static_cast<double>(shape.ranks - 1) * values * static_cast<double>(shape.value_bytes);
}

/// Weights of the experts, without biases and the padding of packed panels.
constexpr double expert_values(const TrafficShape& shape) {
  return 2 * static_cast<double>(shape.num_experts) * static_cast<double>(shape.features) *
         static_cast<double>(shape.hidden_features);
}

/// W_g and W_n.
constexpr double router_values(const TrafficShape& shape) {
  return 2 * static_cast<double>(shape.num_experts) * static_cast<double>(shape.features);
}

/// Of the cv² loss, what is summed over ranks: importance and load, and counts, which are left out here.
constexpr double statistics_values(const TrafficShape& shape) {
  return 2 * static_cast<double>(shape.num_experts);
}

/// Values of weights that each rank holds: all that takes memory.
constexpr double held_values(Parallelism by, const TrafficShape& shape) {
  const double experts = expert_values(shape);
  return by == Parallelism::data ? experts : experts / static_cast<double>(shape.ranks);
}

/// All experts are selected as often: of a token's K pairs (P − 1) / P lie with other ranks. Inputs go there
/// and outputs come back, and so do their gradients, with a weight and its gradient where the library sends
/// them. Counts of rows, which go ahead of a batch, are left out.
constexpr Traffic traffic(Parallelism by, const TrafficShape& shape) {
  const auto features = static_cast<double>(shape.features);
  const double router = router_values(shape), statistics = statistics_values(shape);
  if (by == Parallelism::data)
    return {0, 0, reduced_bytes(expert_values(shape) + router + statistics, shape)};
  if (by == Parallelism::tensor) {
    const double outputs = reduced_bytes(features, shape);
    return {outputs, outputs, reduced_bytes(router, shape)};
  }
  const auto ranks = static_cast<double>(shape.ranks);
  const double pair_bytes =
      static_cast<double>(shape.top_k) * (ranks - 1) / ranks * static_cast<double>(shape.value_bytes);
  const double step = reduced_bytes(router + statistics, shape);
  if (by == Parallelism::expert) return {2 * features * pair_bytes, 2 * (features + 1) * pair_bytes, step};
  const double padded = 2 * features * shape.capacity_factor * pair_bytes;
  return {padded, padded, step};
}

}  // namespace meo::mpi

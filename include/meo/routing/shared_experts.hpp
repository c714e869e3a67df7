#pragma once

/// Experts that every row has beside those that its gate selects: shared experts (DeepSeek, Qwen2), or the
/// base weight W₀ of W₀ + Σ g_i W_i (Tang et al. 2024, arXiv 2402.00433, whose W_i are task vectors). They
/// are ordinary entries of an assignment: experts N … N + S − 1 of the bank, in S pairs more of each row.
///
/// Letters: R rows, N num_experts, S shared experts, D_g gate features.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include <meo/errors.hpp>
#include <meo/experts/aligned_vector.hpp>
#include <meo/routing/routing.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// The weight of a row's shared experts: 1, or σ(z · s) of what the gate sees, with a parameter s, 1 × D_g.
enum class SharedWeight { one, sigmoid };

/// Which experts every row has. A shared expert of a block whose hidden features are S times those of the
/// routed ones is S shared experts. The gate decides on the N others alone, and so do its losses, statistics
/// and capacities; rows that it leaves without experts have the shared ones all the same.
///
///     DeepSeek          {.count = n_shared_experts}
///     Qwen2-MoE         {.count = shared_expert_intermediate_size / moe_intermediate_size,
///                        .weight = SharedWeight::sigmoid}
///     a base weight     {.count = 1}, in a MeoLayer
struct SharedExpertOptions {
  Index count = 0;                          ///< S
  SharedWeight weight = SharedWeight::one;  ///< of all of them

  bool operator==(const SharedExpertOptions&) const = default;
};

namespace detail {

/// Throws std::invalid_argument for options that no layer of so many routed experts can have.
inline void check_shared_experts(const SharedExpertOptions& options, Index num_experts) {
  require(options.count >= 0 && options.count <= (std::numeric_limits<Index>::max)() - num_experts,
          "shared_experts.count: expected at least 0, and no more than can be counted, got ", options.count);
  require(options.weight == SharedWeight::one || options.weight == SharedWeight::sigmoid,
          "shared_experts.weight: expected one or sigmoid, got ", static_cast<int>(options.weight));
}

/// Whether the weight of the shared experts has a parameter.
inline bool has_shared_expert_gate(const SharedExpertOptions& options) {
  return options.count > 0 && options.weight == SharedWeight::sigmoid;
}

/// What Router::route leaves of a decision with shared experts.
template <class Scalar>
struct SharedExpertMemory {
  Routing<Scalar> routed;         ///< what the gate decided, on the N
  AlignedVector<Scalar> weights;  ///< R, of the shared experts, where they are not 1
};

/// Gradients of what they are named after.
template <class Scalar>
struct SharedExpertGradientMemory {
  std::vector<Scalar> routed_weights;  ///< of each pair of `routed`
  AlignedVector<Scalar> logits;        ///< R, of z · s
};

/// routing: the pairs of each row of `routed`, then S of the shared experts. weights: theirs in each row, or
/// null where they are 1.
template <class Scalar>
void add_shared_pairs(const Routing<Scalar>& routed, Index count, const Scalar* weights,
                      Routing<Scalar>& routing) {
  const auto pairs = static_cast<std::size_t>(routed.size() + routed.rows * count);
  routing.rows = routed.rows;
  routing.num_experts = routed.num_experts + count;
  routing.top_k = routed.top_k + count;
  routing.begins.assign(routed.begins.begin(), routed.begins.end());
  for (std::size_t row = 0; row < routing.begins.size(); ++row)
    routing.begins[row] += static_cast<Index>(row) * count;
  routing.experts.resize(pairs);
  routing.weights.resize(pairs);
  auto expert = routing.experts.begin();
  auto weight = routing.weights.begin();
  for (Index row = 0; row < routed.rows; ++row) {
    const std::span<const Index> experts = routed.row_experts(row);
    const std::span<const Scalar> of_routed = routed.row_weights(row);
    expert = std::copy(experts.begin(), experts.end(), expert);
    weight = std::copy(of_routed.begin(), of_routed.end(), weight);
    for (Index shared = 0; shared < count; ++shared) {
      *expert++ = routed.num_experts + shared;
      *weight++ = weights != nullptr ? weights[row] : Scalar(1);
    }
  }
  routing.importance.assign(routed.importance.begin(), routed.importance.end());
  routing.load.assign(routed.load.begin(), routed.load.end());
  routing.loss = routed.loss;
}

/// From the gradients of the weights of add_shared_pairs to those of `routed`, one after another, and of each
/// row's shared weight.
template <class Scalar>
void split_weight_gradients(const Routing<Scalar>& routed, Index count, std::span<const Scalar> d_weights,
                            std::vector<Scalar>& d_routed, Scalar* d_shared) {
  d_routed.resize(static_cast<std::size_t>(routed.size()));
  auto from = d_weights.begin();
  auto to = d_routed.begin();
  for (Index row = 0; row < routed.rows; ++row) {
    const auto end = from + (routed.begin(row + 1) - routed.begin(row));
    to = std::copy(from, end, to);
    from = end + count;
    if (d_shared == nullptr) continue;
    Sum<Scalar> sum(0);
    for (auto d = end; d != from; ++d) sum += static_cast<Sum<Scalar>>(*d);
    d_shared[row] = static_cast<Scalar>(sum);
  }
}

}  // namespace detail
}  // namespace meo

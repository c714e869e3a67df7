#pragma once

/// What the user chooses about a layer; the same for MoE and MEO.

#include <meo/errors.hpp>
#include <meo/mixing/merge_order.hpp>
#include <meo/routing/routing_options.hpp>
#include <meo/routing/shared_experts.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// What the user chooses about a layer.
struct LayerOptions {
  Index in_features = 0;   ///< D
  Index out_features = 0;  ///< F
  Index num_experts = 0;   ///< N; 0: the count in the layer's type
  /// K, experts that a row selects. With 1 and weights that are normalised, as they are by default, the
  /// weight of the selected expert is 1, whatever the logits: the gate then has no gradient from the task,
  /// only one from the auxiliary losses. Where the gate is to learn which experts serve a row, take 2 or
  /// more, or, as Switch, routing.scores.function = ScoreFunction::softmax: a weight of one expert that
  /// depends on all logits.
  Index top_k = 1;
  SharedExpertOptions shared_experts = {};         ///< beside the N
  bool bias = true;                                ///< whether experts have biases
  RoutingOptions routing = {};                     ///< what a decision covers, and how it is made
  MergeOrder merge_order = MergeOrder::automatic;  ///< MEO: whether experts are merged or outputs combined
  /// Whether the layer has a router of its own. Without one it has no gate's parameters and runs by
  /// forward_routed alone, with an assignment that comes from elsewhere.
  bool has_router = true;

  bool operator==(const LayerOptions&) const = default;
};

namespace detail {

/// Options with the expert count filled in. Throws std::invalid_argument for anything that makes no layer.
template <class Scalar, int NumExperts>
LayerOptions checked_options(LayerOptions options) {
  if constexpr (NumExperts != Eigen::Dynamic) {
    if (options.num_experts == 0) options.num_experts = NumExperts;
    require(options.num_experts == NumExperts, "num_experts: expected ", NumExperts,
            " as the layer's type says, got ", options.num_experts);
  }
  require(options.in_features >= 1, "in_features: expected at least 1, got ", options.in_features);
  require(options.out_features >= 1, "out_features: expected at least 1, got ", options.out_features);
  require(options.num_experts >= 1, "num_experts: expected at least 1, got ", options.num_experts);
  require(options.top_k >= 1 && options.top_k <= options.num_experts,
          "top_k: expected 1 to num_experts = ", options.num_experts, ", got ", options.top_k);
  check_shared_experts(options.shared_experts, options.num_experts);
  check_routing_options<Scalar>(options.routing);
  check_selection<Scalar>(options.routing.selection, options.num_experts, options.top_k);
  require(options.merge_order == MergeOrder::automatic || options.merge_order == MergeOrder::merge_first ||
              options.merge_order == MergeOrder::combine_outputs,
          "merge_order: expected automatic, merge_first or combine_outputs, got ",
          static_cast<int>(options.merge_order));
  return options;
}

}  // namespace detail
}  // namespace meo

#pragma once

/// What the user chooses about routing; the same for a layer and for a block.

#include <meo/errors.hpp>
#include <meo/scalar_options.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// What the user chooses about routing.
struct RoutingOptions {
  Level level = Level::sequence;  ///< what one gate decision covers
  Index task_features = 0;        ///< S, width of a task's embedded description; task level only
  Index segment_tokens =
      0;  ///< tokens of a segment; only the last of a sequence is shorter; segment level only
  Index reduce_factor = 64;  ///< r: token attention has ⌊D/r⌋ rows, the task projection ⌊S/r⌋; at least one
  bool gate_before_attention = false;  ///< the gate sees x as it was before token attention (GPT-2's form)
  double loss_coefficient = 1e-2;      ///< of the balance loss
  double noise_epsilon = 1e-2;         ///< least deviation of the gate's noise

  bool operator==(const RoutingOptions&) const = default;
};

namespace detail {

/// Throws std::invalid_argument for options that no router can have.
template <class Scalar>
void check_routing_options(const RoutingOptions& options) {
  require(to_string(options.level) != "unknown", "level: expected token, sequence, task or segment, got ",
          static_cast<int>(options.level));
  require(options.reduce_factor >= 1, "reduce_factor: expected at least 1, got ", options.reduce_factor);
  require(options.level != Level::task || options.task_features >= 1,
          "task_features: expected at least 1 at task level, got ", options.task_features);
  require(options.level != Level::segment || options.segment_tokens >= 1,
          "segment_tokens: expected at least 1 at segment level, got ", options.segment_tokens);
  require_not_negative<Scalar>(options.loss_coefficient, "loss_coefficient");
  require_positive<Scalar>(options.noise_epsilon, "noise_epsilon");
}

}  // namespace detail
}  // namespace meo

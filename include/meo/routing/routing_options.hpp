#pragma once

/// What the user chooses about routing; the same for a layer and for a block.

#include <meo/errors.hpp>
#include <meo/routing/losses.hpp>
#include <meo/routing/scores.hpp>
#include <meo/routing/selection.hpp>
#include <meo/scalar_options.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// What the user chooses about routing. The gates of public models, with top_k as theirs and, but for MEO,
/// Level::token:
///
///     Mixtral, DBRX      {}
///     gpt-oss            {.scores = {.bias = true}}
///     OLMoE, Qwen-MoE    {.scores = {.function = ScoreFunction::softmax, .normalize = norm_topk_prob}}
///     DeepSeek-V2        {.scores = {.function = ScoreFunction::softmax, .scale = routed_scaling_factor},
///                         .selection = {.groups = n_group, .top_groups = topk_group}}
///     DeepSeek-V3        {.scores = {.function = ScoreFunction::sigmoid, .normalize = true,
///                                    .scale = routed_scaling_factor},
///                         .selection = {.groups = n_group, .top_groups = topk_group,
///                                       .group_score = GroupScore::two_largest, .correction_bias = true}}
///     Switch             {.scores = {.function = ScoreFunction::softmax},
///                         .selection = {.capacity_factor = 1.25}, .losses = {.share_coefficient = 1e-2}}
///     expert choice      {.scores = {.function = ScoreFunction::softmax},
///                         .selection = {.method = SelectionMethod::expert_choice, .capacity_factor = 1}}
///     SMEAR              {} with top_k = num_experts, Level::sequence in a MeoLayer
///     CondConv           {.scores = {.function = ScoreFunction::sigmoid}}, also with top_k = num_experts
///
/// loss_coefficient is to be 0 where cv² is not wanted.
struct RoutingOptions {
  Level level = Level::sequence;  ///< what one gate decision covers
  Index task_features = 0;        ///< S, width of a task's embedded description; task level only
  Index segment_tokens =
      0;  ///< tokens of a segment; only the last of a sequence is shorter; segment level only
  Index reduce_factor = 64;  ///< r: token attention has ⌊D/r⌋ rows, the task projection ⌊S/r⌋; at least one
  bool gate_before_attention = false;  ///< the gate sees x as it was before token attention (GPT-2's form)
  double loss_coefficient = 1e-2;      ///< of cv²(importance) + cv²(load); see balance_loss.hpp
  double noise_epsilon = 1e-2;         ///< least deviation of the gate's noise
  ScoreOptions scores = {};            ///< how logits become weights
  SelectionOptions selection = {};     ///< which experts a row has
  LossOptions losses = {};             ///< beside the one of loss_coefficient

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
  check_scores<Scalar>(options.scores);
  check_losses<Scalar>(options.losses);
  require(
      options.level != Level::segment || options.selection.method != SelectionMethod::expert_choice,
      "selection.method: expected top_k at segment level, where no segment may depend on a later one, got "
      "expert_choice");
}

}  // namespace detail
}  // namespace meo

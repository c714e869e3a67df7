#pragma once

/// Options that tests of layers and blocks begin with. Coefficients are so large that the loss and the noise
/// show in gradients.

#include <concepts>

#include <meo/layers/feed_forward.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/types.hpp>

namespace meo::test {

inline constexpr Level all_levels[] = {Level::token, Level::sequence, Level::task};

/// Width of the tasks' embedded descriptions.
inline constexpr Index small_task_features = 6;

/// Whether Layer is a MeoLayer.
template <class Layer>
inline constexpr bool is_meo = std::same_as<typename Layer::Kind, Meo>;

/// A layer of four experts.
inline LayerOptions small_layer(Level level, Index in_features, Index out_features, Index top_k = 2) {
  return {.in_features = in_features,
          .out_features = out_features,
          .num_experts = 4,
          .top_k = top_k,
          .routing = {.level = level,
                      .task_features = level == Level::task ? small_task_features : 0,
                      .reduce_factor = 2,
                      .loss_coefficient = 0.25,
                      .noise_epsilon = 0.125}};
}

/// A block of four experts.
inline FeedForwardOptions small_block(Level level, Index features, Index hidden_features, bool gated,
                                      bool shared_gate, Index top_k = 2) {
  return {.features = features,
          .hidden_features = hidden_features,
          .num_experts = 4,
          .top_k = top_k,
          .gated = gated,
          .shared_gate = shared_gate,
          .routing = {.level = level,
                      .task_features = level == Level::task ? small_task_features : 0,
                      .reduce_factor = 2,
                      .loss_coefficient = 0.25,
                      .noise_epsilon = 0.125}};
}

}  // namespace meo::test

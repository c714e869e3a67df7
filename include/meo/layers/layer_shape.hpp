#pragma once

/// What `flops` needs to count the forward of a layer over a batch.

#include <meo/flops.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/mixing/merge_order.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// The shape of a MoeLayer or MeoLayer with the options that its options() returns, over a batch. Sequences
/// that MeoLayer<Scalar> combines are told from those that it merges. What the layer saves where sequences
/// have the same selection and weights, only their routing would say: each counts as a merge of its own.
///
///     const auto cost = meo::flops(meo::Method::meo, meo::layer_shape<float>(layer.options(), batch));
template <class Scalar>
LayerShape layer_shape(const LayerOptions& options, const Sequences& batch, bool noise = false) {
  LayerShape shape{.in_features = options.in_features,
                   .out_features = options.out_features,
                   .num_experts = options.num_experts,
                   .top_k = options.top_k,
                   .level = options.routing.level,
                   .tokens = batch.tokens(),
                   .sequences = batch.size(),
                   .merges = 0,
                   .bias = options.bias,
                   .noise = noise,
                   .reduce_factor = options.routing.reduce_factor,
                   .task_features = options.routing.task_features};
  const Index fewest =
      fewest_tokens_to_merge<Scalar>(options.merge_order, options.routing.level, options.top_k);
  for (Index b = 0; b < batch.size(); ++b) {
    if (batch.length(b) < fewest) shape.combined_tokens += batch.length(b);
    else if (options.top_k > 1) ++shape.merges;
  }
  return shape;
}

}  // namespace meo

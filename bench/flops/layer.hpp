#pragma once

/// The one layer that is counted by item and run.

#include <cstdint>

#include <meo/flops.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/layer_shape.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

#include "flops/arguments.hpp"

namespace bench::flops {

using meo::LayerOptions;
using meo::LayerShape;

using Scalar = float;

/// The up projection of the model's feed-forward block.
inline LayerOptions up_projection(const Arguments& arguments, Index top_k, Level level) {
  return {.in_features = arguments.model.features,
          .out_features = arguments.model.hidden_features,
          .num_experts = arguments.experts,
          .top_k = top_k,
          .bias = false,
          .routing = {.level = level, .task_features = arguments.model.features}};
}

inline LayerShape shape_of(const LayerOptions& options, const Arguments& arguments) {
  return meo::layer_shape<Scalar>(options, meo::Sequences::uniform(1, arguments.model.tokens));
}

inline double mflops(std::int64_t count) { return static_cast<double>(count) * 1e-6; }

}  // namespace bench::flops

#pragma once

/// Everything of the library that needs only Eigen; autodiff.hpp, for a scalar of its unsupported modules, is
/// included apart.

#include <meo/experts/activate.hpp>
#include <meo/experts/activation.hpp>
#include <meo/experts/aligned_vector.hpp>
#include <meo/experts/any_activation.hpp>
#include <meo/experts/expert_bank.hpp>
#include <meo/experts/gated_activation.hpp>
#include <meo/experts/linear.hpp>
#include <meo/flops.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/layer_shape.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/merged_expert.hpp>
#include <meo/layers/merged_feed_forward.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/layers/output.hpp>
#include <meo/layers/token_attention.hpp>
#include <meo/layers/upcycling.hpp>
#include <meo/layers/workspace.hpp>
#include <meo/mixing/merge_order.hpp>
#include <meo/routing/assignment.hpp>
#include <meo/routing/balance_loss.hpp>
#include <meo/routing/correction_bias.hpp>
#include <meo/routing/gate.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/losses.hpp>
#include <meo/routing/noise.hpp>
#include <meo/routing/router.hpp>
#include <meo/routing/routing.hpp>
#include <meo/routing/routing_options.hpp>
#include <meo/routing/routing_statistics.hpp>
#include <meo/routing/scores.hpp>
#include <meo/routing/selection.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/routing/shared_experts.hpp>
#include <meo/routing/statistics_reduction.hpp>
#include <meo/training/adamw.hpp>
#include <meo/training/gradient_norm.hpp>
#include <meo/training/parameters.hpp>
#include <meo/training/sgd.hpp>
#include <meo/types.hpp>
#include <meo/version.hpp>

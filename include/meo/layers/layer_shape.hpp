#pragma once

/// What `flops` needs to count the forward of a layer over a batch, and the merging of experts that are kept.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/flops.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/pairs.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/mixing/merge_order.hpp>
#include <meo/routing/assignment.hpp>
#include <meo/routing/gate_input.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

/// What a MeoLayer decides for at a time: the sequences of a batch, or their segments.
inline GateRows decided_rows(const LayerOptions& options, const Sequences& batch, GateRowsMemory& memory) {
  return options.routing.level == Level::segment
             ? rows_of_segments(batch.offsets(), options.routing.segment_tokens, memory)
             : rows_of_sequences(batch.offsets(), memory);
}

}  // namespace detail

/// The shape of a MoeLayer or MeoLayer with the options that its options() returns, over a batch. Sequences
/// that MeoLayer<Scalar> combines are told from those that it merges. What the layer saves where sequences
/// have the same selection and weights, only their routing says, see assignment_shape: here each counts as a
/// merge of its own, but for the second segment of a sequence, which without noise has the decision of the
/// first. With expert choice and with capacities each row counts as if it had top_k experts beside the
/// shared.
///
///     const auto cost = meo::flops(meo::Method::meo, meo::layer_shape<float>(layer.options(), batch));
template <class Scalar>
LayerShape layer_shape(const LayerOptions& options, const Sequences& batch, bool noise = false) {
  detail::GateRowsMemory memory;
  const detail::GateRows rows = detail::decided_rows(options, batch, memory);
  LayerShape shape{.in_features = options.in_features,
                   .out_features = options.out_features,
                   .num_experts = options.num_experts,
                   .top_k = options.top_k,
                   .level = options.routing.level,
                   .tokens = batch.tokens(),
                   .sequences = rows.size(),
                   .merges = 0,
                   .bias = options.bias,
                   .noise = noise,
                   .reduce_factor = options.routing.reduce_factor,
                   .task_features = options.routing.task_features,
                   .has_router = options.has_router,
                   .shared_experts = options.shared_experts.count,
                   .weighs_shared = options.shared_experts.weight == SharedWeight::sigmoid};
  const Index experts_of_row = options.top_k + options.shared_experts.count;
  const bool is_weight_one = detail::is_single_weight_one(options.routing.scores);
  const Index fewest = fewest_tokens_to_merge<Scalar>(options.merge_order, options.routing.level,
                                                      experts_of_row, is_weight_one);
  for (Index row = 0; row < rows.size(); ++row) {
    if (rows.tokens(row) < fewest) {
      shape.combined_tokens += rows.tokens(row);
    } else if (experts_of_row > 1 || !is_weight_one) {
      const bool shares_merge = !noise && rows.sees_as_before(row) && rows.tokens(row - 1) >= fewest;
      if (!shares_merge) ++shape.merges;
    }
  }
  return shape;
}

/// What the experts of such a layer do with an assignment: a routing of its own or any other, whose rows are
/// the sequences, or segments, or the tokens for a MoeLayer at token level. As the layer does it: rows
/// without tokens or experts need nothing, a MeoLayer merges once for all rows of the same experts and
/// weights, uses a single expert of weight 1 where it lies, and combines the outputs of rows that are too
/// short to merge.
///
/// A FeedForward of MoeLayers with a shared gate combines the outputs of `down` alone, so that `combine` of
/// its other projections is not executed.
///
/// Throws std::invalid_argument for Method::dense, which has no assignment, and for an assignment that does
/// not fit the layer and the batch.
///
///     meo::LayerShape shape = meo::layer_shape<float>(layer.options(), batch);
///     shape.has_router = false;  // forward_routed asks no gate
///     const auto cost = meo::flops(meo::Method::meo, shape,
///                                  meo::assignment_shape(meo::Method::meo, layer.options(), batch,
///                                  assignment));
template <class Scalar>
AssignmentShape assignment_shape(Method method, const LayerOptions& options, const Sequences& batch,
                                 const Assignment<Scalar>& assignment) {
  detail::require(method != Method::dense, "method: expected moe or meo, got dense");
  const bool merges = method == Method::meo;
  const bool routes_tokens = !merges && options.routing.level == Level::token;
  detail::GateRowsMemory memory;
  const detail::GateRows rows = routes_tokens ? detail::rows_of_tokens(batch.tokens(), memory)
                                              : detail::decided_rows(options, batch, memory);
  assignment.check(rows.size(), options.num_experts + options.shared_experts.count);

  const detail::Pairs<Scalar> pairs = detail::pairs_of(assignment);
  AssignmentShape shape;
  std::vector<unsigned char> is_combined(static_cast<std::size_t>(pairs.rows), 0);
  for (Index row = 0; row < pairs.rows; ++row) {
    const Index tokens = rows.tokens(row);
    if (merges && detail::merges_row(options.merge_order, options.routing.level, pairs.row(row), tokens))
      continue;
    is_combined[static_cast<std::size_t>(row)] = 1;
    shape.combined_outputs += std::int64_t{tokens} * pairs.count(row);
  }
  shape.products = shape.combined_outputs;
  if (!merges) return shape;

  detail::MergePlan<Scalar> plan;
  detail::plan_merges(pairs, rows.governed, plan, is_combined.data());
  for (const Index row : plan.sequences) shape.products += rows.tokens(row);
  for (Index merge = 0; merge < plan.num_merges(); ++merge) {
    const detail::MergeTerms<Scalar> terms = plan.terms(merge);
    if (!terms.are_one_expert()) shape.merged_experts += terms.count;
  }
  return shape;
}

/// What merging_flops counts where the rows of an assignment are merged to be kept, see MergedExpert: their
/// pairs but for those of weight 0, and for single ones of weight 1, which are copied: experts that are
/// stored as what is computed with.
///
///     meo::merging_flops(shape, meo::merged_experts(kept.assignment()))
template <class Scalar>
std::int64_t merged_experts(const Assignment<Scalar>& assignment) {
  std::int64_t merged = 0;
  for (Index row = 0; row < assignment.rows; ++row) {
    const std::span<const Scalar> weights = assignment.row_weights(row);
    const auto zeros = std::count(weights.begin(), weights.end(), Scalar(0));
    const auto experts = static_cast<std::int64_t>(weights.size()) - zeros;
    const bool is_copied =
        experts == 1 && std::find(weights.begin(), weights.end(), Scalar(1)) != weights.end();
    if (!is_copied) merged += experts;
  }
  return merged;
}

#define MEO_INSTANCES(instance, Scalar)                                                    \
  instance LayerShape layer_shape<Scalar>(const LayerOptions&, const Sequences&, bool);    \
  instance AssignmentShape assignment_shape(Method, const LayerOptions&, const Sequences&, \
                                            const Assignment<Scalar>&);
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

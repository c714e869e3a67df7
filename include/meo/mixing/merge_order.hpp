#pragma once

/// Whether MEO merges the experts of a sequence or combines their outputs: x (Σ g_i W_i)ᵀ and Σ g_i (x W_iᵀ)
/// differ by rounding only.
///
/// The cost model, for each weight of an expert, K experts and a sequence of T tokens:
///
///                        experts merged first    outputs combined
///     multiply-adds      K + T                   K T
///     read from memory   K                       K
///     through caches     1 written, 1 read       –
///
/// What is read from memory is the same. The merged weight is written, and read again, through caches that it
/// does not fit into beside the experts' weights; meanwhile the K multiply-adds of the merge are done. That
/// takes as long as 4 multiply-adds of a weight with packets of 16 bytes, and with packets p times as large,
/// which multiply p times as fast, as 4 p. So merging is the faster where
///
///     4 p + T ≤ K T
///
/// meo_bench has cases around the T at which the two should be equal.

#include <algorithm>
#include <limits>

#include <meo/kernels/pairs.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// automatic: as the cost model says, and merged first at task level, where sequences share what is merged.
enum class MergeOrder { automatic, merge_first, combine_outputs };

/// Tokens from which on a row's experts are merged; a shorter one's outputs are combined. What happens to a
/// row depends on no other of its batch, and so does no bit of its result. num_experts: of the row.
/// are_weights_one: whether the row's weights are 1, as that of a single expert is with a softmax over the
/// selected: it is then used where it lies. With another weight the product is weighed, not the expert.
template <class Scalar>
constexpr Index fewest_tokens_to_merge(MergeOrder order, Level level, Index num_experts,
                                       bool are_weights_one = true) {
  constexpr Index never = (std::numeric_limits<Index>::max)();
  if (order == MergeOrder::combine_outputs) return never;
  if (order == MergeOrder::merge_first) return 1;
  if (num_experts <= 1) return are_weights_one ? 1 : never;
  if (level == Level::task) return 1;
  return (detail::merge_cost_of_caches<Scalar> + num_experts - 2) / (num_experts - 1);
}

namespace detail {

/// Whether the experts of a row of so many tokens are merged.
template <class Scalar>
bool merges_row(MergeOrder order, Level level, const MergeTerms<Scalar>& row, Index tokens) {
  return tokens >= fewest_tokens_to_merge<Scalar>(order, level, row.count, row.are_one_expert());
}

}  // namespace detail
}  // namespace meo

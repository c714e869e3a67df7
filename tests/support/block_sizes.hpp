#pragma once

/// Every block, chunk and buffer that the library works in, and sizes beyond each of them: what tests take
/// where a size has to reach past the first. A new constant of the kernels or the reader belongs here too.

#include <algorithm>

#include <meo/kernels/blocks.hpp>
#include <meo/kernels/merged_weight_gradient.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/gradient_blocking.hpp>
#include <meo/kernels/parts/merge.hpp>
#include <meo/kernels/parts/prefetch.hpp>
#include <meo/kernels/parts/spread.hpp>
#include <meo/kernels/weight_gradient.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::test {

/// Outputs in more panels than are summed up by themselves, taken together by few rows, or packed for an
/// input's gradient; the last of them not whole.
template <class S>
constexpr Index outputs_beyond_blocks() {
  constexpr Index panels = std::max<Index>({detail::max_product_chunks, detail::panels_at_once<S>(1),
                                            detail::Blocks{}.turned_outputs / detail::Tile<S>::columns});
  return (2 * panels + 1) * detail::Tile<S>::columns + 1;
}

/// Inputs beyond a block of depth and a slice, those whose gradients are formed at a time, and those packed
/// at a time.
template <class S>
Index inputs_beyond_blocks() {
  const Index slice = detail::slice_inputs<S>(Index{1} << 30, 2, detail::machine_blocks());
  return 2 * std::max({detail::Blocks{}.depth, slice, detail::gradient_inputs<S>(),
                       detail::packed_inputs_at_once}) +
         detail::Tile<S>::rows + 1;
}

/// Merges beyond those formed together in a product.
constexpr Index merges_beyond_blocks() { return 2 * detail::Blocks{}.merges + 3; }

/// Merges beyond those whose gradients are formed together, and beyond a part of their sum.
constexpr Index gradient_merges_beyond_blocks() {
  return 2 * std::max(detail::max_gradient_merges, detail::Blocks{}.serial_merges) + 3;
}

/// Experts beyond those added at a time, and those that share a gradient at a time.
constexpr Index experts_beyond_blocks() {
  return 2 * std::max(detail::merge_terms, detail::spread_merges) + 5;
}

/// Tokens beyond those that are multiplied, packed and summed up at a time, and beyond a part of a sum.
template <class S>
constexpr Index tokens_beyond_blocks() {
  return 2 * std::max({detail::serial_tokens<S>(), detail::serial_terms, detail::packed_gradient_rows,
                       Index{detail::Tile<S>::rows}}) +
         3;
}

/// Tokens whose gradients of one panel are more than a thread's scratch holds.
template <class S>
constexpr Index tokens_beyond_scratch() {
  return detail::gradient_tokens<S>() + detail::outer_product_tokens<S>() + 1;
}

/// Tokens of so many inputs beyond those that all panels pass over before the next.
template <class S>
Index tokens_beyond_chunks(Index inputs) {
  const detail::Blocks limits = detail::machine_blocks();
  const Index rows = limits.activation_bytes / (inputs * static_cast<Index>(sizeof(S)));
  return 2 * std::max({limits.merged_tokens, limits.dense_rows, rows}) + 3;
}

}  // namespace meo::test

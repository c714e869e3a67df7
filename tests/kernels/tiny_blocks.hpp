#pragma once

#include <algorithm>

#include <meo/kernels/blocks.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/gradient_blocking.hpp>
#include <meo/types.hpp>

namespace meo::test {

/// Blocks so small that every edge of them is met within a few rows: five inputs, or a line of them, two
/// merges, three tokens and two panels of a product, and stretches of five tokens of a gradient.
template <class S>
constexpr detail::Blocks tiny_blocks() {
  constexpr Index columns = detail::Tile<S>::columns, rows = detail::Tile<S>::rows;
  constexpr Index size = static_cast<Index>(sizeof(S));
  // Room for rows of dy of two panels, and for two merges of 2 × 2 turned panels.
  constexpr Index scratch =
      (std::max)(2 * detail::packed_gradient_rows * (2 * columns + 32), 2 * 2 * 4 * columns * columns);
  return {.scratch_bytes = scratch * size,
          .l1_bytes = 8 * (columns + rows) * size * 5 / 7 + 8,
          .strip_bytes = 1,
          .slice_bytes = 5 * columns * size,
          .merged_bytes = 2 * 6 * columns * size,
          .sums_bytes = 2 * 3 * columns * size,
          .activation_bytes = 1,
          .merged_tokens = 3,
          .dense_rows = 3,
          .depth = 5,
          .merges = 2,
          .gradient_merges = 2,
          .gradient_inputs = 2 * rows,
          .turned_outputs = 2 * columns,
          .turned_inputs = 2 * columns,
          .serial_tokens = 1,
          .serial_merges = 2};
}

}  // namespace meo::test

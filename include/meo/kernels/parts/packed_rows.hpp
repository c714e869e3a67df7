#pragma once

/// Rows of activations in the order in which tiles read them.
///
/// All panels pass over the same rows again and again, a slice of their inputs at a time. Where they lie, a
/// slice is as many short stretches as there are rows, of which caches hold few when their distances are
/// alike and which no hardware foresees; packed, it is one stretch. A tile's rows stand side by side, a cache
/// line of inputs of each:
///
///     slice of inputs ▸ tile of rows ▸ line of inputs ▸ row of the tile ▸ input
///
/// where the last tile of a stretch of rows has what is left, and the last line of a slice a rest that nobody
/// reads.

#include <algorithm>

#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Scalars that the slices of `rows` rows take.
template <class Scalar>
Index packed_rows_size(Index rows, Index in_features, Index slice) {
  const Index last = in_features % slice;
  return rows * (in_features / slice * whole_lines<Scalar>(slice) + whole_lines<Scalar>(last));
}

/// Packs a slice of `count` rows, `inputs` inputs from x's first column on. packed: count times the inputs in
/// whole lines.
template <class Scalar>
void pack_rows(const Rows<const Scalar>& x, Index count, Index inputs, Scalar* packed) {
  constexpr Index line = line_size<Scalar>, tile_rows = Tile<Scalar>::rows;
  for (Index first = 0; first < count; first += tile_rows) {
    const Index rows = (std::min)(tile_rows, count - first);
    for (Index input = 0; input < inputs; input += line) {
      const Index size = (std::min)(line, inputs - input);
      for (Index r = 0; r < rows; ++r, packed += line) std::copy_n(x.row(first + r) + input, size, packed);
    }
  }
}

}  // namespace meo::detail

#pragma once

/// Rows of activations, a slice of their inputs in one stretch of memory.
///
/// All panels pass over the same rows again and again, a slice at a time. Where x lies, a slice is as many
/// short stretches as there are rows, of which a cache holds few when their distances are alike; packed,
/// slices stand one after another, rows of whole cache lines side by side in each.

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

/// Packs a slice of `count` rows, `inputs` inputs from x's first column on. Returns the packed rows.
template <class Scalar>
Rows<const Scalar> pack_rows(const Rows<const Scalar>& x, Index count, Index inputs, Scalar* packed) {
  const Index stride = whole_lines<Scalar>(inputs);
  for (Index r = 0; r < count; ++r) std::copy_n(x.row(r), inputs, packed + r * stride);
  return {packed, stride};
}

}  // namespace meo::detail

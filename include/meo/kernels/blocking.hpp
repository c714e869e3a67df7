#pragma once

/// How much is merged at a time. Blocks change the speed only: no result depends on them, to the bit.

#include <algorithm>

#include <meo/kernels/panel.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// Upper bound of a thread's scratch, whatever the sizes of the problem.
inline constexpr Index max_scratch_bytes = Index{1} << 21;

struct MergeBlocks {
  Index merges;  ///< Q: merges formed together, so that an expert's panel is read once for all of them
  Index depth;   ///< rows of a panel that are merged, multiplied with and forgotten at a time
};

/// Half of L2 holds the merged panels; the rest is left to the activations that stream past and to the
/// experts' panels on their way in.
template <class Scalar>
MergeBlocks merge_blocks(Index depth, Index merges) {
#if defined(MEO_TINY_BLOCKS)
  // For tests: every edge of every loop within a few rows.
  return {std::min<Index>(2, std::max<Index>(merges, 1)), std::min<Index>(5, std::max<Index>(depth, 1))};
#else
  const Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  const Index budget = std::min(static_cast<Index>(Eigen::l2CacheSize()), max_scratch_bytes) / 2;
  const Index rows = std::max<Index>(budget / row_bytes, 1);
  const Index block_depth = std::clamp<Index>(depth, 1, rows);
  return {std::clamp<Index>(rows / block_depth, 1, std::max<Index>(merges, 1)), block_depth};
#endif
}

/// Rows of a panel that are merged for all Q merges before the next: the K experts' strips fill half of a
/// small L1.
template <class Scalar>
Index merge_strip_rows(Index top_k) {
  const Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  return std::max<Index>((Index{1} << 14) / (row_bytes * top_k), 4);
}

}  // namespace meo::detail

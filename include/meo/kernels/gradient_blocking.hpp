#pragma once

/// How much of a gradient is computed at a time. Blocks change the speed only: no result depends on the
/// number of threads.

#include <algorithm>

#include <meo/kernels/blocking.hpp>
#include <meo/kernels/outer_product.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// Scratch of one thread, in scalars: half of L2, and with it well below max_scratch_bytes.
template <class Scalar>
Index gradient_budget() {
#if defined(MEO_TINY_BLOCKS)
  return 8 * Tile<Scalar>::columns * Tile<Scalar>::columns;
#else
  return std::min(static_cast<Index>(Eigen::l2CacheSize()), max_scratch_bytes) / 2 /
         static_cast<Index>(sizeof(Scalar));
#endif
}

/// Panels of outputs that the gradient of x takes at a time: every sum goes through memory once for each such
/// group, so that 128 outputs cost little beside their multiply-adds.
template <class Scalar>
Index gradient_group(Index panels) {
#if defined(MEO_TINY_BLOCKS)
  constexpr Index outputs = 2 * Tile<Scalar>::columns;
#else
  constexpr Index outputs = 128;
#endif
  return std::min(panels, std::max<Index>(outputs / Tile<Scalar>::columns, 1));
}

/// Q merges, and for each of them some of the rows of a panel (gradient of the experts) or of the panels of
/// inputs (gradient of x).
struct GradientBlocks {
  Index merges;
  Index size;
};

/// The most merges that leave room for `least` units of `unit` scalars each, then the most of `all` units.
template <class Scalar>
GradientBlocks gradient_blocks(Index unit, Index least, Index all, Index merges) {
  const Index units = std::max<Index>(gradient_budget<Scalar>() / unit, 1);
  const Index q = std::clamp<Index>(units / std::min(least, all), 1, std::max<Index>(merges, 1));
  return {q, std::clamp<Index>(units / q, 1, all)};
}

}  // namespace meo::detail

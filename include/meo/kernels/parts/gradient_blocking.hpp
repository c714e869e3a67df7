#pragma once

/// How much of a gradient is computed at a time. Blocks change the speed only: no result depends on the
/// number of threads.

#include <algorithm>

#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Q at most, however small the experts are.
inline constexpr Index max_gradient_merges = 32;

// ---------------------------------------------------------------------------------------------------------------
// The gradient of the experts

/// Tokens that are packed and multiplied at a time: a panel's columns of their dy and a tile of their inputs
/// fill seven eighths of a small L1. With fewer tokens every sum goes through memory more often.
template <class Scalar>
constexpr Index outer_product_tokens() {
  constexpr Index step = (Tile<Scalar>::columns + Tile<Scalar>::rows) * static_cast<Index>(sizeof(Scalar));
  return (std::max<Index>)((Index{7} << 12) / step, 1);
}

/// Tokens that are added to one sum one after another, in whole stretches; what they give is added pairwise
/// (sums.hpp). With about 512, adding parts takes less than 1 % of what forming them does.
template <class Scalar>
constexpr Index serial_tokens() {
#if defined(MEO_TINY_BLOCKS)
  return outer_product_tokens<Scalar>();
#else
  return (std::max<Index>)(512 / outer_product_tokens<Scalar>(), 1) * outer_product_tokens<Scalar>();
#endif
}

/// Merges whose gradients are added to an expert's one after another; see sums.hpp.
#if defined(MEO_TINY_BLOCKS)
inline constexpr Index serial_merges = 2;
#else
inline constexpr Index serial_merges = 256;
#endif

/// Inputs whose gradients of merged experts are formed, and spread, at a time: with those of Q merges, the
/// rows of the experts that they are spread to are to stay in L2.
template <class Scalar>
constexpr Index gradient_inputs() {
#if defined(MEO_TINY_BLOCKS)
  return 2 * Tile<Scalar>::rows;
#else
  // Of large scalars, as those of automatic differentiation, as many as fill less than a third of scratch; in
  // whole tiles, at least one, because inputs are packed in these.
  constexpr Index rows = Tile<Scalar>::rows;
  constexpr Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  constexpr Index most =
      (std::min<Index>)(max_scratch_bytes * 5 / 16 / (max_gradient_merges * row_bytes), 96);
  return (std::max<Index>)(most / rows, 1) * rows;
#endif
}

/// Tokens whose dy is packed for a panel at a time: half of a thread's scratch.
template <class Scalar>
constexpr Index gradient_tokens() {
#if defined(MEO_TINY_BLOCKS)
  return outer_product_tokens<Scalar>() + 1;
#else
  return max_scratch_bytes / 2 / (Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar)));
#endif
}

// ---------------------------------------------------------------------------------------------------------------
// The gradient of x

/// Scalars of a cache line.
template <class Scalar>
inline constexpr Index line_size = (std::max<Index>)(64 / static_cast<Index>(sizeof(Scalar)), 1);

/// From a packed row of dy to the next: an odd number of cache lines. Where dy lies, rows are often a
/// multiple of 4 KiB apart, and would compete for few sets of an L1.
template <class Scalar>
constexpr Index packed_gradient_stride(Index panels) {
  constexpr Index line = line_size<Scalar>;
  const Index lines = (panels * Tile<Scalar>::columns + line - 1) / line;
  return (lines / 2 * 2 + 1) * line;
}

template <class Scalar>
Index num_input_panels(const PanelBank<Scalar, const Scalar>& bank) {
  return (bank.in_features + bank.columns - 1) / bank.columns;
}

/// Rows of dy that are packed and multiplied at a time.
inline constexpr Index packed_gradient_rows = 128;

/// What is merged and turned before it is multiplied with.
struct TurnedBlocks {
  Index panels;        ///< of NR outputs
  Index input_panels;  ///< of NR inputs
  Index merges;        ///< Q
  Index tokens;        ///< whose outputs of dy are packed once for all inputs; packed_gradient_rows at least
};

/// dy of these outputs is packed once if it fills no more than half of a thread's scratch; turned panels of Q
/// merges have the other half. Every sum goes through memory once for each block of outputs, so that 192 of
/// them cost little beside their multiply-adds, and a panel of so many stays in L1. Of large scalars, as
/// those of automatic differentiation, there are as many outputs as still have packed_gradient_rows fit, and
/// of 16 bits, to which a sum is rounded wherever it goes through memory, as well.
template <class Scalar>
TurnedBlocks turned_blocks(const PanelBank<Scalar, const Scalar>& bank, Index merges) {
  constexpr Index columns = Tile<Scalar>::columns;
#if defined(MEO_TINY_BLOCKS)
  constexpr Index outputs = 2 * columns, inputs = 2 * columns, max_merges = 2;
  constexpr Index scratch_size = 2 * packed_gradient_rows * (outputs + 32);
#else
  constexpr Index scratch_size = max_scratch_bytes / static_cast<Index>(sizeof(Scalar));
  constexpr Index longest_row = scratch_size / 2 / packed_gradient_rows;
  constexpr Index outputs =
      (std::min<Index>)(is_16_bit<Scalar> ? longest_row : 192, longest_row - 2 * line_size<Scalar>);
  constexpr Index inputs = 48, max_merges = max_gradient_merges;
#endif
  const Index panels = (std::min)(std::max<Index>(outputs / columns, 1), bank.num_panels());
  const Index input_panels = (std::min)(std::max<Index>(inputs / columns, 1), num_input_panels(bank));
  const Index most = (std::max<Index>)(scratch_size / 2 / (panels * input_panels * columns * columns), 1);
  const Index tokens =
      (std::max)(scratch_size / 2 / packed_gradient_stride<Scalar>(panels), packed_gradient_rows);
  return {panels, input_panels, std::clamp<Index>(merges, 1, (std::min)(max_merges, most)), tokens};
}

}  // namespace meo::detail

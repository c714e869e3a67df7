#pragma once

/// How a gradient is cut into blocks.

#include <algorithm>

#include <meo/kernels/blocks.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

// ---------------------------------------------------------------------------------------------------------------
// The gradient of the experts

/// Tokens that are packed and multiplied at a time: a panel's columns of their dy and a tile of their inputs
/// fill seven eighths of an L1. With fewer tokens every sum goes through memory more often.
template <class Scalar>
constexpr Index outer_product_tokens(const Blocks& limits = {}) {
  constexpr Index step = (Tile<Scalar>::columns + Tile<Scalar>::rows) * static_cast<Index>(sizeof(Scalar));
  return (std::max<Index>)(limits.l1_bytes / 8 * 7 / step, 1);
}

/// Tokens that are added to one sum one after another, in whole stretches.
template <class Scalar>
constexpr Index serial_tokens(const Blocks& limits = {}) {
  const Index stretch = outer_product_tokens<Scalar>(limits);
  return (std::max<Index>)(limits.serial_tokens / stretch, 1) * stretch;
}

/// Inputs whose gradients of merged experts are formed, and spread, at a time. Of large scalars, as those of
/// automatic differentiation, as many as fill less than a third of scratch; in whole tiles, at least one,
/// because inputs are packed in these.
template <class Scalar>
constexpr Index gradient_inputs(const Blocks& limits = {}) {
  constexpr Index rows = Tile<Scalar>::rows;
  constexpr Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  const Index most = (std::min)(limits.scratch_bytes * 5 / 16 / (limits.gradient_merges * row_bytes),
                                limits.gradient_inputs);
  return (std::max<Index>)(most / rows, 1) * rows;
}

/// Tokens whose dy is packed for a panel at a time: half of a thread's scratch, no less than a stretch.
template <class Scalar>
constexpr Index gradient_tokens(const Blocks& limits = {}) {
  constexpr Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  return (std::max)(limits.scratch_bytes / 2 / row_bytes, outer_product_tokens<Scalar>(limits));
}

// ---------------------------------------------------------------------------------------------------------------
// The gradient of x

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
/// merges have the other half. Of large scalars, as those of automatic differentiation, there are as many
/// outputs as still have packed_gradient_rows fit, and of 16 bits, to which a sum is rounded wherever it goes
/// through memory, as well.
template <class Scalar>
TurnedBlocks turned_blocks(const PanelBank<Scalar, const Scalar>& bank, Index merges,
                           const Blocks& limits = {}) {
  constexpr Index columns = Tile<Scalar>::columns;
  const Index scratch_size = limits.scratch_bytes / static_cast<Index>(sizeof(Scalar));
  const Index longest_row = scratch_size / 2 / packed_gradient_rows;
  const Index outputs = (std::min)(is_16_bit<Scalar> ? longest_row : limits.turned_outputs,
                                   longest_row - 2 * line_size<Scalar>);
  const Index panels = (std::min)(std::max<Index>(outputs / columns, 1), bank.num_panels());
  const Index input_panels =
      (std::min)(std::max<Index>(limits.turned_inputs / columns, 1), num_input_panels(bank));
  const Index most = (std::max<Index>)(scratch_size / 2 / (panels * input_panels * columns * columns), 1);
  const Index tokens =
      (std::max)(scratch_size / 2 / packed_gradient_stride<Scalar>(panels), packed_gradient_rows);
  return {panels, input_panels, std::clamp<Index>(merges, 1, (std::min)(limits.gradient_merges, most)),
          tokens};
}

}  // namespace meo::detail

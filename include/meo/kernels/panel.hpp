#pragma once

/// The packed layout of weights, and the size of the register tile that multiplies with it.
///
/// An expert's weight W (F × D, PyTorch's form) with an optional bias b (F) is cut into panels of NR output
/// columns. A panel is a row-major matrix of NR columns with one row per input feature, under a first row of
/// biases if any:
///
///          panel 0                 panel 1
///      ┌ b_0    …  b_NR-1    ┐  ┌ b_NR    …  ┐
///      │ W_0,0  …  W_NR-1,0  │  │ W_NR,0  …  │   depth = D + 1 rows with a bias, D without
///      │ ⋮                   │  │ ⋮          │   columns beyond F are zero
///      └ W_0,D-1 … W_NR-1,D-1┘  └            ┘
///
/// so a step of the tile reads NR consecutive weights. All experts' panels of the same outputs stand
/// together, [panel][expert][depth][NR]: the next panel of every expert is one contiguous stream to prefetch.

#include <algorithm>
#include <array>

#include <meo/kernels/packet.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// The register tile: MR rows of activations times NR columns of weights. NR is two packets; MR × 2
/// accumulators, two weights and one broadcast activation fill 15 of 16 registers, or 27 of 32, and are
/// enough independent chains to hide the latency of a multiply-add.
template <class Scalar>
struct Tile {
  static constexpr int packets = 2;
  static constexpr int columns = packets * PacketOf<Scalar>::size;                     // NR
  static constexpr int rows = num_registers >= 32 ? 12 : num_registers >= 16 ? 6 : 2;  // MR
};

/// NR zeros: where chains without a bias start.
template <class Scalar>
inline const std::array<Scalar, Tile<Scalar>::columns> zero_row{};

/// The packed weights of all experts. Scalar is what is computed, Storage what is stored.
template <class Scalar, class Storage = Scalar>
struct PanelBank {
  static constexpr Index columns = Tile<Scalar>::columns;

  Storage* data = nullptr;
  Index num_experts = 0;
  Index in_features = 0;
  Index out_features = 0;
  bool has_bias = false;

  Index depth() const { return in_features + (has_bias ? 1 : 0); }
  Index num_panels() const { return (out_features + columns - 1) / columns; }
  Index panel_size() const { return depth() * columns; }
  Index size() const { return num_panels() * num_experts * panel_size(); }

  Storage* panel(Index p, Index expert) const { return data + (p * num_experts + expert) * panel_size(); }

  /// Columns of panel p that stand for outputs; the rest is padding.
  Index valid_columns(Index p) const { return std::min(columns, out_features - p * columns); }

  /// Where W_{out, in} of an expert lies.
  Storage& weight(Index expert, Index out, Index in) const {
    return panel(out / columns, expert)[(in + (has_bias ? 1 : 0)) * columns + out % columns];
  }
  Storage& bias(Index expert, Index out) const { return panel(out / columns, expert)[out % columns]; }
};

}  // namespace meo::detail

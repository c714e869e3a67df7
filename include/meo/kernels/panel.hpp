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
/// and rows of zeros where padded_rows adds some. A step of the tile reads NR consecutive weights. All
/// experts' panels of the same outputs stand together, [panel][expert][depth][NR]: the next panel of every
/// expert is one contiguous stream to prefetch.
///
/// Where weights are stored as something else than what is computed with, panels have no row of biases: these
/// stand aside as scalars, and with them the scales of quantized weights, [panel][expert][b, s][NR].

#include <algorithm>
#include <array>
#include <numeric>

#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/storage.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// The register tile: MR rows of activations times NR columns of weights. NR is three packets: with 4 × 3
/// accumulators, three weights and one broadcast activation fill 16 registers exactly, with 8 × 3 they fill
/// 28 of 32, and are enough independent chains to hide the latency of a multiply-add. A tile this wide needs
/// fewer instructions besides multiply-adds (7 loads for 12) than one of 6 × 2 packets (8), which tells where
/// a core is shared with another thread.
template <class Scalar>
struct Tile {
  static constexpr int packets = num_registers >= 16 ? 3 : 2;
  static constexpr int columns = packets * PacketOf<Scalar>::size;                    // NR
  static constexpr int rows = num_registers >= 32 ? 8 : num_registers >= 16 ? 4 : 2;  // MR
};

/// Scalars of a cache line.
template <class Scalar>
inline constexpr Index line_size = (std::max<Index>)(64 / static_cast<Index>(sizeof(Scalar)), 1);

/// What it costs to pass a merged weight through caches, in multiply-adds of a weight; see
/// mixing/merge_order.hpp. Rounded up, so that it is at least 1 for the smallest scalar.
template <class Scalar>
inline constexpr Index merge_cost_of_caches = (static_cast<Index>(sizeof(Packet<Scalar>)) + 3) / 4;

/// Rows that a panel of `depth` rows takes in memory. A merge reads the same rows of K panels at once; were
/// these a multiple of 4 KiB apart, they would fall into the same sets of an L1 and drive one another out. So
/// panels of some size are an odd number of 512 bytes apart, which spreads 8 of them evenly; of 256 or 128
/// where storage is as much smaller, so that no more of it is padding.
template <class Scalar, class Storage = Scalar>
Index padded_rows(Index depth) {
  constexpr Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Storage));
  constexpr Index spread_bytes =
      512 * static_cast<Index>(sizeof(Storage)) / static_cast<Index>(sizeof(Scalar));
  constexpr Index smallest_bytes = 16384;
  constexpr Index unit = spread_bytes / std::gcd(row_bytes, spread_bytes);  // rows
  if (unit * row_bytes / spread_bytes % 2 == 0 || depth * row_bytes < smallest_bytes) return depth;
  const Index units = (depth + unit - 1) / unit;
  return (units % 2 != 0 ? units : units + 1) * unit;
}

/// NR zeros: where chains without a bias start.
template <class Scalar>
inline const std::array<Scalar, Tile<Scalar>::columns> zero_row{};

/// The packed weights of all experts. Scalar is what is computed, Storage what is stored.
template <class Scalar, class Storage = Scalar>
struct PanelBank {
  static constexpr Index columns = Tile<Scalar>::columns;
  /// What biases and scales are: const where weights are.
  using Head = std::conditional_t<std::is_const_v<Storage>, const Scalar, Scalar>;

  Storage* data = nullptr;
  Index num_experts = 0;
  Index in_features = 0;
  Index out_features = 0;
  bool has_bias = false;
  Head* heads = nullptr;  ///< the rows that stand aside, if any

  /// Rows of biases that stand in a panel.
  Index bias_rows() const { return has_bias && stores_scalars<Scalar, Storage> ? 1 : 0; }
  Index depth() const { return in_features + bias_rows(); }
  Index num_panels() const { return (out_features + columns - 1) / columns; }
  Index panel_size() const { return padded_rows<Scalar, std::remove_const_t<Storage>>(depth()) * columns; }
  Index size() const { return num_panels() * num_experts * panel_size(); }

  Storage* panel(Index p, Index expert) const { return data + (p * num_experts + expert) * panel_size(); }
  /// The same without the biases.
  Storage* weights(Index p, Index expert) const { return panel(p, expert) + bias_rows() * columns; }

  /// From an expert's panel to its next.
  Index panel_stride() const { return num_experts * panel_size(); }

  /// Scalars that stand aside for a panel of an expert, and for all.
  Index head_size() const {
    if constexpr (stores_scalars<Scalar, Storage>) return 0;
    return ((has_bias ? 1 : 0) + (is_quantized<Storage> ? 1 : 0)) * columns;
  }
  Index heads_size() const { return num_panels() * num_experts * head_size(); }
  Index head_stride() const { return num_experts * head_size(); }

  /// NR biases of an expert that has some, and how far those of its next panel, or the next expert's, are.
  Head* biases(Index p, Index expert) const {
    if constexpr (stores_scalars<Scalar, Storage>) return panel(p, expert);
    else return heads + (p * num_experts + expert) * head_size();
  }
  Index biases_stride() const { return stores_scalars<Scalar, Storage> ? panel_stride() : head_stride(); }
  Index bias_expert_stride() const { return stores_scalars<Scalar, Storage> ? panel_size() : head_size(); }

  /// NR scales of quantized weights; null for others.
  Head* scales(Index p, Index expert) const {
    if constexpr (!is_quantized<Storage>) return nullptr;
    else return heads + (p * num_experts + expert) * head_size() + (has_bias ? columns : 0);
  }

  /// Columns of `panels` panels from p on that stand for outputs; the rest is padding.
  Index valid_columns(Index p, Index panels = 1) const {
    return (std::min)(panels * columns, out_features - p * columns);
  }

  /// Where W_{out, in} of an expert lies.
  Storage& weight(Index expert, Index out, Index in) const {
    return weights(out / columns, expert)[in * columns + out % columns];
  }
  /// Its value.
  Scalar value(Index expert, Index out, Index in) const {
    const Scalar stored = static_cast<Scalar>(weight(expert, out, in));
    if constexpr (is_quantized<Storage>) return stored * scale(expert, out);
    else return stored;
  }
  Head& bias(Index expert, Index out) const { return biases(out / columns, expert)[out % columns]; }
  Head& scale(Index expert, Index out) const { return scales(out / columns, expert)[out % columns]; }
};

}  // namespace meo::detail

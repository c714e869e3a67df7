#pragma once

/// The product of rows of activations with panels of weights, y_r = start_r + x_r · panel, accumulated in
/// registers.
///
/// Every output is one chain of multiply-adds over the inputs in their order, whatever tile its row falls in,
/// and a chain cut at any depth goes on from the stored value without a change of bits. That is why results
/// do not depend on the number of threads, on block sizes, or on what else is in a batch.

#include <algorithm>

#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/parts/prefetch.hpp>
#include <meo/kernels/parts/stored.hpp>
#include <meo/kernels/parts/unroll.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Panels whose outputs lie side by side, and where their chains start.
template <class Scalar, class Storage = Scalar>
struct Panels {
  const Storage* first;  ///< depth × NR
  Index stride;          ///< from a panel to the next
  Index depth;
  Index outputs;         ///< columns that exist; only the last panel may have fewer than NR
  const Scalar* starts;  ///< NR values for each panel; null: chains go on from what y holds
  Index starts_stride = 0;
  Index starts_row_stride = 0;     ///< 0: all rows have the same
  const Scalar* scales = nullptr;  ///< NR values for each panel of quantized weights
  Index scales_stride = 0;

  Index count() const { return (outputs + Tile<Scalar>::columns - 1) / Tile<Scalar>::columns; }
};

/// An expert's panels p … p + count − 1, whose chains start from the biases, if any, or else from zero.
template <class Scalar, class Storage>
Panels<Scalar, Storage> panels_of(const PanelBank<Scalar, const Storage>& bank, Index expert, Index p,
                                  Index count) {
  Panels<Scalar, Storage> panels{bank.weights(p, expert), bank.panel_stride(), bank.in_features,
                                 bank.valid_columns(p, count), zero_row<Scalar>.data()};
  if (bank.has_bias) {
    panels.starts = bank.biases(p, expert);
    panels.starts_stride = bank.biases_stride();
  }
  if constexpr (is_quantized<Storage>) {
    panels.scales = bank.scales(p, expert);
    panels.scales_stride = bank.head_stride();
  }
  return panels;
}

/// The rows of a product and where they go: y_r = start + x_r · panel, or, where y has weights, y_r += g_r
/// (start + x_r · panel), where the first row that goes to a place overwrites what it held. Rows of y without
/// weights stand in their order; chains of rows with weights always have a start.
template <class Scalar>
struct ProductRows {
  Rows<const Scalar> x;
  Rows<Scalar> y;
  const unsigned char* is_first = nullptr;     ///< of each row; null without weights
  Index panel_stride = Tile<Scalar>::columns;  ///< of y, from what a panel gives to the next

  Scalar* output(Index r, Index panel) const { return y.row(r) + panel * panel_stride; }
  const Scalar* addend(Index r, Index panel) const {
    return is_first[r] != 0 ? zero_row<Scalar>.data() : output(r, panel);
  }
  /// Without the rows before `row`.
  ProductRows from(Index row) const {
    return {x.from(row), y.from(row), is_first != nullptr ? is_first + row : nullptr, panel_stride};
  }
};

/// How far ahead of itself a tile of few rows asks for weights, in steps of depth, of which the tile reads
/// `panels` panels' rows. As many bytes in all as are on their way at a time.
template <class Scalar, class Storage>
constexpr Index steps_ahead(int panels) {
  constexpr Index bytes = 3072;
  constexpr Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Storage));
  return (std::max<Index>)(bytes / (panels * row_bytes), 1);
}

/// Rows r … r + Count − 1 times the Width panels from `panel` on. A full tile asks for Lines lines from
/// `ahead` on at every prefetch interval, as far as `ahead_end`, and returns how far it came. One of fewer
/// rows waits for its own weights, which it asks for, and at the end of its panels for those of the next: a
/// core that prefetches by itself stops at every page. Packets: of a panel's columns, the first; 0: all.
template <int Count, int Width, int Lines, int Packets = 0, class Scalar, class Storage>
const char* multiply_tile(const ProductRows<Scalar>& rows, Index r, const Panels<Scalar, Storage>& panels,
                          Index panel, const char* ahead = nullptr, const char* ahead_end = nullptr) {
  constexpr int packets = Packets > 0 ? Packets : Tile<Scalar>::packets;
  constexpr int size = PacketOf<Scalar>::size;
  const Scalar* x[Count];
  Packet<Scalar> sums[Count][Width][packets];
  MEO_UNROLL_ALL
  for (int i = 0; i < Count; ++i) x[i] = rows.x.row(r + i);
  const bool begins = panels.starts != nullptr;
  const Scalar* start = begins ? panels.starts + r * panels.starts_row_stride + panel * panels.starts_stride
                               : rows.output(r, panel);
  const Index to_next_panel = begins ? panels.starts_stride : rows.panel_stride;
  const Index to_next_row = begins ? panels.starts_row_stride : rows.y.stride;
  MEO_UNROLL_ALL
  for (int i = 0; i < Count; ++i) {
    MEO_UNROLL_ALL
    for (int w = 0; w < Width; ++w) {
      MEO_UNROLL_ALL
      for (int p = 0; p < packets; ++p) sums[i][w][p] = load<Scalar>(start + w * to_next_panel + p * size);
    }
    start += to_next_row;
  }
  const Storage* weights_at = panels.first + panel * panels.stride;
  const Scalar* const scales = panels.scales + panel * panels.scales_stride;
  constexpr int columns = Tile<Scalar>::columns;
  const Index depth = panels.depth;
  constexpr Index steps = steps_ahead<Scalar, Storage>(Width);
  Index to_ahead = steps * columns;  // from the weights of a step to those that it asks for
  const auto prefetch_weights = [&](Index k) MEO_INLINE_LAMBDA {
    if (k + steps == depth) to_ahead += Width * panels.stride - depth * columns;
    MEO_UNROLL_ALL
    for (int w = 0; w < Width; ++w) {
      MEO_UNROLL_ALL
      for (int c = 0; c < packets * size; c += static_cast<int>(line_size<Storage>))
        prefetch_near(weights_at + to_ahead + w * panels.stride + c);
    }
  };
  const auto add_products = [&](Index k) MEO_INLINE_LAMBDA {
    if constexpr (Count < Tile<Scalar>::rows) prefetch_weights(k);
    MEO_UNROLL_ALL
    for (int w = 0; w < Width; ++w) {
      Packet<Scalar> weights[packets];
      MEO_UNROLL_ALL
      for (int p = 0; p < packets; ++p) {
        weights[p] = in_register<Scalar>(load_weights<Scalar>(weights_at + w * panels.stride + p * size,
                                                              scales, w * panels.scales_stride + p * size));
      }
      MEO_UNROLL_ALL
      for (int i = 0; i < Count; ++i) {
        const Packet<Scalar> activation = broadcast<Scalar>(x[i][k]);
        MEO_UNROLL_ALL
        for (int p = 0; p < packets; ++p) sums[i][w][p] = multiply_add(activation, weights[p], sums[i][w][p]);
      }
    }
    weights_at += columns;
  };
  Index k = 0;
  if constexpr (Lines > 0) {
    constexpr Index interval = prefetch_interval<Scalar>;
    for (; k + interval <= depth; k += interval) {
      for (int line = 0; line < Lines; ++line) prefetch(ahead + line * PrefetchQueue::line_bytes);
      ahead = (std::min)(ahead + Lines * PrefetchQueue::line_bytes, ahead_end);
      MEO_UNROLL(8)
      for (Index step = 0; step < interval; ++step) add_products(k + step);
    }
    MEO_UNROLL(1)
    for (; k < depth; ++k) add_products(k);
  } else {
    MEO_UNROLL(4)
    for (; k < depth; ++k) add_products(k);
  }
  if (rows.y.weights == nullptr) {
    Scalar* y = rows.output(r, panel);
    MEO_UNROLL_ALL
    for (int i = 0; i < Count; ++i) {
      MEO_UNROLL_ALL
      for (int w = 0; w < Width; ++w) {
        MEO_UNROLL_ALL
        for (int p = 0; p < packets; ++p) store<Scalar>(y + w * rows.panel_stride + p * size, sums[i][w][p]);
      }
      y += rows.y.stride;
    }
    return ahead;
  }
  MEO_UNROLL_ALL
  for (int i = 0; i < Count; ++i) {
    const Packet<Scalar> weight = broadcast<Scalar>(rows.y.weights[r + i]);
    MEO_UNROLL_ALL
    for (int w = 0; w < Width; ++w) {
      Scalar* const y = rows.output(r + i, panel + w);
      const Scalar* const addend = rows.addend(r + i, panel + w);
      MEO_UNROLL_ALL
      for (int p = 0; p < packets; ++p) {
        store<Scalar>(y + p * size, multiply_add(weight, sums[i][w][p], load<Scalar>(addend + p * size)));
      }
    }
  }
  return ahead;
}

/// The same for the last panel where not all NR columns of it exist: by way of rows that have them. A
/// single row, which waits for weights, does not read packets without outputs: of 512 outputs in panels of 48
/// they are 6 %.
template <int Count, class Scalar, class Storage>
void multiply_edge(const ProductRows<Scalar>& rows, Index r, const Panels<Scalar, Storage>& panels,
                   Index panel) {
  constexpr Index columns = Tile<Scalar>::columns;
  const Index valid = panels.outputs - panel * columns;
  Scalar outputs[Count * columns] = {};
  for (Index i = 0; i < Count; ++i) {
    if (panels.starts == nullptr || (rows.y.weights != nullptr && rows.is_first[r + i] == 0))
      std::copy_n(rows.output(r + i, panel), valid, outputs + i * columns);
  }
  ProductRows<Scalar> whole = rows.from(r);
  whole.y = {outputs, columns, nullptr, whole.y.weights};
  whole.panel_stride = columns;
  Panels<Scalar, Storage> edge = panels;
  edge.first += panel * panels.stride;
  edge.scales += panel * panels.scales_stride;
  if (edge.starts != nullptr) edge.starts += r * panels.starts_row_stride + panel * panels.starts_stride;
  const auto multiply = [&]<int Packets>() { multiply_tile<Count, 1, 0, Packets>(whole, 0, edge, 0); };
  constexpr Index size = PacketOf<Scalar>::size;
  if constexpr (Count > 1) multiply.template operator()<0>();
  else if (valid <= size) multiply.template operator()<1>();
  else if (valid <= 2 * size) multiply.template operator()<2>();
  else multiply.template operator()<0>();
  for (Index i = 0; i < Count; ++i) std::copy_n(outputs + i * columns, valid, rows.output(r + i, panel));
}

/// A full tile, with what is ahead.
template <class Scalar, class Storage>
void multiply_full_tile(const ProductRows<Scalar>& rows, Index r, const Panels<Scalar, Storage>& panels,
                        Index panel, PrefetchQueue& ahead) {
  constexpr int count = Tile<Scalar>::rows;
  if constexpr (!stores_scalars<Scalar, Storage>) {  // one rate: each is a tile to compile
    multiply_tile<count, 1, 0>(rows, r, panels, panel);
  } else {
    run_ahead(ahead, [&]<int Lines>(const char* at, const char* end) {
      return multiply_tile<count, 1, Lines>(rows, r, panels, panel, at, end);
    });
  }
}

/// Panels that a tile of few rows takes at a time, so that it has enough independent chains.
constexpr int tile_width(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

/// Rows r … r + Count − 1 times all panels.
template <int Count, class Scalar, class Storage>
void multiply_rows(const ProductRows<Scalar>& rows, Index r, const Panels<Scalar, Storage>& panels,
                   PrefetchQueue& ahead) {
  constexpr int width = tile_width(Count);
  const Index full = panels.outputs / Tile<Scalar>::columns;
  Index panel = 0;
  if constexpr (width > 1) {
    for (; panel + width <= full; panel += width) multiply_tile<Count, width, 0>(rows, r, panels, panel);
  }
  for (; panel < full; ++panel) {
    if constexpr (Count < Tile<Scalar>::rows) multiply_tile<Count, 1, 0>(rows, r, panels, panel);
    else multiply_full_tile(rows, r, panels, panel, ahead);
  }
  if (panel < panels.count()) multiply_edge<Count>(rows, r, panels, panel);
}

/// The last rows of a product, fewer than a whole tile.
template <int Count, class Scalar, class Storage>
void multiply_last_rows(const ProductRows<Scalar>& rows, Index r, Index count,
                        const Panels<Scalar, Storage>& panels, PrefetchQueue& ahead) {
  if constexpr (Count > 0) {
    if (count == Count) multiply_rows<Count>(rows, r, panels, ahead);
    else multiply_last_rows<Count - 1>(rows, r, count, panels, ahead);
  }
}

/// Asks for the stored values that the chains of rows begin … end − 1 go on from.
template <class Scalar, class Storage>
void prefetch_starts(const ProductRows<Scalar>& rows, Index begin, Index end,
                     const Panels<Scalar, Storage>& panels) {
  constexpr Index columns = Tile<Scalar>::columns;
  for (Index panel = 0; panel < panels.count(); ++panel) {
    const Index count = (std::min)(columns, panels.outputs - panel * columns);
    for (Index r = begin; r < end; ++r) {
      const Scalar* const start = panels.starts != nullptr ? panels.starts + r * panels.starts_row_stride +
                                                                 panel * panels.starts_stride
                                                           : rows.output(r, panel);
      for (Index at = 0; at < count; at += line_size<Scalar>) prefetch(start + at);
    }
  }
}

/// y_r = start_r + x_r · panel for `count` rows and all panels. A tile of rows is multiplied with every panel
/// before the next, so that x is read from far away once. Chains that go on from y would wait for it at every
/// tile, so the next tile's part of it is on its way meanwhile: backward takes 1 to 2 % less (Zen 4).
template <class Scalar, class Storage>
void multiply_panels(const ProductRows<Scalar>& rows, Index count, const Panels<Scalar, Storage>& panels,
                     PrefetchQueue& ahead) {
  constexpr int tile_rows = Tile<Scalar>::rows;
  Index r = 0;
  for (; r + tile_rows <= count; r += tile_rows) {
    if (panels.starts == nullptr || panels.starts_row_stride > 0)
      prefetch_starts(rows, r + tile_rows, (std::min)(r + 2 * tile_rows, count), panels);
    multiply_rows<tile_rows>(rows, r, panels, ahead);
  }
  multiply_last_rows<tile_rows - 1>(rows, r, count - r, panels, ahead);
}

/// Prefetch intervals that a product of `rows` rows has.
template <class Scalar, class Storage>
Index prefetch_intervals(Index rows, const Panels<Scalar, Storage>& panels) {
  const Index tiles = rows / Tile<Scalar>::rows * (panels.outputs / Tile<Scalar>::columns);
  return tiles * (panels.depth / prefetch_interval<Scalar>);
}

}  // namespace meo::detail

#pragma once

/// The product of rows of activations with panels of weights, y_r = start_r + x_r · panel, accumulated in
/// registers.
///
/// Every output is one chain of multiply-adds over the inputs in their order, whatever tile its row falls in,
/// and a chain cut at any depth goes on from the stored value without a change of bits. That is why results
/// do not depend on the number of threads, on block sizes, or on what else is in a batch.

#include <algorithm>
#include <type_traits>

#include <meo/kernels/packet.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/prefetch.hpp>
#include <meo/kernels/unroll.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// Panels whose outputs lie side by side, and where their chains start.
template <class Scalar>
struct Panels {
  const Scalar* first;  ///< depth × NR
  Index stride;         ///< from a panel to the next
  Index depth;
  Index outputs;         ///< columns that exist; only the last panel may have fewer than NR
  const Scalar* starts;  ///< NR values for each panel; null: chains go on from what y holds
  Index starts_stride = 0;

  Index count() const { return (outputs + Tile<Scalar>::columns - 1) / Tile<Scalar>::columns; }
};

/// An expert's panels p … p + count − 1, whose chains start from the biases, if any, or else from zero.
template <class Scalar>
Panels<Scalar> panels_of(const PanelBank<Scalar, const Scalar>& bank, Index expert, Index p, Index count) {
  const Scalar* const first = bank.panel(p, expert);
  const Index stride = bank.panel_stride(), outputs = bank.valid_columns(p, count);
  if (!bank.has_bias) return {first, stride, bank.in_features, outputs, zero_row<Scalar>.data()};
  return {first + Tile<Scalar>::columns, stride, bank.in_features, outputs, first, stride};
}

/// y_r = start + x_r · panel. Row r is x's row r, or gather[r] where there is a gather.
template <class Scalar>
struct StoreRows {
  static constexpr bool combines = false;
  const Scalar* x;
  Index x_stride;
  Scalar* y;
  Index y_stride;
  const Index* gather = nullptr;  ///< null: all rows in their order

  const Scalar* input(Index r) const { return x + (gather != nullptr ? gather[r] : r) * x_stride; }
  Scalar* output(Index r, Index panel) const { return y + r * y_stride + panel * Tile<Scalar>::columns; }
};

/// y_t += g_r (start + x_r · panel) with t = tokens[r]; the first row of a token overwrites what y_t held.
/// Row r is x's row r, or gather[r] where there is a gather.
template <class Scalar>
struct CombineRows {
  static constexpr bool combines = true;
  const Scalar* x;
  Index x_stride;
  Scalar* y;
  Index y_stride;
  const Index* gather;
  const Index* tokens;
  const Scalar* weights;
  const unsigned char* is_first;

  const Scalar* input(Index r) const { return x + (gather != nullptr ? gather[r] : r) * x_stride; }
  Scalar* output(Index r, Index panel) const {
    return y + tokens[r] * y_stride + panel * Tile<Scalar>::columns;
  }
  const Scalar& weight(Index r) const { return weights[r]; }
  const Scalar* addend(Index r, Index panel) const {
    return is_first[r] != 0 ? zero_row<Scalar>.data() : output(r, panel);
  }
};

/// A packet of a row at the right edge, where only `valid` of its scalars exist.
template <class Scalar>
Packet<Scalar> load_edge(const Scalar* from, Index valid) {
  Scalar values[PacketOf<Scalar>::size];
  for (Index i = 0; i < PacketOf<Scalar>::size; ++i) values[i] = i < valid ? from[i] : Scalar(0);
  return load<Scalar>(values);
}

template <class Scalar>
void store_edge(Scalar* to, const Packet<Scalar>& packet, Index valid) {
  Scalar values[PacketOf<Scalar>::size];
  store<Scalar>(values, packet);
  for (Index i = 0; i < PacketOf<Scalar>::size && i < valid; ++i) to[i] = values[i];
}

/// Rows r … r + Count − 1 times the Width panels from `panel` on. Asks for Lines lines from `ahead` on at
/// every prefetch interval, as far as `ahead_end`, and returns how far it came. With IsEdge, Width is 1 and
/// not all NR columns of the panel exist.
template <int Count, int Width, int Lines, bool IsEdge = false, class Scalar, class Rows>
MEO_INLINE const char* multiply_tile(const Rows& rows, Index r, const Panels<Scalar>& panels, Index panel,
                                     const char* ahead = nullptr, const char* ahead_end = nullptr) {
  static_assert(Width == 1 || !IsEdge);
  constexpr int packets = Tile<Scalar>::packets;
  constexpr int size = PacketOf<Scalar>::size;
  const Index columns = panels.outputs - panel * Tile<Scalar>::columns;  // of an edge
  const auto load_columns = [&](const Scalar* from, int p) MEO_INLINE_LAMBDA {
    if constexpr (IsEdge) return load_edge<Scalar>(from + p * size, columns - p * size);
    else return load<Scalar>(from + p * size);
  };
  const Scalar* x[Count];
  Packet<Scalar> sums[Count][Width][packets];
  unroll<Count>([&](auto i) MEO_INLINE_LAMBDA {
    x[i] = rows.input(r + i);
    unroll<Width>([&](auto w) MEO_INLINE_LAMBDA {
      const Scalar* const start = panels.starts != nullptr
                                      ? panels.starts + (panel + w) * panels.starts_stride
                                      : rows.output(r + i, panel + w);
      unroll<packets>([&](auto p) MEO_INLINE_LAMBDA { sums[i][w][p] = load_columns(start, p); });
    });
  });
  const Scalar* weights_at = panels.first + panel * panels.stride;
  const auto add_products = [&](Index k) MEO_INLINE_LAMBDA {
    unroll<Width>([&](auto w) MEO_INLINE_LAMBDA {
      Packet<Scalar> weights[packets];
      unroll<packets>([&](auto p) MEO_INLINE_LAMBDA {
        weights[p] = load<Scalar>(weights_at + w * panels.stride + p * size);
        keep_in_register<Scalar>(weights[p]);
      });
      unroll<Count>([&](auto i) MEO_INLINE_LAMBDA {
        const Packet<Scalar> activation = broadcast<Scalar>(x[i][k]);
        unroll<packets>([&](auto p) MEO_INLINE_LAMBDA {
          sums[i][w][p] = multiply_add(activation, weights[p], sums[i][w][p]);
        });
      });
    });
    weights_at += Tile<Scalar>::columns;
  };
  const Index depth = panels.depth;
  Index k = 0;
  if constexpr (Lines > 0) {
    constexpr Index interval = prefetch_interval<Scalar>;
    for (; k + interval <= depth; k += interval) {
      for (int line = 0; line < Lines; ++line) prefetch(ahead + line * PrefetchQueue::line_bytes);
      ahead = std::min(ahead + Lines * PrefetchQueue::line_bytes, ahead_end);
      MEO_UNROLL(8)
      for (Index step = 0; step < interval; ++step) add_products(k + step);
    }
  }
  MEO_UNROLL(4)
  for (; k < depth; ++k) add_products(k);
  unroll<Count>([&](auto i) MEO_INLINE_LAMBDA {
    unroll<Width>([&](auto w) MEO_INLINE_LAMBDA {
      Scalar* const y = rows.output(r + i, panel + w);
      unroll<packets>([&](auto p) MEO_INLINE_LAMBDA {
        Packet<Scalar>& sum = sums[i][w][p];
        if constexpr (Rows::combines) {
          sum = multiply_add(broadcast<Scalar>(rows.weight(r + i)), sum,
                             load_columns(rows.addend(r + i, panel + w), p));
        }
        if constexpr (IsEdge) store_edge<Scalar>(y + p * size, sum, columns - p * size);
        else store<Scalar>(y + p * size, sum);
      });
    });
  });
  return ahead;
}

/// A full tile, with what is ahead.
template <class Scalar, class Rows>
void multiply_full_tile(const Rows& rows, Index r, const Panels<Scalar>& panels, Index panel,
                        PrefetchQueue& ahead) {
  constexpr int count = Tile<Scalar>::rows;
  const auto tile = [&](auto lines) {
    ahead.advance(multiply_tile<count, 1, lines>(rows, r, panels, panel, ahead.at(), ahead.end()));
  };
  switch (ahead.lines()) {
    case 0:
      multiply_tile<count, 1, 0>(rows, r, panels, panel);
      break;
    case 1:
      tile(std::integral_constant<int, 1>{});
      break;
    case 2:
      tile(std::integral_constant<int, 2>{});
      break;
    default:
      tile(std::integral_constant<int, PrefetchQueue::max_lines>{});
  }
}

/// Panels that a tile of few rows takes at a time, so that it has enough independent chains.
constexpr int tile_width(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

/// Rows r … r + Count − 1 times all panels.
template <int Count, class Scalar, class Rows>
void multiply_rows(const Rows& rows, Index r, const Panels<Scalar>& panels, PrefetchQueue& ahead) {
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
  if (panel < panels.count()) multiply_tile<Count, 1, 0, true>(rows, r, panels, panel);
}

/// The last rows of a product, fewer than a whole tile.
template <int Count, class Scalar, class Rows>
void multiply_last_rows(const Rows& rows, Index r, Index count, const Panels<Scalar>& panels,
                        PrefetchQueue& ahead) {
  if constexpr (Count > 0) {
    if (count == Count) multiply_rows<Count>(rows, r, panels, ahead);
    else multiply_last_rows<Count - 1>(rows, r, count, panels, ahead);
  }
}

/// Asks for the stored values that the chains of rows begin … end − 1 go on from.
template <class Scalar, class Rows>
void prefetch_outputs(const Rows& rows, Index begin, Index end, const Panels<Scalar>& panels) {
  const Index bytes = panels.outputs * static_cast<Index>(sizeof(Scalar));
  for (Index r = begin; r < end; ++r) {
    const char* const output = reinterpret_cast<const char*>(rows.output(r, 0));
    for (Index at = 0; at < bytes; at += PrefetchQueue::line_bytes) prefetch(output + at);
  }
}

/// y_r = start_r + x_r · panel for `count` rows and all panels. A tile of rows is multiplied with every panel
/// before the next, so that x is read from far away once. Chains that go on from y would wait for it at every
/// tile, so the next tile's part of it is on its way meanwhile: backward takes 1 to 2 % less (Zen 4).
template <class Scalar, class Rows>
void multiply_panels(const Rows& rows, Index count, const Panels<Scalar>& panels, PrefetchQueue& ahead) {
  constexpr int tile_rows = Tile<Scalar>::rows;
  Index r = 0;
  for (; r + tile_rows <= count; r += tile_rows) {
    if (panels.starts == nullptr)
      prefetch_outputs(rows, r + tile_rows, std::min(r + 2 * tile_rows, count), panels);
    multiply_rows<tile_rows>(rows, r, panels, ahead);
  }
  multiply_last_rows<tile_rows - 1>(rows, r, count - r, panels, ahead);
}

/// Steps at which a product of `rows` rows prefetches.
template <class Scalar>
Index prefetch_steps(Index rows, const Panels<Scalar>& panels) {
  const Index tiles = rows / Tile<Scalar>::rows * (panels.outputs / Tile<Scalar>::columns);
  return tiles * (panels.depth / prefetch_interval<Scalar>);
}

}  // namespace meo::detail

#pragma once

/// The product of rows of activations with one panel of weights, y_r = start_r + x_r · panel, accumulated in
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

/// y_r = start + x_r · panel. Row r is x's row r, or gather[r] where there is a gather.
template <class Scalar>
struct StoreRows {
  static constexpr bool combines = false;
  const Scalar* x;
  Index x_stride;
  Scalar* y;
  Index y_stride;
  const Scalar* starts;           ///< the NR values that every chain starts from; null: y's own
  const Index* gather = nullptr;  ///< null: all rows in their order

  const Scalar* input(Index r) const { return x + (gather != nullptr ? gather[r] : r) * x_stride; }
  const Scalar* start(Index r) const { return starts != nullptr ? starts : output(r); }
  Scalar* output(Index r) const { return y + r * y_stride; }
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
  const Scalar* starts;
  const Index* gather;
  const Index* tokens;
  const Scalar* weights;
  const unsigned char* is_first;

  const Scalar* input(Index r) const { return x + (gather != nullptr ? gather[r] : r) * x_stride; }
  const Scalar* start(Index) const { return starts; }
  Scalar* output(Index r) const { return y + tokens[r] * y_stride; }
  const Scalar& weight(Index r) const { return weights[r]; }
  const Scalar* addend(Index r) const { return is_first[r] != 0 ? zero_row<Scalar>.data() : output(r); }
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

/// Rows r … r + Count − 1 times a panel of `depth` rows, of whose NR columns the first `columns` exist.
/// Asks for Lines lines from `ahead` on at every prefetch interval, as far as `ahead_end`, and returns how
/// far it came.
template <int Count, int Lines, class Scalar, class Rows>
MEO_INLINE const char* multiply_tile(const Rows& rows, Index r, const Scalar* panel, Index depth,
                                     Index columns, const char* ahead = nullptr,
                                     const char* ahead_end = nullptr) {
  constexpr int packets = Tile<Scalar>::packets;
  constexpr int size = PacketOf<Scalar>::size;
  const bool is_full = columns == Tile<Scalar>::columns;
  const auto load_columns = [&](const Scalar* from, int p) MEO_INLINE_LAMBDA {
    return is_full ? load<Scalar>(from + p * size) : load_edge<Scalar>(from + p * size, columns - p * size);
  };
  const Scalar* x[Count];
  Packet<Scalar> sums[Count][packets];
  unroll<Count>([&](auto i) MEO_INLINE_LAMBDA {
    x[i] = rows.input(r + i);
    unroll<packets>([&](auto p) MEO_INLINE_LAMBDA { sums[i][p] = load_columns(rows.start(r + i), p); });
  });
  const auto add_products = [&](Index k) MEO_INLINE_LAMBDA {
    Packet<Scalar> weights[packets];
    unroll<packets>([&](auto p) MEO_INLINE_LAMBDA { weights[p] = load<Scalar>(panel + p * size); });
    unroll<Count>([&](auto i) MEO_INLINE_LAMBDA {
      const Packet<Scalar> activation = broadcast<Scalar>(x[i][k]);
      unroll<packets>(
          [&](auto p) MEO_INLINE_LAMBDA { sums[i][p] = multiply_add(activation, weights[p], sums[i][p]); });
    });
    panel += Tile<Scalar>::columns;
  };
  Index k = 0;
  if constexpr (Lines > 0) {
    for (; k + prefetch_interval <= depth; k += prefetch_interval) {
      for (int line = 0; line < Lines; ++line) prefetch(ahead + line * PrefetchQueue::line_bytes);
      ahead = std::min(ahead + Lines * PrefetchQueue::line_bytes, ahead_end);
      for (Index step = 0; step < prefetch_interval; ++step) add_products(k + step);
    }
  }
  for (; k < depth; ++k) add_products(k);
  unroll<Count>([&](auto i) MEO_INLINE_LAMBDA {
    Scalar* const y = rows.output(r + i);
    unroll<packets>([&](auto p) MEO_INLINE_LAMBDA {
      if constexpr (Rows::combines) {
        sums[i][p] = multiply_add(broadcast<Scalar>(rows.weight(r + i)), sums[i][p],
                                  load_columns(rows.addend(r + i), p));
      }
      if (is_full) store<Scalar>(y + p * size, sums[i][p]);
      else store_edge<Scalar>(y + p * size, sums[i][p], columns - p * size);
    });
  });
  return ahead;
}

/// The last rows of a product, fewer than a whole tile.
template <int Count, class Scalar, class Rows>
void multiply_last_rows(const Rows& rows, Index r, Index count, const Scalar* panel, Index depth,
                        Index columns) {
  if constexpr (Count > 0) {
    if (count == Count) multiply_tile<Count, 0, Scalar>(rows, r, panel, depth, columns);
    else multiply_last_rows<Count - 1, Scalar>(rows, r, count, panel, depth, columns);
  }
}

/// y_r = start_r + x_r · panel for `count` rows. `panel`: depth × NR; `columns` of its NR columns are
/// written. Meanwhile asks for what is `ahead`.
template <class Scalar, class Rows>
void multiply_panel(const Rows& rows, Index count, const Scalar* panel, Index depth, Index columns,
                    PrefetchQueue& ahead) {
  constexpr int tile_rows = Tile<Scalar>::rows;
  Index r = 0;
  for (; r + tile_rows <= count; r += tile_rows) {
    const auto tile = [&](auto lines) {
      ahead.advance(
          multiply_tile<tile_rows, lines, Scalar>(rows, r, panel, depth, columns, ahead.at(), ahead.end()));
    };
    switch (ahead.lines()) {
      case 0:
        multiply_tile<tile_rows, 0, Scalar>(rows, r, panel, depth, columns);
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
  multiply_last_rows<tile_rows - 1, Scalar>(rows, r, count - r, panel, depth, columns);
}

/// Steps at which a product of `rows` rows prefetches.
template <class Scalar>
Index prefetch_steps(Index rows, Index depth) {
  return rows / Tile<Scalar>::rows * (depth / prefetch_interval);
}

}  // namespace meo::detail

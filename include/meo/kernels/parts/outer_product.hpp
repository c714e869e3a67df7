#pragma once

/// The gradient of a panel of weights, Σ_t x_t ⊗ dy_t over tokens t, accumulated in registers: the same tile
/// as the product's, with MR inputs in place of MR rows and a step for every token instead of every input.
///
/// Both operands are packed, x in tiles of MR inputs and dy in panels of NR outputs, so that the tile reads
/// two streams: the rows of a user's matrix are often a multiple of 4 KiB apart, and a column of them would
/// fall into few sets of an L1.
///
/// Every element is one chain of multiply-adds over the tokens in their order.

#include <algorithm>

#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/parts/prefetch.hpp>
#include <meo/kernels/parts/unroll.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// `inputs` inputs in whole tiles.
template <class Scalar>
constexpr Index padded_inputs(Index inputs) {
  constexpr Index rows = Tile<Scalar>::rows;
  return (inputs + rows - 1) / rows * rows;
}

/// packed[tile][t][i] = x_t[in + tile · MR + i] for `count` rows from `first` on and `inputs` inputs from
/// `in` on; undefined beyond. packed: count × padded_inputs.
template <class Scalar>
void pack_inputs(const Rows<const Scalar>& x, Index first, Index count, Index in, Index inputs,
                 Scalar* packed) {
  constexpr Index rows = Tile<Scalar>::rows;
  for (Index d = 0; d < inputs; d += rows) {
    const Index valid = (std::min)(rows, inputs - d);
    for (Index t = 0; t < count; ++t, packed += rows) {
      const Scalar* const from = x.row(first + t) + in + d;
      if (valid == rows) std::copy_n(from, rows, packed);
      else std::copy_n(from, valid, packed);
    }
  }
}

/// packed[t][c] = weight_t · rows_t[c] for `count` rows from `first` on; zero in the columns from `columns`
/// to NR.
template <class Scalar>
void pack_columns(const Rows<const Scalar>& rows, Index first, Index count, Index columns, Scalar* packed) {
  constexpr Index width = Tile<Scalar>::columns;
  for (Index t = 0; t < count; ++t, packed += width) {
    const Scalar* const from = rows.row(first + t);
    if (t + pack_ahead < count) prefetch_row(rows.row(first + t + pack_ahead), columns);
    if (columns == width) std::copy_n(from, width, packed);
    else std::fill(std::copy_n(from, columns, packed), packed + width, Scalar(0));
    if (rows.weights == nullptr) continue;
    for (Index c = 0; c < columns; ++c) packed[c] = rows.weights[first + t] * packed[c];
  }
}

/// out[i] (+)= Σ_t x_t[i] · dy_t for Count inputs of a packed tile; dy: tokens × NR, packed. Adds if `add`.
/// Asks for Lines lines from `ahead` on at every prefetch interval, as far as `ahead_end`, and returns how
/// far it came.
template <int Count, int Lines, class Scalar>
const char* outer_product_tile(const Scalar* x, const Scalar* dy, Index tokens, bool add, Scalar* out,
                               const char* ahead = nullptr, const char* ahead_end = nullptr) {
  constexpr int packets = Tile<Scalar>::packets;
  constexpr int size = PacketOf<Scalar>::size;
  Packet<Scalar> sums[Count][packets];
  MEO_UNROLL_ALL
  for (int i = 0; i < Count; ++i) {
    MEO_UNROLL_ALL
    for (int p = 0; p < packets; ++p)
      sums[i][p] = add ? load<Scalar>(out + (i * packets + p) * size) : broadcast<Scalar>(Scalar(0));
  }
  const auto add_token = [&]() MEO_INLINE_LAMBDA {
    Packet<Scalar> gradients[packets];
    MEO_UNROLL_ALL
    for (int p = 0; p < packets; ++p) {
      gradients[p] = in_register<Scalar>(load<Scalar>(dy + p * size));
    }
    MEO_UNROLL_ALL
    for (int i = 0; i < Count; ++i) {
      const Packet<Scalar> input = broadcast<Scalar>(x[i]);
      MEO_UNROLL_ALL
      for (int p = 0; p < packets; ++p) sums[i][p] = multiply_add(input, gradients[p], sums[i][p]);
    }
    x += Tile<Scalar>::rows;
    dy += Tile<Scalar>::columns;
  };
  Index t = 0;
  if constexpr (Lines > 0) {
    constexpr Index interval = prefetch_interval<Scalar>;
    for (; t + interval <= tokens; t += interval) {
      for (int line = 0; line < Lines; ++line) prefetch(ahead + line * PrefetchQueue::line_bytes);
      ahead = (std::min)(ahead + Lines * PrefetchQueue::line_bytes, ahead_end);
      MEO_UNROLL(8)
      for (Index step = 0; step < interval; ++step) add_token();
    }
    MEO_UNROLL(1)
    for (; t < tokens; ++t) add_token();
  } else {
    MEO_UNROLL(8)
    for (; t < tokens; ++t) add_token();
  }
  MEO_UNROLL_ALL
  for (int i = 0; i < Count; ++i) {
    MEO_UNROLL_ALL
    for (int p = 0; p < packets; ++p) store<Scalar>(out + (i * packets + p) * size, sums[i][p]);
  }
  return ahead;
}

/// The last inputs of a panel, fewer than a whole tile.
template <int Count, class Scalar>
void outer_product_last(const Scalar* x, Index inputs, const Scalar* dy, Index tokens, bool add,
                        Scalar* out) {
  if constexpr (Count > 0) {
    if (inputs == Count) outer_product_tile<Count, 0>(x, dy, tokens, add, out);
    else outer_product_last<Count - 1>(x, inputs, dy, tokens, add, out);
  }
}

/// out[d] (+)= Σ_t x_t[d] · dy_t for `inputs` inputs. x: padded_inputs × tokens, packed; dy: tokens × NR,
/// packed; out: inputs × NR. Asks for what is ahead.
template <class Scalar>
void outer_product(const Scalar* x, Index inputs, const Scalar* dy, Index tokens, bool add, Scalar* out,
                   PrefetchQueue& ahead) {
  constexpr int rows = Tile<Scalar>::rows;
  constexpr Index columns = Tile<Scalar>::columns;
  Index d = 0;
  for (; d + rows <= inputs; d += rows) {
    ahead.burst();
    run_ahead(ahead, [&]<int Lines>(const char* at, const char* end) {
      return outer_product_tile<rows, Lines>(x + d * tokens, dy, tokens, add, out + d * columns, at, end);
    });
  }
  outer_product_last<rows - 1>(x + d * tokens, inputs - d, dy, tokens, add, out + d * columns);
}

/// The same for the panel's row of biases: out (+)= Σ_t dy_t.
template <class Scalar>
void column_sums(const Scalar* dy, Index tokens, bool add, Scalar* out) {
  constexpr Index columns = Tile<Scalar>::columns;
  Sum<Scalar> sums[columns];
  for (Index c = 0; c < columns; ++c) sums[c] = add ? static_cast<Sum<Scalar>>(out[c]) : Sum<Scalar>(0);
  for (Index t = 0; t < tokens; ++t) {
    for (Index c = 0; c < columns; ++c) sums[c] += static_cast<Sum<Scalar>>(dy[t * columns + c]);
  }
  for (Index c = 0; c < columns; ++c) out[c] = static_cast<Scalar>(sums[c]);
}

}  // namespace meo::detail

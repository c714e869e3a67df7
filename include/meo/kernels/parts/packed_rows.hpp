#pragma once

/// The product of packed rows with panels, for rows that many panels pass over again and again, a slice of
/// their inputs at a time.
///
/// Where x lies, a slice is as many short stretches as there are rows, of which a cache holds few when their
/// distances are alike, and which no hardware foresees. Packed, a slice is one stretch, in the order in which
/// tiles read it:
///
///     slice of inputs ▸ tile of MR rows ▸ cache line of inputs ▸ row of the tile ▸ input
///
/// Rows beyond the last whole tile stand in whole cache lines one after another, and are multiplied as rows
/// anywhere are. What is left of a line is read by nobody.

#include <algorithm>

#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/multiply.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/parts/prefetch.hpp>
#include <meo/kernels/parts/unroll.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Scalars that the slices of `rows` rows take.
template <class Scalar>
Index packed_rows_size(Index rows, Index in_features, Index slice) {
  const Index last = in_features % slice;
  return rows * (in_features / slice * whole_lines<Scalar>(slice) + whole_lines<Scalar>(last));
}

/// Packs a slice of `count` rows, `inputs` inputs from x's first column on. packed: count times the inputs in
/// whole lines.
template <class Scalar>
void pack_rows(const Rows<const Scalar>& x, Index count, Index inputs, Scalar* packed) {
  constexpr Index line = line_size<Scalar>, tile_rows = Tile<Scalar>::rows;
  Index first = 0;
  for (; first + tile_rows <= count; first += tile_rows) {
    for (Index input = 0; input < inputs; input += line) {
      const Index size = (std::min)(line, inputs - input);
      for (Index r = 0; r < tile_rows; ++r, packed += line)
        std::copy_n(x.row(first + r) + input, size, packed);
    }
  }
  for (; first < count; ++first, packed += whole_lines<Scalar>(inputs))
    std::copy_n(x.row(first), inputs, packed);
}

/// The largest divisor of `line` that is at most `most`.
constexpr Index divisor_of_line(Index line, Index most) {
  while (line % most != 0) --most;
  return most;
}

/// A whole tile, packed at `x`, times one panel; see multiply_tile. The next tile is on its way to L1
/// meanwhile.
template <int Lines, class Scalar>
const char* multiply_packed_tile(const Scalar* x, const ProductRows<Scalar>& rows, Index r,
                                 const Panels<Scalar>& panels, Index panel, const char* ahead = nullptr,
                                 const char* ahead_end = nullptr) {
  constexpr int packets = Tile<Scalar>::packets, count = Tile<Scalar>::rows;
  constexpr int size = PacketOf<Scalar>::size;
  constexpr Index line = line_size<Scalar>, interval = prefetch_interval<Scalar>;
  // As many at a time as have 96 multiply-adds: in shorter loops their ends count.
  constexpr Index least = (std::min)((std::max<Index>)(96 / (count * packets), 1), line);
  constexpr Index steps =
      divisor_of_line(line, std::clamp<Index>(Lines > 0 ? interval / Lines : 0, least, line));
  Packet<Scalar> sums[count][packets];
  const Scalar* start = panels.starts + r * panels.starts_row_stride + panel * panels.starts_stride;
  MEO_UNROLL_ALL
  for (int i = 0; i < count; ++i) {
    MEO_UNROLL_ALL
    for (int p = 0; p < packets; ++p)
      sums[i][p] = load<Scalar>(start + i * panels.starts_row_stride + p * size);
  }
  const Scalar* weights_at = panels.first + panel * panels.stride;
  const auto add_products = [&](Index k) MEO_INLINE_LAMBDA {
    Packet<Scalar> weights[packets];
    MEO_UNROLL_ALL
    for (int p = 0; p < packets; ++p) weights[p] = in_register<Scalar>(load<Scalar>(weights_at + p * size));
    MEO_UNROLL_ALL
    for (int i = 0; i < count; ++i) {
      const Packet<Scalar> activation = broadcast<Scalar>(x[i * line + k]);
      MEO_UNROLL_ALL
      for (int p = 0; p < packets; ++p) sums[i][p] = multiply_add(activation, weights[p], sums[i][p]);
    }
    weights_at += Tile<Scalar>::columns;
  };
  const Index to_next_tile = count * whole_lines<Scalar>(panels.depth);
  Index left = panels.depth;
  for (; left >= line; left -= line) {
    MEO_UNROLL_ALL
    for (int i = 0; i < count; ++i) prefetch_near(x + to_next_tile + i * line);
    for (Index at = 0; at < line; at += steps) {
      if constexpr (Lines > 0) {
        constexpr Index lines_at_once = (std::max<Index>)(Lines * steps / interval, 1);
        for (Index i = 0; i < lines_at_once; ++i) prefetch(ahead + i * PrefetchQueue::line_bytes);
        ahead = (std::min)(ahead + lines_at_once * PrefetchQueue::line_bytes, ahead_end);
      }
      MEO_UNROLL(8)
      for (Index step = 0; step < steps; ++step) add_products(at + step);
    }
    x += count * line;
  }
  MEO_UNROLL(1)
  for (Index k = 0; k < left; ++k) add_products(k);
  Scalar* y = rows.output(r, panel);
  MEO_UNROLL_ALL
  for (int i = 0; i < count; ++i) {
    MEO_UNROLL_ALL
    for (int p = 0; p < packets; ++p) store<Scalar>(y + p * size, sums[i][p]);
    y += rows.y.stride;
  }
  return ahead;
}

/// The same, with what is ahead.
template <class Scalar>
void multiply_packed_tile(const Scalar* x, const ProductRows<Scalar>& rows, Index r,
                          const Panels<Scalar>& panels, Index panel, PrefetchQueue& ahead) {
  switch (ahead.lines()) {
    case 0:
      multiply_packed_tile<0>(x, rows, r, panels, panel);
      break;
    case 1:
      ahead.advance(multiply_packed_tile<1>(x, rows, r, panels, panel, ahead.at(), ahead.end()));
      break;
    default:
      ahead.advance(multiply_packed_tile<4>(x, rows, r, panels, panel, ahead.at(), ahead.end()));
  }
}

/// Of a panel of which not all NR columns exist: by way of rows that have them.
template <class Scalar>
void multiply_packed_edge(const Scalar* x, const ProductRows<Scalar>& rows, Index r,
                          const Panels<Scalar>& panels, Index panel) {
  constexpr Index columns = Tile<Scalar>::columns, count = Tile<Scalar>::rows;
  Scalar outputs[count * columns];
  ProductRows<Scalar> whole{{}, {outputs, columns}};
  Panels<Scalar> edge = panels;
  edge.first += panel * panels.stride;
  edge.starts += r * panels.starts_row_stride + panel * panels.starts_stride;
  multiply_packed_tile<0>(x, whole, 0, edge, 0);
  for (Index i = 0; i < count; ++i)
    std::copy_n(outputs + i * columns, panels.outputs - panel * columns, rows.output(r + i, panel));
}

/// y_r = start_r + x_r · panel for `count` packed rows and all panels, whose chains always have a start; rows
/// of y without weights, in their order; rows.x is not looked at.
template <class Scalar>
void multiply_packed(const Scalar* packed, const ProductRows<Scalar>& rows, Index count,
                     const Panels<Scalar>& panels, PrefetchQueue& ahead) {
  constexpr Index tile_rows = Tile<Scalar>::rows;
  const Index stride = whole_lines<Scalar>(panels.depth);
  const Index full = panels.outputs / Tile<Scalar>::columns;
  Index r = 0;
  for (; r + tile_rows <= count; r += tile_rows) {
    const Scalar* const x = packed + r * stride;
    if (panels.starts_row_stride > 0)
      prefetch_starts(rows, r + tile_rows, (std::min)(r + 2 * tile_rows, count), panels);
    for (Index panel = 0; panel < full; ++panel) multiply_packed_tile(x, rows, r, panels, panel, ahead);
    if (full < panels.count()) multiply_packed_edge(x, rows, r, panels, full);
  }
  ProductRows<Scalar> last = rows.from(r);
  last.x = {packed + r * stride, stride};
  Panels<Scalar> from = panels;
  from.starts += r * panels.starts_row_stride;
  multiply_last_rows<tile_rows - 1>(last, Index{0}, count - r, from, ahead);
}

}  // namespace meo::detail

#pragma once

/// Panels turned on their side: from NR outputs by inputs, as the bank has them, to NR inputs by outputs, as
/// the gradient of x multiplies with them.

#include <algorithm>

#include <meo/kernels/packet.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/unroll.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// turned[c][r] = rows[r][c] for r < count and all NR columns c. rows: count × NR; turned: NR rows at a
/// distance of NR values, of which each gets `count`, at most NR.
template <class Scalar>
void transpose_tile(const Scalar* rows, Index count, Scalar* turned) {
  constexpr Index columns = Tile<Scalar>::columns;
  constexpr int size = PacketOf<Scalar>::size;
  Index r = 0;
  for (; r + size <= count; r += size) {
    for (Index c = 0; c < columns; c += size) {
      Packet<Scalar> block[size];
      unroll<size>([&](auto i) MEO_INLINE_LAMBDA { block[i] = load<Scalar>(rows + (r + i) * columns + c); });
      transpose(block);
      unroll<size>([&](auto i)
                       MEO_INLINE_LAMBDA { store<Scalar>(turned + (c + i) * columns + r, block[i]); });
    }
  }
  for (; r < count; ++r) {
    for (Index c = 0; c < columns; ++c) turned[c * columns + r] = rows[r * columns + c];
  }
}

/// Turns `count` rows of one panel. rows: count × NR; turned: ⌈count / NR⌉ panels at panel_stride, of which
/// the last has undefined columns where there are no rows.
template <class Scalar>
void transpose_rows(const Scalar* rows, Index count, Scalar* turned, Index panel_stride) {
  constexpr Index columns = Tile<Scalar>::columns;
  for (Index r = 0; r < count; r += columns, turned += panel_stride) {
    transpose_tile(rows + r * columns, std::min(columns, count - r), turned);
  }
}

}  // namespace meo::detail

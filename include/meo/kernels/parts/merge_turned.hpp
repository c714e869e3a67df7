#pragma once

/// Experts merged and turned on their side in one go: from panels of NR outputs by inputs, as the bank has
/// them, to panels of NR inputs by outputs, as the gradient of x multiplies with them.

#include <algorithm>

#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/merge.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/parts/unroll.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// sums[p][r] = Σ_{i < terms.count} g_i W_i[r][p …] for Rows rows and Packets packets of columns, from `at`
/// on.
template <int Rows, int Packets, class Scalar>
MEO_INLINE void merge_packets_of_rows(const MergeSource<Scalar>& source, const MergeTerms<Scalar>& terms,
                                      Index at, Packet<Scalar> (&sums)[Packets][Rows]) {
  constexpr int size = PacketOf<Scalar>::size;
  MEO_UNROLL_ALL
  for (int p = 0; p < Packets; ++p) {
    MEO_UNROLL_ALL
    for (int r = 0; r < Rows; ++r) sums[p][r] = broadcast<Scalar>(Scalar(0));
  }
  for (Index i = 0; i < terms.count; ++i) {
    const Scalar* const from = source.rows + terms.experts[i] * source.expert_stride + at;
    const Packet<Scalar> gate = broadcast<Scalar>(terms.weights[i]);
    MEO_UNROLL_ALL
    for (int p = 0; p < Packets; ++p) {
      MEO_UNROLL_ALL
      for (int r = 0; r < Rows; ++r) {
        const Scalar* const row = from + r * Tile<Scalar>::columns + p * size;
        sums[p][r] = multiply_add(gate, load<Scalar>(row), sums[p][r]);
      }
    }
  }
}

/// turned[c][r] = Σ_{i < terms.count} g_i W_i[r][c] for r < count, at most NR, and all NR columns c. source:
/// count × NR of each expert; turned: NR rows at a distance of NR values, of which each gets `count`.
template <class Scalar>
void merge_turned(MergeSource<Scalar> source, MergeTerms<Scalar> terms, Index count, Scalar* turned) {
  constexpr Index columns = Tile<Scalar>::columns;
  constexpr int size = PacketOf<Scalar>::size;
  // Packets of a row that are merged together: enough chains, as far as there are registers.
  constexpr int packets = size * Tile<Scalar>::packets < num_registers ? Tile<Scalar>::packets : 1;
  Index r = 0;
  for (; r + size <= count; r += size) {
    for (Index c = 0; c < columns; c += packets * size) {
      Packet<Scalar> sums[packets][size];
      merge_packets_of_rows(source, terms, r * columns + c, sums);
      MEO_UNROLL_ALL
      for (int p = 0; p < packets; ++p) {
        transpose(sums[p]);
        MEO_UNROLL_ALL
        for (int i = 0; i < size; ++i) store<Scalar>(turned + (c + p * size + i) * columns + r, sums[p][i]);
      }
    }
  }
  for (; r < count; ++r) {
    for (Index c = 0; c < columns; c += packets * size) {
      Packet<Scalar> sums[packets][1];
      merge_packets_of_rows(source, terms, r * columns + c, sums);
      Scalar values[packets * size];
      for (int p = 0; p < packets; ++p) store<Scalar>(values + p * size, sums[p][0]);
      for (Index i = 0; i < packets * size; ++i) turned[(c + i) * columns + r] = values[i];
    }
  }
}

}  // namespace meo::detail

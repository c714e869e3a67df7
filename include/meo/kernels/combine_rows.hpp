#pragma once

/// Outputs of experts that were computed elsewhere, combined as a dispatched product combines its own.

#include <algorithm>

#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// y_t += g_t o_t for `count` rows o of `columns` outputs, one after another; the first that goes to a row of
/// y, as is_first says of each, overwrites what it held. Gives the bits of a DispatchedProduct::combine that
/// computes o itself.
template <class Scalar>
void combine_rows(Rows<const Scalar> outputs, Index count, Index columns, const unsigned char* is_first,
                  Rows<Scalar> y) {
  constexpr Index size = PacketOf<Scalar>::size;
  const auto combine = [&](const Packet<Scalar>& weight, const Scalar* output, bool adds, Scalar* sum) {
    const Packet<Scalar> addend = adds ? load<Scalar>(sum) : broadcast<Scalar>(Scalar(0));
    store<Scalar>(sum, multiply_add(weight, load<Scalar>(output), addend));
  };
  for (Index r = 0; r < count; ++r) {
    const Scalar* const output = outputs.row(r);
    Scalar* const sum = y.row(r);
    const Packet<Scalar> weight = broadcast<Scalar>(y.weights[r]);
    const bool adds = is_first[r] == 0;
    Index c = 0;
    for (; c + size <= columns; c += size) combine(weight, output + c, adds, sum + c);
    if (c == columns) continue;
    // What is less than a packet goes by way of whole ones.
    Scalar last[2][size] = {};
    std::copy_n(output + c, columns - c, last[0]);
    std::copy_n(sum + c, columns - c, last[1]);
    combine(weight, last[0], adds, last[1]);
    std::copy_n(last[1], columns - c, sum + c);
  }
}

}  // namespace meo::detail

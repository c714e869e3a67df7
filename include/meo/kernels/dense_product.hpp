#pragma once

/// y = x Wᵀ + b with one expert of a bank, or y += x Wᵀ.

#include <meo/kernels/multiply.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// x: rows × in_features at x_stride; y: rows × out_features at y_stride, not overlapping x. With `add`, y +=
/// x Wᵀ and the bias is left out.
template <class Scalar>
void dense_product(const PanelBank<Scalar, const Scalar>& bank, Index expert, const Scalar* x, Index x_stride,
                   Index rows, Scalar* y, Index y_stride, bool add = false) {
  if (rows == 0) return;  // x and y may be null then
  constexpr Index columns = Tile<Scalar>::columns;
  parallel_ranges(bank.num_panels(), max_threads(), [&](Index begin, Index end, Index) {
    for (Index p = begin; p < end; ++p) {
      const Scalar* panel = bank.panel(p, expert);
      const Scalar* starts = add ? nullptr : bank.has_bias ? panel : zero_row<Scalar>.data();
      const StoreRows<Scalar> product{x, x_stride, y + p * columns, y_stride, starts};
      PrefetchQueue ahead;
      if (p + 1 < end)
        ahead.add(bank.panel(p + 1, expert), bank.panel_size() * static_cast<Index>(sizeof(Scalar)));
      ahead.spread(prefetch_steps<Scalar>(rows, bank.in_features));
      multiply_panel(product, rows, panel + (bank.has_bias ? columns : 0), bank.in_features,
                     bank.valid_columns(p), ahead);
    }
  });
}

}  // namespace meo::detail

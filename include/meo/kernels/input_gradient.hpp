#pragma once

/// The gradient of x through one expert: dx = dy W.

#include <algorithm>

#include <meo/kernels/gradient_blocking.hpp>
#include <meo/kernels/multiply.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/transpose.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// Weights turned for the gradient of x, [panel of inputs][output][NR inputs], and the outputs they stand
/// for.
template <class Scalar>
struct TurnedPanels {
  const Scalar* data;
  Index first_output;
  Index outputs;
  Index panel_stride;
};

/// dx (+)= dy · W for the panels first … first + count − 1 of inputs. dy: `rows` rows, gathered; dx: as many
/// rows of in_features, one after another at dx_stride. Adds if `add`.
template <class Scalar>
void multiply_turned(const TurnedPanels<Scalar>& turned, Index first, Index count, Index in_features,
                     const GatheredRows<Scalar>& dy, Index rows, bool add, Scalar* dx, Index dx_stride) {
  const Index input = first * Tile<Scalar>::columns;
  const StoreRows<Scalar> product{dy.data + turned.first_output, dy.stride, dx + input, dx_stride, dy.gather};
  const Panels<Scalar> panels{turned.data, turned.panel_stride, turned.outputs,
                              std::min(count * Tile<Scalar>::columns, in_features - input),
                              add ? nullptr : zero_row<Scalar>.data()};
  PrefetchQueue nothing_ahead;
  multiply_panels(product, rows, panels, nothing_ahead);
}

/// Scalars of scratch that input_gradient needs for each thread.
template <class Scalar>
Index input_gradient_scratch_size(const PanelBank<Scalar, const Scalar>& bank) {
  constexpr Index columns = Tile<Scalar>::columns;
  const Index unit = gradient_group<Scalar>(bank.num_panels()) * columns * columns;
  const Index panels = (bank.in_features + columns - 1) / columns;
  return gradient_blocks<Scalar>(unit, 1, panels, 1).size * unit;
}

/// dx (+)= dy W_e for `rows` rows of dy, gathered; dx: rows × in_features at dx_stride, not overlapping dy.
/// Adds if `add`. scratch: `threads` times input_gradient_scratch_size.
template <class Scalar>
void input_gradient(const PanelBank<Scalar, const Scalar>& bank, Index expert, const GatheredRows<Scalar>& dy,
                    Index rows, bool add, Scalar* dx, Index dx_stride, Scalar* scratch, Index threads) {
  if (rows == 0) return;
  constexpr Index columns = Tile<Scalar>::columns;
  const Index group = gradient_group<Scalar>(bank.num_panels());
  const Index panel_stride = group * columns * columns;
  const Index scratch_size = input_gradient_scratch_size(bank);
  const Index block = scratch_size / panel_stride;
  const Index input_panels = (bank.in_features + columns - 1) / columns;
  parallel_ranges(input_panels, threads, [&](Index begin, Index end, Index thread) {
    Scalar* const turned = scratch + thread * scratch_size;
    for (Index first = begin; first < end; first += block) {
      const Index count = std::min(block, end - first);
      const Index row = first * columns;
      const Index inputs = std::min(count * columns, bank.in_features - row);
      for (Index p = 0; p < bank.num_panels(); p += group) {
        for (Index g = 0; g < group && p + g < bank.num_panels(); ++g) {
          transpose_rows(bank.panel(p + g, expert) + (row + (bank.has_bias ? 1 : 0)) * columns, inputs,
                         turned + g * columns * columns, panel_stride);
        }
        const Index outputs = std::min(group * columns, bank.out_features - p * columns);
        multiply_turned<Scalar>({turned, p * columns, outputs, panel_stride}, first, count, bank.in_features,
                                dy, rows, add || p > 0, dx, dx_stride);
      }
    }
  });
}

}  // namespace meo::detail

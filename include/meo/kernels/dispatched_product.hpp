#pragma once

/// The vanilla mixture, y_t = Σ_{i ∈ S(t)} g_ti (x_t W_iᵀ + b_i): each expert multiplies the rows dispatched
/// to it.
///
/// Rows are gathered through the dispatch's index inside the kernel and combined in ascending order of
/// experts, so the result is the same whatever else is in the batch. An expert that nobody selects is never
/// touched.

#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/multiply.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// Panel p of y_t += g_t (x W_eᵀ + b_e) for the tokens of one expert. x: all tokens if `gather`, else just
/// the expert's.
template <class Scalar>
void combine_panel(const PanelBank<Scalar, const Scalar>& bank, Index p, Index expert,
                   const Dispatch<Scalar>& dispatch, const Scalar* x, Index x_stride, bool gather, Scalar* y,
                   Index y_stride) {
  constexpr Index columns = Tile<Scalar>::columns;
  const Index first = dispatch.begin(expert);
  const Scalar* const panel = bank.panel(p, expert);
  const Index* const tokens = dispatch.tokens.data() + first;
  const CombineRows<Scalar> rows{x,
                                 x_stride,
                                 y + p * columns,
                                 y_stride,
                                 bank.has_bias ? panel : zero_row<Scalar>.data(),
                                 gather ? tokens : nullptr,
                                 tokens,
                                 dispatch.weights.data() + first,
                                 dispatch.is_first.data() + first};
  multiply_panel(rows, dispatch.begin(expert + 1) - first, panel + (bank.has_bias ? columns : 0),
                 bank.in_features, bank.valid_columns(p));
}

/// The whole mixture. x: tokens × in_features at x_stride; y: tokens × out_features at y_stride, not
/// overlapping x.
template <class Scalar>
void dispatched_product(const PanelBank<Scalar, const Scalar>& bank, const Dispatch<Scalar>& dispatch,
                        const Scalar* x, Index x_stride, Scalar* y, Index y_stride) {
  parallel_ranges(bank.num_panels(), max_threads(), [&](Index begin, Index end, Index) {
    for (Index p = begin; p < end; ++p) {
      for (Index expert = 0; expert < bank.num_experts; ++expert) {
        combine_panel(bank, p, expert, dispatch, x, x_stride, true, y, y_stride);
      }
    }
  });
}

/// out = x W_eᵀ + b_e for the tokens of one expert, gathered: as many contiguous rows as the expert has
/// tokens.
template <class Scalar>
void gathered_product(const PanelBank<Scalar, const Scalar>& bank, Index expert,
                      const Dispatch<Scalar>& dispatch, const Scalar* x, Index x_stride, Scalar* out) {
  constexpr Index columns = Tile<Scalar>::columns;
  const Index first = dispatch.begin(expert);
  parallel_ranges(bank.num_panels(), max_threads(), [&](Index begin, Index end, Index) {
    for (Index p = begin; p < end; ++p) {
      const Scalar* const panel = bank.panel(p, expert);
      const StoreRows<Scalar> rows{x,
                                   x_stride,
                                   out + p * columns,
                                   bank.out_features,
                                   bank.has_bias ? panel : zero_row<Scalar>.data(),
                                   dispatch.tokens.data() + first};
      multiply_panel(rows, dispatch.begin(expert + 1) - first, panel + (bank.has_bias ? columns : 0),
                     bank.in_features, bank.valid_columns(p));
    }
  });
}

/// y_t += g_t (x W_eᵀ + b_e) for the tokens of one expert, whose rows x holds one after another at x_stride.
template <class Scalar>
void combined_product(const PanelBank<Scalar, const Scalar>& bank, Index expert,
                      const Dispatch<Scalar>& dispatch, const Scalar* x, Index x_stride, Scalar* y,
                      Index y_stride) {
  parallel_ranges(bank.num_panels(), max_threads(), [&](Index begin, Index end, Index) {
    for (Index p = begin; p < end; ++p)
      combine_panel(bank, p, expert, dispatch, x, x_stride, false, y, y_stride);
  });
}

}  // namespace meo::detail

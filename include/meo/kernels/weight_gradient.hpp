#pragma once

/// The gradient of one expert's weight and bias: dW += Σ_t dy_tᵀ x_t, db += Σ_t dy_t.

#include <algorithm>

#include <meo/kernels/gradient_blocking.hpp>
#include <meo/kernels/outer_product.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Inputs of a stretch of tokens that are packed at a time; they stay in L2 while all panels go by.
inline constexpr Index packed_inputs_at_once = 192;

/// Scalars of scratch that weight_gradient needs for each thread.
template <class Scalar>
constexpr Index weight_gradient_scratch_size() {
  return outer_product_tokens<Scalar>() * (packed_inputs_at_once + Tile<Scalar>::columns);
}

/// Adds the gradient of `count` rows to an expert of the bank of gradients. x: rows of in_features; dy: rows
/// of out_features, each times its factor; scratch: `threads` times weight_gradient_scratch_size.
template <class Scalar>
void weight_gradient(const PanelBank<Scalar>& gradients, Index expert, const GatheredRows<Scalar>& x,
                     const GatheredRows<Scalar>& dy, Index count, Scalar* scratch, Index threads) {
  constexpr Index columns = Tile<Scalar>::columns;
  constexpr Index tokens = outer_product_tokens<Scalar>();
  parallel_ranges(gradients.num_panels(), threads, [&](Index begin, Index end, Index thread) {
    Scalar* const packed_x = scratch + thread * weight_gradient_scratch_size<Scalar>();
    Scalar* const packed_dy = packed_x + tokens * packed_inputs_at_once;
    for (Index input = 0; input < gradients.in_features; input += packed_inputs_at_once) {
      const Index inputs = std::min(packed_inputs_at_once, gradients.in_features - input);
      for (Index first = 0; first < count; first += tokens) {
        const Index stretch = std::min(tokens, count - first);
        pack_inputs(x, first, stretch, input, inputs, packed_x);
        for (Index p = begin; p < end; ++p) {
          Scalar* const panel = gradients.panel(p, expert);
          GatheredRows<Scalar> dy_of_panel = dy;
          dy_of_panel.data += p * columns;
          pack_columns(dy_of_panel, first, stretch, gradients.valid_columns(p), packed_dy);
          if (gradients.has_bias && input == 0) column_sums(packed_dy, stretch, true, panel);
          PrefetchQueue nothing_ahead;
          outer_product(packed_x, inputs, packed_dy, stretch, true,
                        panel + (input + (gradients.has_bias ? 1 : 0)) * columns, nothing_ahead);
        }
      }
    }
  });
}

/// ⟨dy, b⟩ for one row dy of out_features and an expert's bias; 0 without biases.
template <class Scalar>
Scalar product_with_bias(const PanelBank<Scalar, const Scalar>& bank, Index expert, const Scalar* dy) {
  Scalar product(0);
  if (!bank.has_bias) return product;
  for (Index p = 0; p < bank.num_panels(); ++p) {
    const Scalar* const biases = bank.panel(p, expert);
    for (Index c = 0; c < bank.valid_columns(p); ++c) product += dy[p * bank.columns + c] * biases[c];
  }
  return product;
}

}  // namespace meo::inline MEO_ABI::detail

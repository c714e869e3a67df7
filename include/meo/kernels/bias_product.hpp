#pragma once

/// What an expert's bias gives to the gradient of its weight in a mixture.

#include <meo/kernels/panel.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// ⟨dy, b⟩ for one row dy of out_features and an expert's bias; 0 without biases.
template <class Scalar>
Sum<Scalar> bias_product(const PanelBank<Scalar, const Scalar>& bank, Index expert, const Scalar* dy) {
  Sum<Scalar> product(0);
  if (!bank.has_bias) return product;
  for (Index p = 0; p < bank.num_panels(); ++p) {
    const Scalar* const biases = bank.panel(p, expert);
    for (Index c = 0; c < bank.valid_columns(p); ++c)
      product += static_cast<Sum<Scalar>>(dy[p * bank.columns + c]) * static_cast<Sum<Scalar>>(biases[c]);
  }
  return product;
}

}  // namespace meo::detail

#pragma once

/// The norm of all gradients together, and its clipping (Pascanu et al. 2013, arXiv 1211.5063), as PyTorch's
/// clip_grad_norm_ does it.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <meo/training/parameters.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// The Euclidean norm, summed in double at least.
template <class Scalar>
Scalar gradient_norm(const Parameters<Scalar>& gradients) {
  using std::sqrt;
  using Sum = std::common_type_t<Scalar, double>;
  Sum squares(0);
  for (const auto& range : gradients) {
    for (const Scalar& value : range.values) squares += static_cast<Sum>(value) * static_cast<Sum>(value);
  }
  return static_cast<Scalar>(sqrt(squares));
}

/// Scales all gradients by max_norm / (norm + 1e-6) where that is below 1. Returns the norm before. Gradients
/// that are not finite become NaN. Throws std::invalid_argument for a max_norm that is not positive.
template <class Scalar>
Scalar clip_gradient_norm(const Parameters<Scalar>& gradients, const Scalar& max_norm) {
  detail::require(max_norm > Scalar(0), "max_norm: expected a positive number, got ", max_norm);
  const Scalar norm = gradient_norm(gradients);
  const Scalar scale = max_norm / (norm + Scalar(1e-6));
  if (!(scale >= Scalar(1))) {
    for (const auto& range : gradients) {
      for (Scalar& value : range.values) value *= scale;
    }
  }
  return norm;
}

}  // namespace meo::inline MEO_ABI

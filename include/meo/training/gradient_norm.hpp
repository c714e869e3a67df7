#pragma once

/// The norm of all gradients together, and its clipping (Pascanu et al. 2013, arXiv 1211.5063), as PyTorch's
/// clip_grad_norm_ does it.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <meo/compiled.hpp>
#include <meo/finite.hpp>
#include <meo/sums.hpp>
#include <meo/training/parameters.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

/// What squares are summed in: double at least, where the scalar converts to it.
template <class Scalar>
using SumOfSquares = std::conditional_t<std::is_same_v<Sum<Scalar>, float>, double, Scalar>;

template <class Scalar>
SumOfSquares<Scalar> sum_of_squares(const Parameters<Scalar>& gradients) {
  using Sum = SumOfSquares<Scalar>;
  Sum squares(0);
  for (const auto& range : gradients) {
    squares += pairwise_sum<Sum>(0, static_cast<Index>(range.values.size()), [&](Index i) -> Sum {
      const auto value = static_cast<Sum>(range.values[static_cast<std::size_t>(i)]);
      return value * value;
    });
  }
  return squares;
}

/// norm: of all gradients, of which these may be some.
template <class Scalar>
void scale_to_norm(const Parameters<Scalar>& gradients, const Scalar& norm, const Scalar& max_norm) {
  using Sum = detail::Sum<Scalar>;
  const Sum scale = static_cast<Sum>(max_norm) / (static_cast<Sum>(norm) + Sum(1e-6));
  if (is_finite(norm) && !(scale < Sum(1))) return;
  for (const auto& range : gradients) {
    for (Scalar& value : range.values) value = static_cast<Scalar>(Sum(static_cast<Sum>(value) * scale));
  }
}

}  // namespace detail

/// The Euclidean norm; squares are summed in double at least.
template <class Scalar>
Scalar gradient_norm(const Parameters<Scalar>& gradients) {
  using std::sqrt;
  return static_cast<Scalar>(detail::SumOfSquares<Scalar>(sqrt(detail::sum_of_squares(gradients))));
}

/// Scales all gradients by max_norm / (norm + 1e-6) where that is below 1. Returns the norm before. Gradients
/// that are not finite become NaN. Throws std::invalid_argument for a max_norm that is not positive.
template <class Scalar>
Scalar clip_gradient_norm(const Parameters<Scalar>& gradients, const Scalar& max_norm) {
  detail::require(max_norm > Scalar(0), "max_norm: expected a positive number, got ", max_norm);
  const Scalar norm = gradient_norm(gradients);
  detail::scale_to_norm(gradients, norm, max_norm);
  return norm;
}

#define MEO_INSTANCES(instance, Scalar)                     \
  instance Scalar gradient_norm(const Parameters<Scalar>&); \
  instance Scalar clip_gradient_norm(const Parameters<Scalar>&, const Scalar&);
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

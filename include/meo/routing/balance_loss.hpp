#pragma once

/// The auxiliary loss that keeps experts in use: cv²(importance) + cv²(load) (Shazeer et al. 2017, arXiv
/// 1701.06538, section 4 and appendix A).

#include <span>

#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

template <class Scalar>
Sum<Scalar> mean_of(std::span<const Scalar> values) {
  const Sum<Scalar> sum = pairwise_sum<Sum<Scalar>>(0, static_cast<Index>(values.size()), [&](Index i) {
    return static_cast<Sum<Scalar>>(values[static_cast<std::size_t>(i)]);
  });
  return sum / static_cast<Sum<Scalar>>(static_cast<double>(values.size()));
}

}  // namespace detail

/// Squared coefficient of variation, var(v) / (mean(v)² + 1e-10), with the unbiased variance; 0 for one
/// value.
template <class Scalar>
Scalar cv_squared(std::span<const Scalar> values) {
  using Sum = detail::Sum<Scalar>;
  if (values.size() < 2) return Scalar(0);
  const Sum mean = detail::mean_of(values);
  const Sum squares = detail::pairwise_sum<Sum>(0, static_cast<Index>(values.size()), [&](Index i) {
    const Sum deviation = static_cast<Sum>(values[static_cast<std::size_t>(i)]) - mean;
    return Sum(deviation * deviation);
  });
  const Sum variance = squares / static_cast<Sum>(static_cast<double>(values.size() - 1));
  return static_cast<Scalar>(Sum(variance / (mean * mean + Sum(1e-10))));
}

/// gradient_j += scale · ∂cv²(values)/∂values_j; nothing for one value. gradient: as many as values.
template <class Scalar>
void add_cv_squared_gradient(std::span<const Scalar> values, const Scalar& scale,
                             std::span<Scalar> gradient) {
  using Sum = detail::Sum<Scalar>;
  if (values.size() < 2) return;
  const auto count = static_cast<Sum>(static_cast<double>(values.size()));
  const Sum mean = detail::mean_of(values);
  const Sum denominator = mean * mean + Sum(1e-10);
  // d variance/dv_j = 2 (v_j − mean)/(n − 1) and d mean/dv_j = 1/n
  const Sum of_deviation = Sum(2) / ((count - Sum(1)) * denominator);
  const Sum of_mean = Sum(2) * mean * static_cast<Sum>(cv_squared(values)) / (count * denominator);
  for (std::size_t j = 0; j < values.size(); ++j) {
    const Sum derivative = of_deviation * (static_cast<Sum>(values[j]) - mean) - of_mean;
    gradient[j] += static_cast<Scalar>(Sum(static_cast<Sum>(scale) * derivative));
  }
}

}  // namespace meo

#pragma once

/// The auxiliary loss that keeps experts in use: cv²(importance) + cv²(load) (Shazeer et al. 2017, arXiv
/// 1701.06538, section 4 and appendix A).

#include <span>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Squared coefficient of variation, var(v) / (mean(v)² + 1e-10), with the unbiased variance; 0 for one
/// value.
template <class Scalar>
Scalar cv_squared(std::span<const Scalar> values) {
  if (values.size() < 2) return Scalar(0);
  Scalar sum(0);
  for (const Scalar& value : values) sum += value;
  const Scalar mean = sum / static_cast<Scalar>(static_cast<double>(values.size()));
  Scalar squares(0);
  for (const Scalar& value : values) squares += (value - mean) * (value - mean);
  const Scalar variance = squares / static_cast<Scalar>(static_cast<double>(values.size() - 1));
  return variance / (mean * mean + Scalar(1e-10));
}

/// gradient_j += scale · ∂cv²(values)/∂values_j; nothing for one value. gradient: as many as values.
template <class Scalar>
void add_cv_squared_gradient(std::span<const Scalar> values, const Scalar& scale,
                             std::span<Scalar> gradient) {
  if (values.size() < 2) return;
  const auto count = static_cast<Scalar>(static_cast<double>(values.size()));
  Scalar sum(0);
  for (const Scalar& value : values) sum += value;
  const Scalar mean = sum / count;
  const Scalar denominator = mean * mean + Scalar(1e-10);
  // d variance/dv_j = 2 (v_j − mean)/(n − 1) and d mean/dv_j = 1/n
  const Scalar of_deviation = Scalar(2) / ((count - Scalar(1)) * denominator);
  const Scalar of_mean = Scalar(2) * mean * cv_squared(values) / (count * denominator);
  for (std::size_t j = 0; j < values.size(); ++j)
    gradient[j] += scale * (of_deviation * (values[j] - mean) - of_mean);
}

}  // namespace meo::inline MEO_ABI

#pragma once

/// The auxiliary loss that keeps experts in use: cv²(importance) + cv²(load) (Shazeer et al. 2017, arXiv
/// 1701.06538, section 4 and appendix A).

#include <span>

#include <meo/types.hpp>

namespace meo {

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

}  // namespace meo

#pragma once

/// Auxiliary losses beside cv² of balance_loss.hpp: Switch's, which keeps experts in use, and the z-loss,
/// which keeps logits small.
///
/// Letters: R rows, N num_experts.

#include <cstddef>
#include <span>

#include <meo/scalar_options.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// What the losses beside cv² are multiplied by; 0: there is none.
struct LossOptions {
  /// Of N Σ f_i P_i, with f_i expert i's share of all selections and P_i the mean over the rows of p_i, which
  /// is the softmax over all logits, or σ(ℓ) over the sum of a row's with scores that are sigmoids (Fedus et
  /// al. 2022, arXiv 2101.03961, equation 4; DeepSeek-V3). 1 where experts are used alike.
  double share_coefficient = 0;
  /// Of the mean over the rows of (log Σ exp ℓ)² (Zoph et al. 2022, arXiv 2202.08906, equation 5).
  double z_coefficient = 0;

  bool operator==(const LossOptions&) const = default;
};

namespace detail {

/// Throws std::invalid_argument for coefficients that are negative or not finite.
template <class Scalar>
void check_losses(const LossOptions& options) {
  require_not_negative<Scalar>(options.share_coefficient, "losses.share_coefficient");
  require_not_negative<Scalar>(options.z_coefficient, "losses.z_coefficient");
}

}  // namespace detail

/// ∂(N Σ f_i P_i)/∂p_ri of every row, N values: N f_i / R. counts: rows that select each expert; 0 where
/// there are none.
template <class Scalar>
void share_loss_gradient(std::span<const Index> counts, Index rows, std::span<Scalar> gradient) {
  Index selections = 0;
  for (const Index count : counts) selections += count;
  const auto all = static_cast<Scalar>(static_cast<double>(selections) * static_cast<double>(rows));
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const auto part =
        static_cast<Scalar>(static_cast<double>(counts.size()) * static_cast<double>(counts[i]));
    gradient[i] = selections == 0 ? Scalar(0) : Scalar(part / all);
  }
}

/// N Σ f_i P_i, from its gradient and Σ_r p_ri, N values each: it is linear in p.
template <class Scalar>
Scalar share_loss(std::span<const Scalar> gradient, std::span<const Scalar> sums_of_p) {
  return detail::pairwise_sum<Scalar>(0, static_cast<Index>(gradient.size()), [&](Index i) {
    return Scalar(gradient[static_cast<std::size_t>(i)] * sums_of_p[static_cast<std::size_t>(i)]);
  });
}

/// Σ z², z = log Σ exp ℓ of each row.
template <class Scalar>
Scalar z_loss_sum(std::span<const Scalar> log_sums) {
  return detail::pairwise_sum<Scalar>(0, static_cast<Index>(log_sums.size()), [&](Index row) {
    const Scalar& z = log_sums[static_cast<std::size_t>(row)];
    return Scalar(z * z);
  });
}

/// mean z², from z_loss_sum; its gradient is 2 z / R. 0 without rows.
template <class Scalar>
Scalar z_loss(const Scalar& sum, Index rows) {
  if (rows == 0) return Scalar(0);
  return sum / static_cast<Scalar>(static_cast<double>(rows));
}

}  // namespace meo

#pragma once

/// Balancing without a loss: a bias that experts are selected with, but not weighed by (Wang et al. 2024,
/// arXiv 2408.15664; DeepSeek-V3).

#include <cstddef>
#include <vector>

#include <meo/errors.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Adds `rate` to the bias of experts that fewer rows have selected than the mean, and takes it from those
/// that more have. loads: rows that selected each of the N experts, as Routing::load without noise, or sums
/// of it over batches. Throws std::invalid_argument for another number of them.
///
///     meo::Vector<float> bias = layer.gate().correction_bias();
///     meo::update_correction_bias<float>(workspace.routing.load, 1e-3f, bias);
///     layer.gate().set_correction_bias(bias);
template <class Scalar, class Load>
void update_correction_bias(const std::vector<Load>& loads, const Scalar& rate, Vector<Scalar>& bias) {
  detail::require(bias.size() == static_cast<Index>(loads.size()), "loads: expected ", bias.size(),
                  " values, one for each expert, got ", loads.size());
  Load sum(0);
  for (const Load& load : loads) sum += load;
  const auto count = static_cast<Load>(static_cast<double>(loads.size()));
  for (std::size_t i = 0; i < loads.size(); ++i) {
    const Load all = loads[i] * count;  // against the sum: for whole numbers exact
    Scalar& of_expert = bias[static_cast<Index>(i)];
    if (all < sum) of_expert += rate;
    if (all > sum) of_expert -= rate;
  }
}

}  // namespace meo

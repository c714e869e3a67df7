#pragma once

/// Random start values, from a generator of the caller's.

#include <cmath>
#include <random>

#include <meo/experts/expert_bank.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Weights and biases uniform in ±1/√in_features, as PyTorch's nn.Linear starts; drawn in the order experts,
/// weight row by row, bias.
template <class Scalar, class Generator>
void initialize_uniform(ExpertBank<Scalar>& bank, Generator& rng) {
  const double limit = 1.0 / std::sqrt(static_cast<double>(bank.in_features()));
  std::uniform_real_distribution<double> uniform(-limit, limit);
  Matrix<Scalar> weight(bank.out_features(), bank.in_features());
  Vector<Scalar> bias(bank.out_features());
  for (Index expert = 0; expert < bank.num_experts(); ++expert) {
    for (Index i = 0; i < weight.size(); ++i) weight.data()[i] = static_cast<Scalar>(uniform(rng));
    bank.set_weight(expert, weight);
    if (!bank.has_bias()) continue;
    for (Index i = 0; i < bias.size(); ++i) bias(i) = static_cast<Scalar>(uniform(rng));
    bank.set_bias(expert, bias);
  }
}

}  // namespace meo::inline MEO_ABI::detail

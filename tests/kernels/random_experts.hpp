#pragma once

/// Random banks of experts, and random selections of them as a gate would make them.

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include <meo/experts/expert_bank.hpp>
#include <meo/types.hpp>

#include "support/kernels.hpp"
#include "support/random.hpp"

namespace meo::test {

/// A bank and its parameters in PyTorch's form. Normal numbers, because their mantissas are full: a sum in
/// another order has other bits.
template <class S, class Storage = S>
struct RandomExperts {
  RandomExperts(Generator& rng, Index num_experts, Index in_features, Index out_features, bool has_bias)
      : bank(num_experts, in_features, out_features, has_bias) {
    for (Index e = 0; e < num_experts; ++e) {
      bank.set_weight(e, random_normal<S>(rng, out_features, in_features));
      if (has_bias) bank.set_bias(e, random_normal<S>(rng, out_features, 1));
      weights.push_back(bank.weight(e));
      biases.push_back(has_bias ? bank.bias(e) : Vector<S>());
    }
  }

  ExpertBank<S, Storage> bank;
  std::vector<Matrix<S>> weights;
  std::vector<Vector<S>> biases;  ///< empty vectors where there is no bias
};

/// K pairs of expert and weight for each of R rows, in no order.
template <class S>
struct Selections {
  Index top_k;
  std::vector<Index> experts;
  std::vector<S> weights;

  /// The pairs of row r by ascending expert, as the kernels sum them.
  std::vector<std::pair<Index, S>> ascending(Index r) const {
    std::vector<std::pair<Index, S>> pairs;
    for (Index i = r * top_k; i < (r + 1) * top_k; ++i) {
      pairs.emplace_back(experts[std::size_t(i)], weights[std::size_t(i)]);
    }
    std::sort(pairs.begin(), pairs.end());
    return pairs;
  }
};

/// A single expert gets weight 1, as from a softmax.
template <class S>
Selections<S> random_selections(Generator& rng, Index rows, Index num_experts, Index top_k) {
  Selections<S> selections{top_k, {}, {}};
  std::vector<Index> all(static_cast<std::size_t>(num_experts));
  std::iota(all.begin(), all.end(), Index{0});
  for (Index r = 0; r < rows; ++r) {
    std::shuffle(all.begin(), all.end(), rng);
    selections.experts.insert(selections.experts.end(), all.begin(), all.begin() + top_k);
    const Matrix<S> weights = random_normal<S>(rng, 1, top_k);
    for (Index i = 0; i < top_k; ++i) selections.weights.push_back(top_k == 1 ? S(1) : weights(0, i));
  }
  return selections;
}

inline std::vector<Index> offsets_of(const std::vector<Index>& lengths) {
  std::vector<Index> offsets{0};
  for (const Index length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

}  // namespace meo::test

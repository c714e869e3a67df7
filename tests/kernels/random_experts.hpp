#pragma once

/// Random banks of experts, and random selections of them as a gate would make them.

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include <meo/experts/expert_bank.hpp>
#include <meo/kernels/pairs.hpp>
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

/// Pairs of expert and weight for each of R rows, in no order.
template <class S>
struct Selections {
  Index top_k;
  std::vector<Index> experts;
  std::vector<S> weights;
  std::vector<Index> begins = {};  ///< where the pairs of each row begin; empty: top_k a row

  detail::Pairs<S> pairs() const {
    const bool is_ragged = !begins.empty();
    const auto rows = is_ragged ? Index(begins.size()) - 1 : Index(experts.size()) / top_k;
    return {rows, experts.data(), weights.data(), is_ragged ? begins.data() : nullptr, top_k};
  }

  /// The pairs of row r by ascending expert, as the kernels sum them.
  std::vector<std::pair<Index, S>> ascending(Index r) const {
    std::vector<std::pair<Index, S>> ascending;
    for (Index i = pairs().begin(r); i < pairs().begin(r + 1); ++i) {
      ascending.emplace_back(experts[std::size_t(i)], weights[std::size_t(i)]);
    }
    std::sort(ascending.begin(), ascending.end());
    return ascending;
  }
};

/// `count(row)` pairs for each row. A single expert gets weight 1, as from a softmax.
template <class S, class Count>
Selections<S> random_ragged_selections(Generator& rng, Index rows, Index num_experts, const Count& count) {
  Selections<S> selections{1, {}, {}, {0}};
  std::vector<Index> all(static_cast<std::size_t>(num_experts));
  std::iota(all.begin(), all.end(), Index{0});
  for (Index r = 0; r < rows; ++r) {
    const Index pairs = count(r);
    std::shuffle(all.begin(), all.end(), rng);
    selections.experts.insert(selections.experts.end(), all.begin(), all.begin() + pairs);
    const Matrix<S> weights = random_normal<S>(rng, 1, pairs);
    for (Index i = 0; i < pairs; ++i) selections.weights.push_back(pairs == 1 ? S(1) : weights(0, i));
    selections.begins.push_back(Index(selections.experts.size()));
  }
  return selections;
}

/// The same number of pairs for all rows.
template <class S>
Selections<S> random_selections(Generator& rng, Index rows, Index num_experts, Index top_k) {
  Selections<S> selections =
      random_ragged_selections<S>(rng, rows, num_experts, [&](Index) { return top_k; });
  selections.top_k = top_k;
  selections.begins.clear();
  return selections;
}

inline std::vector<Index> offsets_of(const std::vector<Index>& lengths) {
  std::vector<Index> offsets{0};
  for (const Index length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

}  // namespace meo::test

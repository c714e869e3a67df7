#pragma once

/// Which merges a batch needs: sequences with the same selection and the same weights share one.

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include <meo/kernels/parts/merge.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Plain data; sequences stand in an order that puts equal and similar selections side by side.
template <class Scalar>
struct MergePlan {
  Index top_k = 0;
  bool has_unit_weights = false;  ///< whether all weights are 1

  std::vector<Index> experts;    ///< sequences × K, ascending within a sequence
  std::vector<Scalar> weights;   ///< sequences × K
  std::vector<Index> sequences;  ///< all that have tokens enough, grouped by merge
  /// Merge m serves sequences[merge_begins[m]] … sequences[merge_begins[m + 1] − 1].
  std::vector<Index> merge_begins;

  /// Of a batch of `count` sequences, each of which may turn out to have a merge of its own.
  void clear_merges(Index count) {
    sequences.clear();
    sequences.reserve(static_cast<std::size_t>(count));
    merge_begins.clear();
    merge_begins.reserve(static_cast<std::size_t>(count) + 1);
  }

  Index num_merges() const { return static_cast<Index>(merge_begins.size()) - 1; }
  Index begin(Index merge) const { return merge_begins[static_cast<std::size_t>(merge)]; }
  Index sequence(Index position) const { return sequences[static_cast<std::size_t>(position)]; }
  MergeTerms<Scalar> terms(Index merge) const { return terms_of(sequence(begin(merge))); }
  bool have_same_experts(Index merge, Index other) const {
    return std::equal(terms(merge).experts, terms(merge).experts + top_k, terms(other).experts);
  }
  MergeTerms<Scalar> terms_of(Index sequence) const {
    return {experts.data() + sequence * top_k, weights.data() + sequence * top_k};
  }
};

/// Plans the merges of a batch. experts, weights: one row of K pairs a sequence; offsets: sequence b has the
/// tokens offsets[b] … offsets[b + 1] − 1. Sequences of fewer than `fewest_tokens` tokens, at least 1, are
/// left out. Allocates only where the plan has to grow, never for as many sequences of other lengths or
/// selections.
template <class Scalar>
void plan_merges(std::span<const Index> experts, std::span<const Scalar> weights, Index top_k,
                 std::span<const Index> offsets, MergePlan<Scalar>& plan, Index fewest_tokens = 1) {
  const Index count = static_cast<Index>(offsets.size()) - 1;
  plan.top_k = top_k;
  plan.experts.assign(experts.begin(), experts.end());
  plan.weights.assign(weights.begin(), weights.end());
  plan.has_unit_weights =
      std::all_of(weights.begin(), weights.end(), [](const Scalar& weight) { return weight == Scalar(1); });
  plan.clear_merges(count);
  for (Index b = 0; b < count; ++b) {
    if (offsets[static_cast<std::size_t>(b) + 1] - offsets[static_cast<std::size_t>(b)] >= fewest_tokens)
      plan.sequences.push_back(b);
    // Insertion sort of the K pairs: K is small, and routing already gives them in nearly any order.
    Index* const e = plan.experts.data() + b * top_k;
    Scalar* const w = plan.weights.data() + b * top_k;
    for (Index i = 1; i < top_k; ++i) {
      for (Index j = i; j > 0 && e[j] < e[j - 1]; --j) {
        std::swap(e[j], e[j - 1]);
        std::swap(w[j], w[j - 1]);
      }
    }
  }
  const auto compare = [&](Index a, Index b) {  // three-way, by experts and then by weights
    const auto [ea, wa] = plan.terms_of(a);
    const auto [eb, wb] = plan.terms_of(b);
    for (Index i = 0; i < top_k; ++i) {
      if (ea[i] != eb[i]) return ea[i] < eb[i] ? -1 : 1;
    }
    for (Index i = 0; i < top_k; ++i) {
      if (wa[i] < wb[i]) return -1;
      if (wb[i] < wa[i]) return 1;
    }
    return 0;
  };
  std::sort(plan.sequences.begin(), plan.sequences.end(), [&](Index a, Index b) {
    const int order = compare(a, b);
    return order != 0 ? order < 0 : a < b;
  });
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    if (i == 0 || compare(plan.sequences[i - 1], plan.sequences[i]) != 0) {
      plan.merge_begins.push_back(static_cast<Index>(i));
    }
  }
  plan.merge_begins.push_back(static_cast<Index>(plan.sequences.size()));
}

}  // namespace meo::detail

#pragma once

/// Which experts a row selects: those of the largest logits.

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// The first `count` of num_experts experts by descending logit, ties by ascending expert.
template <class Scalar>
void rank_experts(const Scalar* logits, Index num_experts, Index count, Index* ranking) {
  Index ranked = 0;
  for (Index j = 0; j < num_experts; ++j) {
    if (ranked == count && !(logits[j] > logits[ranking[ranked - 1]])) continue;
    if (ranked < count) ++ranked;
    Index place = ranked - 1;
    for (; place > 0 && logits[j] > logits[ranking[place - 1]]; --place) ranking[place] = ranking[place - 1];
    ranking[place] = j;
  }
}

/// Experts up to which it is faster to compare each with each.
inline constexpr int max_compared_experts = 16;

/// The same for a number of experts that the type has. Few are ranked without a branch on a logit, which
/// would be guessed wrongly half of the time: an expert's place is the number of those above it. Where two
/// are equal, which shows in the sum of the places, they are ranked one after another.
template <int NumExperts, class Scalar>
void rank_experts(const Scalar* logits, Index count, Index* ranking) {
  if constexpr (NumExperts <= max_compared_experts) {
    std::array<Scalar, NumExperts> row;
    std::copy_n(logits, NumExperts, row.begin());
    std::array<int, NumExperts> places{};
    for (std::size_t i = 0; i < NumExperts; ++i) {
      for (std::size_t j = 0; j < NumExperts; ++j) places[j] += row[i] > row[j] ? 1 : 0;
    }
    if (std::accumulate(places.begin(), places.end(), 0) == NumExperts * (NumExperts - 1) / 2) {
      std::array<Index, NumExperts> all;
      for (std::size_t j = 0; j < NumExperts; ++j)
        all[static_cast<std::size_t>(places[j])] = static_cast<Index>(j);
      std::copy_n(all.begin(), count, ranking);
      return;
    }
  }
  rank_experts(logits, NumExperts, count, ranking);
}

}  // namespace meo::detail

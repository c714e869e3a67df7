#pragma once

/// Which experts a row selects: those of the largest logits or scores, of the best groups of experts, within
/// what an expert takes; or which rows an expert does.
///
/// Letters: R rows, N num_experts, K top_k, C capacity.

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>

#include <meo/errors.hpp>
#include <meo/scalar_options.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Who selects.
enum class SelectionMethod {
  top_k,         ///< each row its K experts
  expert_choice  ///< each expert its C rows, so that a row may have none or many (Zhou et al. 2022)
};

/// What a group of experts is judged by.
enum class GroupScore {
  largest,     ///< its largest score (DeepSeek-V2)
  two_largest  ///< the sum of its two largest (DeepSeek-V3)
};

/// Which experts a row has. What is selected by and what is weighed by may differ: scores are selected by
/// with the correction bias, and weigh without it.
struct SelectionOptions {
  SelectionMethod method = SelectionMethod::top_k;  ///< whether rows choose experts or experts rows
  Index groups = 1;                                 ///< G, each of N/G experts one after another
  Index top_groups = 1;  ///< of a row only the experts of so many groups, the best, can be selected
  GroupScore group_score = GroupScore::largest;
  /// Whether there is a correction bias. It is no parameter: no gradient reaches it, it is for
  /// update_correction_bias to change.
  bool correction_bias = false;
  /// C, the most rows that an expert takes, in their order; what goes beyond gets no pair, so that a row of
  /// no other expert has the output 0. 0: no limit. At token level of a MoeLayer it holds for each sequence,
  /// else for all rows of a batch. Expert choice: the rows that each expert takes, the best.
  Index capacity = 0;
  /// C = ⌊capacity_factor · R · K / N⌋, at least 1, instead; 0: no such limit.
  double capacity_factor = 0;

  bool operator==(const SelectionOptions&) const = default;
};

namespace detail {

/// Throws std::invalid_argument for options that select nothing from so many experts.
template <class Scalar>
void check_selection(const SelectionOptions& options, Index num_experts, Index top_k) {
  const bool by_experts = options.method == SelectionMethod::expert_choice;
  require(by_experts || options.method == SelectionMethod::top_k,
          "selection.method: expected top_k or expert_choice, got ", static_cast<int>(options.method));
  require(options.group_score == GroupScore::largest || options.group_score == GroupScore::two_largest,
          "selection.group_score: expected largest or two_largest, got ",
          static_cast<int>(options.group_score));
  require(options.groups >= 1 && num_experts % options.groups == 0,
          "selection.groups: expected a divisor of num_experts = ", num_experts, ", got ", options.groups);
  require(options.top_groups >= 1 && options.top_groups <= options.groups,
          "selection.top_groups: expected 1 to groups = ", options.groups, ", got ", options.top_groups);
  const Index group_size = num_experts / options.groups;
  require(group_size >= 2 || options.group_score == GroupScore::largest,
          "selection.group_score: expected largest for groups of a single expert, got two_largest");
  require(by_experts || options.top_groups * group_size >= top_k, "selection.top_groups: expected groups of ",
          "top_k = ", top_k, " experts at least, got ", options.top_groups, " of ", group_size);
  require(options.capacity >= 0, "selection.capacity: expected at least 1, or 0 for no limit, got ",
          options.capacity);
  require_not_negative<Scalar>(options.capacity_factor, "selection.capacity_factor");
  require(options.capacity == 0 || options.capacity_factor == 0,
          "selection.capacity: expected it or capacity_factor, got both");
  if (!by_experts) return;
  require(options.capacity > 0 || options.capacity_factor > 0,
          "selection.capacity: expected it or capacity_factor above 0 with expert_choice, got neither");
  require(options.groups == 1, "selection.groups: expected 1 with expert_choice, got ", options.groups);
  require(
      !options.correction_bias,
      "selection.correction_bias: expected false with expert_choice, where an expert's own changes nothing");
}

/// Whether all rows have as many pairs as they select experts.
constexpr bool may_leave_out_pairs(const SelectionOptions& options) {
  return options.method == SelectionMethod::expert_choice || options.capacity > 0 ||
         options.capacity_factor > 0;
}

/// C of so many rows; N of R rows where there is no limit.
inline Index capacity_of(const SelectionOptions& options, Index rows, Index num_experts, Index top_k) {
  if (options.capacity > 0) return options.capacity;
  if (options.capacity_factor == 0) return rows;
  const double share =
      options.capacity_factor * static_cast<double>(rows * top_k) / static_cast<double>(num_experts);
  return share >= static_cast<double>(rows) ? (std::max)(rows, Index{1})
                                            : (std::max)(static_cast<Index>(share), Index{1});
}

/// Takes expert j, which is above all that are still to come where they are equal, into the first `count` of
/// a ranking, of which there are `ranked` so far.
template <class Scalar>
void rank_next(const Scalar* scores, Index j, Index count, Index& ranked, Index* ranking) {
  if (ranked == count && !(scores[j] > scores[ranking[ranked - 1]])) return;
  if (ranked < count) ++ranked;
  Index place = ranked - 1;
  for (; place > 0 && scores[j] > scores[ranking[place - 1]]; --place) ranking[place] = ranking[place - 1];
  ranking[place] = j;
}

/// The first `count` of num_experts experts by descending logit, ties by ascending expert.
template <class Scalar>
void rank_experts(const Scalar* logits, Index num_experts, Index count, Index* ranking) {
  Index ranked = 0;
  for (Index j = 0; j < num_experts; ++j) rank_next(logits, j, count, ranked, ranking);
}

/// The same of those that `allowed` is not 0 of, or of all where it is null, at most `count`. Returns how
/// many there are.
template <class Scalar>
Index rank_allowed(const Scalar* scores, const unsigned char* allowed, Index num_experts, Index count,
                   Index* ranking) {
  Index ranked = 0;
  for (Index j = 0; j < num_experts; ++j) {
    if (allowed == nullptr || allowed[j] != 0) rank_next(scores, j, count, ranked, ranking);
  }
  return ranked;
}

/// Leaves in `allowed`, N of which some may be 0 already, those of a row's best groups alone. A group without
/// experts is never among them; one of a single expert has that one's score. group_scores, ranking,
/// allowed_groups: G of memory.
template <class Scalar>
void keep_best_groups(const SelectionOptions& options, const Scalar* scores, Index num_experts,
                      Scalar* group_scores, Index* ranking, unsigned char* allowed_groups,
                      unsigned char* allowed) {
  const Index size = num_experts / options.groups;
  for (Index g = 0; g < options.groups; ++g) {
    std::array<Index, 2> best{};
    const Index count = options.group_score == GroupScore::two_largest ? 2 : 1;
    const Scalar* const of_group = scores + g * size;
    const Index found = rank_allowed(of_group, allowed + g * size, size, count, best.data());
    allowed_groups[g] = found > 0 ? 1 : 0;
    group_scores[g] = of_group[best[0]];
    if (found == 2) group_scores[g] += of_group[best[1]];
  }
  const Index kept = rank_allowed(group_scores, allowed_groups, options.groups, options.top_groups, ranking);
  std::fill_n(allowed_groups, options.groups, static_cast<unsigned char>(0));
  for (Index i = 0; i < kept; ++i) allowed_groups[ranking[i]] = 1;
  for (Index g = 0; g < options.groups; ++g) {
    if (allowed_groups[g] == 0) std::fill_n(allowed + g * size, size, static_cast<unsigned char>(0));
  }
}

/// Sets `taken`, of rows with `stride`, for the `count` rows of the largest of an expert's scores, ties by
/// ascending row. scores: of each row; best: `count` of memory. A heap, of which the worst is at the top:
/// std::nth_element takes five times as long to compile.
template <class Scalar>
void take_best_rows(std::span<const Scalar> scores, Index count, Index* best, unsigned char* taken,
                    Index stride) {
  const auto rows = static_cast<Index>(scores.size());
  const auto is_worse = [&](Index a, Index b) {
    const Scalar &of_a = scores[static_cast<std::size_t>(a)], &of_b = scores[static_cast<std::size_t>(b)];
    return of_a < of_b || (of_a == of_b && a > b);
  };
  const Index most = (std::min)(count, rows);
  std::iota(best, best + most, Index{0});
  // First the heap is made, from its last parent on, then each row that is better than the top takes its
  // place.
  Index row = most;
  for (Index first = most / 2; first > 0 || row < rows;) {
    Index parent = 0;
    if (first > 0) parent = --first;
    else if (is_worse(best[0], row)) best[0] = row++;
    else {
      ++row;
      continue;
    }
    for (Index child; (child = 2 * parent + 1) < most; parent = child) {
      if (child + 1 < most && is_worse(best[child + 1], best[child])) ++child;
      if (!is_worse(best[child], best[parent])) break;
      std::swap(best[parent], best[child]);
    }
  }
  for (Index i = 0; i < most; ++i) taken[best[i] * stride] = 1;
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

}  // namespace detail
}  // namespace meo

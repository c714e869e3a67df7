#pragma once

/// Which experts work on which rows of a batch, and with which weights: what a router makes, and all that the
/// experts need to know of it. Plain data, so that any router may fill one.
///
/// Letters: R rows (sequences, segments of them, or tokens for an MoE at token level), N num_experts, K
/// top_k.

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/finite.hpp>
#include <meo/kernels/pairs.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// For each row its (expert, weight) pairs, of distinct experts in any order: K of them, or where `begins`
/// says so any number. A row without pairs gives zeros.
///
///     // Two rows: the first has expert 2 alone, the second the experts 0 and 1.
///     const meo::Assignment<float> assignment{.rows = 2, .num_experts = 4, .begins = {0, 1, 3},
///                                             .experts = {2, 0, 1}, .weights = {1.0f, 0.25f, 0.5f}};
template <class Scalar>
struct Assignment {
  Index rows = 0;                  ///< R
  Index num_experts = 0;           ///< N
  Index top_k = 0;                 ///< K: pairs of each row where there are no begins; else without a meaning
  std::vector<Index> begins = {};  ///< R + 1, ascending from 0: where each row's pairs begin; empty: K a row
  std::vector<Index> experts = {};   ///< of each pair
  std::vector<Scalar> weights = {};  ///< of each pair
  /// R: rows of one group need just the sum of their weights' gradients, as those whose decision was one and
  /// the same. Backward may leave that sum at any of them. Empty: each row needs its own.
  std::vector<Index> gradient_groups = {};

  /// Where the row's pairs begin; for R, how many there are in all.
  Index begin(Index row) const {
    return begins.empty() ? row * top_k : begins[static_cast<std::size_t>(row)];
  }
  /// Number of all pairs.
  Index size() const { return begin(rows); }
  std::span<const Index> row_experts(Index row) const { return row_of(experts, row); }
  std::span<const Scalar> row_weights(Index row) const { return row_of(weights, row); }

  /// R × N, zero where an expert is not selected. Throws std::invalid_argument unless there are as many pairs
  /// as rows, top_k and begins say; after a move there are not.
  Matrix<Scalar> dense() const;

  /// Throws std::invalid_argument unless this is an assignment of so many rows to so many experts, and says
  /// what is wrong.
  void check(Index expected_rows, Index expected_experts) const;

 private:
  template <class T>
  std::span<const T> row_of(const std::vector<T>& pairs, Index row) const {
    return std::span<const T>(pairs).subspan(static_cast<std::size_t>(begin(row)),
                                             static_cast<std::size_t>(begin(row + 1) - begin(row)));
  }

  void check_sizes() const;
};

template <class Scalar>
Matrix<Scalar> Assignment<Scalar>::dense() const {
  check_sizes();
  Matrix<Scalar> gates = Matrix<Scalar>::Zero(rows, num_experts);
  for (Index row = 0; row < rows; ++row) {
    const std::span<const Index> of_row = row_experts(row);
    for (std::size_t i = 0; i < of_row.size(); ++i) gates(row, of_row[i]) = row_weights(row)[i];
  }
  return gates;
}

template <class Scalar>
void Assignment<Scalar>::check(Index expected_rows, Index expected_experts) const {
  detail::require(rows == expected_rows, "routing: expected ", expected_rows, " rows, got ", rows);
  detail::require(num_experts == expected_experts, "routing: expected num_experts = ", expected_experts,
                  ", got ", num_experts);
  detail::require(!begins.empty() || (top_k >= 1 && top_k <= num_experts),
                  "routing: expected top_k from 1 to ", num_experts, ", got ", top_k);
  check_sizes();
  detail::require(gradient_groups.empty() || static_cast<Index>(gradient_groups.size()) == rows,
                  "routing: expected no gradient_groups or ", rows, ", got ", gradient_groups.size());
  for (Index row = 0; row < rows; ++row) {
    const std::span<const Index> of_row = row_experts(row);
    for (std::size_t i = 0; i < of_row.size(); ++i) {
      detail::require_expert(of_row[i], num_experts);
      const auto place = of_row.begin() + static_cast<std::ptrdiff_t>(i);
      detail::require(std::find(of_row.begin(), place, of_row[i]) == place,
                      "routing: expected distinct experts in row ", row, ", got expert ", of_row[i],
                      " twice");
      detail::require(detail::is_finite(row_weights(row)[i]),
                      "routing: expected finite weights, got one that is not in row ", row, " for expert ",
                      of_row[i]);
    }
  }
}

template <class Scalar>
void Assignment<Scalar>::check_sizes() const {
  if (!begins.empty()) {
    detail::require(static_cast<Index>(begins.size()) == rows + 1 && begins.front() == 0,
                    "routing: expected ", rows + 1, " begins, the first of them 0, got ", begins.size(),
                    " from ", begins.front(), " on");
    detail::require(std::is_sorted(begins.begin(), begins.end()), "routing: expected ascending begins");
  }
  const auto pairs = static_cast<std::size_t>(size());
  detail::require(experts.size() == pairs && weights.size() == pairs, "routing: expected ", pairs,
                  " pairs, got ", experts.size(), " experts and ", weights.size(), " weights");
}

#define MEO_INSTANCES(instance, Scalar) instance struct Assignment<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

namespace detail {

template <class Scalar>
Pairs<Scalar> pairs_of(const Assignment<Scalar>& assignment) {
  return {assignment.rows, assignment.experts.data(), assignment.weights.data(),
          assignment.begins.empty() ? nullptr : assignment.begins.data(), assignment.top_k};
}

}  // namespace detail
}  // namespace meo

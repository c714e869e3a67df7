#pragma once

/// What a gate decided: for every gated row K pairs (expert, weight). Plain data.

#include <cstddef>
#include <span>
#include <vector>

#include <meo/errors.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Letters: R gated rows (tokens for an MoE at token level, else sequences), N num_experts, K top_k.
template <class Scalar>
struct Routing {
  Index rows = 0;
  Index num_experts = 0;
  Index top_k = 0;
  std::vector<Index> experts;   ///< R × K; in a row by descending logit, ties by ascending expert
  std::vector<Scalar> weights;  ///< R × K; softmax over the selected logits of the row
  /// N; sum of an expert's weights over the rows. Float where Scalar has 16 bits, as `load`.
  std::vector<detail::Sum<Scalar>> importance;
  /// N; rows that select an expert: a count, or its smooth estimate in training.
  std::vector<detail::Sum<Scalar>> load;
  Scalar loss = Scalar(0);  ///< coefficient · (cv²(importance) + cv²(load))

  std::span<const Index> row_experts(Index row) const { return row_of(experts, row); }
  std::span<const Scalar> row_weights(Index row) const { return row_of(weights, row); }

  /// R × N, zero where an expert is not selected. Throws std::invalid_argument unless there are R × K pairs,
  /// as after a move.
  Matrix<Scalar> dense() const {
    const auto pairs = static_cast<std::size_t>(rows * top_k);
    detail::require(experts.size() == pairs && weights.size() == pairs, "routing: expected ", pairs,
                    " pairs, got ", experts.size(), " experts and ", weights.size(), " weights");
    Matrix<Scalar> gates = Matrix<Scalar>::Zero(rows, num_experts);
    for (Index row = 0; row < rows; ++row) {
      for (std::size_t i = 0; i < static_cast<std::size_t>(top_k); ++i) {
        gates(row, row_experts(row)[i]) = row_weights(row)[i];
      }
    }
    return gates;
  }

 private:
  template <class T>
  std::span<const T> row_of(const std::vector<T>& pairs, Index row) const {
    return std::span<const T>(pairs).subspan(static_cast<std::size_t>(row * top_k),
                                             static_cast<std::size_t>(top_k));
  }
};

}  // namespace meo

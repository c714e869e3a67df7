#pragma once

/// Which experts each row has, and with which weights.

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// The experts of one row or merge with their weights.
template <class Scalar>
struct MergeTerms {
  const Index* experts;
  const Scalar* weights;
  Index count;

  /// Of a single expert with the weight 1, as a softmax over one logit gives it, the merged expert is the
  /// expert itself.
  bool are_one_expert() const { return count == 1 && weights[0] == Scalar(1); }
};

/// The (expert, weight) pairs of all rows, row by row. A view.
template <class Scalar>
struct Pairs {
  Index rows;
  const Index* experts;
  const Scalar* weights;
  const Index* begins;  ///< rows + 1; null: each row has top_k pairs
  Index top_k;

  Index begin(Index row) const { return begins != nullptr ? begins[row] : row * top_k; }
  Index count(Index row) const { return begin(row + 1) - begin(row); }
  Index size() const { return begin(rows); }
  MergeTerms<Scalar> row(Index r) const { return {experts + begin(r), weights + begin(r), count(r)}; }
};

}  // namespace meo::detail

#pragma once

/// Sums whose bits depend on the terms and their order alone, neither on where in memory they lie nor on how
/// many threads there are.

#include <algorithm>
#include <type_traits>

#include <Eigen/Core>

#include <meo/types.hpp>

#include "parallel.hpp"

namespace transformer {

using meo::Index;

/// Σ term(i), where term(first, lanes) gives `lanes` terms from `first` on as an array: in 16 lanes, which
/// are added up pairwise at the end.
template <class Scalar, class Term>
Scalar sum_in_lanes(Index count, const Term& term) {
  constexpr int lanes = 16;
  Eigen::Array<Scalar, lanes, 1> sums = Eigen::Array<Scalar, lanes, 1>::Zero();
  const Index whole = count - count % lanes;
  for (Index i = 0; i < whole; i += lanes) sums += term(i, std::integral_constant<int, lanes>());
  for (Index i = whole; i < count; ++i) sums(i - whole) += term(i, std::integral_constant<int, 1>())(0);
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) sums(lane) += sums(lane + half);
  }
  return sums(0);
}

/// `lanes` values from x on.
template <class Scalar, int lanes>
auto values_at(const Scalar* x, std::integral_constant<int, lanes>) {
  return Eigen::Map<const Eigen::Array<Scalar, lanes, 1>>(x);
}

/// Adds Σ over rows of terms(row, first column, columns), an array of one row, to `sums`, one for each
/// column: in parts of rows, so that rounding grows less with their number.
template <class Scalar, class Terms>
void add_column_sums(Index rows, Index columns, const Terms& terms, Scalar* sums) {
  constexpr Index part = 128, at_once = 256;
  const Index blocks = (columns + at_once - 1) / at_once;
  parallel_ranges(blocks, [&](Index begin, Index end, Index) {
    Eigen::Array<Scalar, 1, Eigen::Dynamic, Eigen::RowMajor, 1, at_once> of_part;
    for (Index block = begin; block < end; ++block) {
      const Index first = block * at_once, count = (std::min)(at_once, columns - first);
      Eigen::Map<Eigen::Array<Scalar, 1, Eigen::Dynamic>> all(sums + first, count);
      for (Index row = 0; row < rows; row += part) {
        const Index last = (std::min)(row + part, rows);
        of_part.setZero(count);
        for (Index r = row; r < last; ++r) of_part += terms(r, first, count);
        all += of_part;
      }
    }
  });
}

}  // namespace transformer

#pragma once

/// How long sums are formed, as those over all tokens of a batch.
///
/// Added up one after another, n terms come within γ_n Σ|term| of their sum, which in float is 6 % for a
/// million. Here few terms are added one after another, and what they give is added pairwise: n terms in
/// parts of p come within about γ_{p + log2(n / p)} Σ|term| (Higham, Accuracy and Stability of Numerical
/// Algorithms, 2nd ed., section 4.2). What goes into a part is told by its terms alone, so that no result
/// depends on the number of threads or on what else is in a batch.

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

template <class Scalar>
struct SumOf {
  using Type = Scalar;
};
template <>
struct SumOf<Eigen::half> {
  using Type = float;
};
template <>
struct SumOf<Eigen::bfloat16> {
  using Type = float;
};

/// What sums of a scalar are formed in, and functions of it evaluated: float for one of 16 bits, which no
/// longer grows when 1 is added to 256 or 2048; else the scalar itself.
template <class Scalar>
using Sum = typename SumOf<Scalar>::Type;

template <class Scalar>
inline constexpr bool is_16_bit = !std::same_as<Sum<Scalar>, Scalar>;

/// Terms of a part.
inline constexpr Index serial_terms = 128;

/// Parts of so many terms.
constexpr Index num_parts(Index terms, Index part = serial_terms) { return (terms + part - 1) / part; }

/// Sums that a PairwiseSum of so many parts keeps beside its result.
constexpr Index pairwise_depth(Index parts) {
  return parts < 2 ? 0 : static_cast<Index>(std::bit_width(static_cast<std::size_t>(parts))) - 1;
}

/// Which sums of parts are added to which: those of as many parts each, as the digits of a binary counter are
/// carried. Slot 0 has the result in the end.
class PairwiseOrder {
 public:
  /// The slot in which the next part is formed.
  Index slot() const { return slot_; }

  /// The part in slot() is complete. Calls add(to, from) for slots that are to be added.
  template <class Add>
  void next(const Add& add) {
    ++slot_;
    for (std::size_t parts = ++parts_; parts % 2 == 0; parts /= 2) fold(add);
  }

  /// All parts are complete.
  template <class Add>
  void finish(const Add& add) {
    while (slot_ > 1) fold(add);
  }

 private:
  template <class Add>
  void fold(const Add& add) {
    --slot_;
    add(slot_ - 1, slot_);
  }

  Index slot_ = 0;
  std::size_t parts_ = 0;
};

/// A sum of parts that are `size` values each.
template <class Value>
class PairwiseSum {
 public:
  /// sum: `size` values, which the first part is formed in; memory: pairwise_depth times as many.
  PairwiseSum(Index size, Value* sum, Value* memory) : size_(size), sum_(sum), memory_(memory) {}

  /// Where the next part is to be formed.
  Value* part() const { return at(order_.slot()); }

  void next() {
    order_.next([this](Index to, Index from) { add(to, from); });
  }
  void finish() {
    order_.finish([this](Index to, Index from) { add(to, from); });
  }

 private:
  Value* at(Index slot) const { return slot == 0 ? sum_ : memory_ + (slot - 1) * size_; }
  void add(Index to, Index from) const {
    Value* const sum = at(to);
    const Value* const term = at(from);
    for (Index i = 0; i < size_; ++i) sum[i] += term[i];
  }

  Index size_;
  Value* sum_;
  Value* memory_;
  PairwiseOrder order_;
};

/// sum = Σ row(i) over begin ≤ i < end, rows of `size` values; memory: pairwise_depth(num_parts(end − begin))
/// times as many.
template <class Value, class Row>
void sum_rows(Index begin, Index end, Index size, const Row& row, Value* sum, Value* memory) {
  std::fill_n(sum, size, Value(0));
  PairwiseSum<Value> parts(size, sum, memory);
  for (Index first = begin; first < end; first += serial_terms) {
    Value* const part = parts.part();
    std::fill_n(part, size, Value(0));
    for (Index i = first; i < (std::min)(first + serial_terms, end); ++i) {
      const auto* const values = row(i);
      for (Index c = 0; c < size; ++c) part[c] += static_cast<Value>(values[c]);
    }
    parts.next();
  }
  parts.finish();
}

template <class A, class B>
Sum<typename A::Scalar> dot(const Eigen::MatrixBase<A>& a, const Eigen::MatrixBase<B>& b) {
  using Value = Sum<typename A::Scalar>;
  return a.template cast<Value>().dot(b.template cast<Value>());
}

/// Σ term(i) over begin ≤ i < end.
template <class Value, class Term>
Value pairwise_sum(Index begin, Index end, const Term& term) {
  if (end - begin > serial_terms) {
    const Index middle = begin + (end - begin) / 2;
    return pairwise_sum<Value>(begin, middle, term) + pairwise_sum<Value>(middle, end, term);
  }
  Value sum(0);
  for (Index i = begin; i < end; ++i) sum += term(i);
  return sum;
}

}  // namespace meo::detail

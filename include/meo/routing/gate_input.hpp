#pragma once

/// What a gate sees: one row of features for each of its decisions. And for whom it decides.

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

#include <meo/experts/aligned_vector.hpp>
#include <meo/routing/routing_options.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

struct TokenRange {
  Index begin;
  Index end;

  Index size() const { return end - begin; }
};

/// The rows of a router over a batch. What a row sees and what it decides for are two things. Views.
struct GateRows {
  std::span<const Index>
      governed;  ///< rows + 1: row r decides for the tokens governed[r] … governed[r + 1] − 1
  /// Row r sees the mean of the tokens seen[r]. None: every row sees the one token that it decides for.
  std::span<const TokenRange> seen;
  /// Not 0 for a row through whose decision no gradient goes. None: it goes through all.
  std::span<const unsigned char> constant = {};

  Index size() const { return static_cast<Index>(governed.size()) - 1; }
  /// Whether the row sees what the one before it does.
  bool sees_as_before(Index row) const {
    const auto r = static_cast<std::size_t>(row);
    return r > 0 && !seen.empty() && seen[r].begin == seen[r - 1].begin && seen[r].end == seen[r - 1].end;
  }
  /// How many tokens the row decides for.
  Index tokens(Index row) const {
    const auto r = static_cast<std::size_t>(row);
    return governed[r + 1] - governed[r];
  }
};

/// Memory that GateRows look at.
struct GateRowsMemory {
  std::vector<Index> governed;
  std::vector<TokenRange> seen;
  std::vector<unsigned char> constant;
};

/// What means are taken over: ranges, or what lies between offsets. A view.
class TokenRanges {
 public:
  TokenRanges(std::span<const TokenRange> ranges) : ranges_(ranges) {}  // NOLINT: meant to convert
  TokenRanges(std::span<const Index> offsets) : offsets_(offsets) {}    // NOLINT

  TokenRange operator[](Index range) const {
    const auto r = static_cast<std::size_t>(range);
    return offsets_.empty() ? ranges_[r] : TokenRange{offsets_[r], offsets_[r + 1]};
  }

 private:
  std::span<const TokenRange> ranges_;
  std::span<const Index> offsets_;
};

/// Every token is a row of its own.
inline GateRows rows_of_tokens(Index tokens, GateRowsMemory& memory) {
  memory.governed.resize(static_cast<std::size_t>(tokens) + 1);
  std::iota(memory.governed.begin(), memory.governed.end(), Index{0});
  return {memory.governed, {}};
}

/// Every sequence is a row, which sees the sequence and decides for it.
inline GateRows rows_of_sequences(std::span<const Index> offsets, GateRowsMemory& memory) {
  memory.seen.resize(offsets.size() - 1);
  for (std::size_t b = 0; b + 1 < offsets.size(); ++b) memory.seen[b] = {offsets[b], offsets[b + 1]};
  return {offsets, memory.seen};
}

/// Segments of `segment_tokens` tokens, of which only the last of a sequence is shorter; an empty sequence
/// has none.
inline Index num_segments(std::span<const Index> offsets, Index segment_tokens) {
  Index segments = 0;
  for (std::size_t b = 0; b + 1 < offsets.size(); ++b)
    segments += (offsets[b + 1] - offsets[b] + segment_tokens - 1) / segment_tokens;
  return segments;
}

/// Every segment is a row, which sees the segment before it. The first of a sequence sees itself; no gradient
/// goes through its decision, which alone depends on tokens that come later.
inline GateRows rows_of_segments(std::span<const Index> offsets, Index segment_tokens,
                                 GateRowsMemory& memory) {
  const auto segments = static_cast<std::size_t>(num_segments(offsets, segment_tokens));
  memory.governed.resize(segments + 1);
  memory.seen.resize(segments);
  memory.constant.resize(segments);
  memory.governed[0] = 0;
  std::size_t row = 0;
  for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
    TokenRange segment{offsets[b], offsets[b]};
    while (segment.end < offsets[b + 1]) {
      const TokenRange before = segment;
      segment = {before.end, (std::min)(before.end + segment_tokens, offsets[b + 1])};
      const bool is_first = before.size() == 0;
      memory.seen[row] = is_first ? segment : before;
      memory.constant[row] = is_first ? 1 : 0;
      memory.governed[++row] = segment.end;
    }
  }
  return {memory.governed, memory.seen, memory.constant};
}

/// The rows of a router over a batch with these offsets. routes_tokens: whether at token level every token is
/// a row of its own, instead of every sequence.
inline GateRows gate_rows(const RoutingOptions& options, bool routes_tokens, std::span<const Index> offsets,
                          GateRowsMemory& memory) {
  if (routes_tokens && options.level == Level::token) return rows_of_tokens(offsets.back(), memory);
  if (options.level == Level::segment) return rows_of_segments(offsets, options.segment_tokens, memory);
  return rows_of_sequences(offsets, memory);
}

/// Memory for a sum of at most so many rows: `cols` values, and as many as sum_rows needs beside.
template <class Scalar>
Sum<Scalar>* reserve_sums(AlignedVector<Sum<Scalar>>& sums, Index rows, Index cols) {
  return reserve(sums, (1 + pairwise_depth(num_parts(rows))) * cols);
}

/// The mean over the rows of each range, groups × columns; zero for one without rows.
template <class Scalar>
MatrixView<Scalar> means(const MatrixView<Scalar>& rows, Index groups, const TokenRanges& ranges,
                         AlignedVector<Scalar>& buffer, AlignedVector<Sum<Scalar>>& sums) {
  const Index cols = rows.cols();
  Scalar* const out = reserve(buffer, groups * cols);
  Sum<Scalar>* const sum = reserve_sums<Scalar>(sums, rows.rows(), cols);
  for (Index group = 0; group < groups; ++group) {
    const TokenRange of = ranges[group];
    sum_rows(
        of.begin, of.end, cols, [&](Index row) { return rows.row(row); }, sum, sum + cols);
    const auto count = static_cast<Sum<Scalar>>(static_cast<double>(std::max<Index>(of.size(), 1)));
    for (Index d = 0; d < cols; ++d) out[group * cols + d] = static_cast<Scalar>(Sum<Scalar>(sum[d] / count));
  }
  return {out, groups, cols, cols};
}

/// Adds to every row of a range its share of the gradient of the range's mean, groups × columns.
template <class Scalar>
void add_means_gradient(const Scalar* mean_gradients, Index groups, const TokenRanges& ranges, Index cols,
                        Scalar* rows, Index stride) {
  for (Index group = 0; group < groups; ++group) {
    const Scalar* const gradient = mean_gradients + group * cols;
    const TokenRange of = ranges[group];
    const auto count = static_cast<Sum<Scalar>>(static_cast<double>(of.size()));
    for (Index row = of.begin; row < of.end; ++row) {
      for (Index d = 0; d < cols; ++d) {
        Scalar& value = rows[row * stride + d];
        value = static_cast<Scalar>(
            Sum<Scalar>(static_cast<Sum<Scalar>>(value) + static_cast<Sum<Scalar>>(gradient[d]) / count));
      }
    }
  }
}

}  // namespace meo::detail

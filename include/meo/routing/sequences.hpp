#pragma once

/// Where the sequences of a ragged batch begin: one matrix holds the tokens of all of them, without padding.

#include <array>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <meo/errors.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Sequence b has the rows begin(b) … begin(b) + length(b) − 1 of the batch. A sequence may be empty. Without
/// arguments, and after a move, there are none.
class Sequences {
 public:
  Sequences() = default;

  /// Throws std::invalid_argument for a negative length, or more tokens in all than an Index counts.
  static Sequences from_lengths(std::span<const Index> lengths) {
    std::vector<Index> offsets{0};
    offsets.reserve(lengths.size() + 1);
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      detail::require(lengths[b] >= 0, "sequence ", b, ": expected a length of at least 0, got ", lengths[b]);
      detail::require(lengths[b] <= most_tokens - offsets.back(), "sequence ", b, ": expected at most ",
                      most_tokens, " tokens in all, got ", lengths[b], " after ", offsets.back());
      offsets.push_back(offsets.back() + lengths[b]);
    }
    return Sequences(std::move(offsets));
  }
  static Sequences from_lengths(std::initializer_list<Index> lengths) {
    return from_lengths(std::span<const Index>(lengths.begin(), lengths.size()));
  }

  /// offsets: begins of all sequences and the number of tokens, ascending from 0. Throws
  /// std::invalid_argument otherwise.
  static Sequences from_offsets(std::vector<Index> offsets) {
    detail::require(!offsets.empty() && offsets.front() == 0, "offsets: expected the first to be 0, got ",
                    offsets.empty() ? "none" : std::to_string(offsets.front()));
    for (std::size_t b = 1; b < offsets.size(); ++b) {
      detail::require(offsets[b] >= offsets[b - 1], "offsets: expected ascending ones, got ", offsets[b],
                      " after ", offsets[b - 1]);
    }
    return Sequences(std::move(offsets));
  }

  /// `count` sequences of `length` tokens each. Throws std::invalid_argument for negative arguments, or more
  /// tokens in all than an Index counts.
  static Sequences uniform(Index count, Index length) {
    detail::require(count >= 0, "count: expected at least 0 sequences, got ", count);
    detail::require(length >= 0, "length: expected at least 0 tokens, got ", length);
    detail::require(length == 0 || count <= most_tokens / length, "sequences: expected at most ", most_tokens,
                    " tokens in all, got ", count, " sequences of ", length);
    return from_lengths(std::vector<Index>(static_cast<std::size_t>(count), length));
  }

  /// Number of sequences.
  Index size() const { return static_cast<Index>(offsets().size()) - 1; }
  /// Number of tokens of all sequences.
  Index tokens() const { return offsets().back(); }
  Index begin(Index b) const { return offsets()[static_cast<std::size_t>(b)]; }
  Index length(Index b) const { return begin(b + 1) - begin(b); }
  /// size() + 1 offsets.
  std::span<const Index> offsets() const {
    if (offsets_.empty()) return of_none;
    return offsets_;
  }

 private:
  static constexpr Index most_tokens = (std::numeric_limits<Index>::max)();

  static constexpr std::array<Index, 1> of_none{0};

  explicit Sequences(std::vector<Index> offsets) : offsets_(std::move(offsets)) {}

  std::vector<Index> offsets_;  ///< none instead of a single 0 where nothing has been put, or left by a move
};

}  // namespace meo

#pragma once

/// How kernels walk through the tokens of a plan's merges.

#include <algorithm>
#include <span>

#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// A token: a row of the sequence at a position of the plan.
struct TokenCursor {
  Index position = 0;
  Index row = 0;
};

/// Tokens in the order of the plan, and the merges that they need.
struct TokenChunk {
  TokenCursor begin;
  TokenCursor end;
  Index first_merge;
  Index end_merge;
  Index tokens;
};

/// Merges that are worked on together.
struct MergeRange {
  Index first_merge = 0;
  Index merges = 0;         ///< 0: there is nothing left
  bool tokens_fit = false;  ///< whether there is space for the tokens of all of them
};

/// A view: plan and offsets must outlive it.
template <class Scalar>
class MergeTokens {
 public:
  MergeTokens(const MergePlan<Scalar>& plan, std::span<const Index> offsets)
      : plan_(plan), offsets_(offsets) {}

  /// Calls f(first token, tokens) for the tokens of a merge from `begin` up to `end`, a sequence at a time.
  template <class Function>
  void for_sequences(TokenCursor begin, TokenCursor end, Index merge, const Function& f) const {
    const Index first = (std::max)(plan_.begin(merge), begin.position);
    const Index last = (std::min)(plan_.begin(merge + 1) - 1, end.position);
    for (Index i = first; i <= last; ++i) {
      const Index from = i == begin.position ? begin.row : 0;
      const Index to = i == end.position ? end.row : length(i);
      if (from < to) f(offset(plan_.sequence(i)) + from, to - from);
    }
  }

  /// The same for all tokens of a merge, in about equal stretches of at most `limit` tokens.
  template <class Function>
  void for_stretches(Index merge, Index limit, const Function& f) const {
    for_sequences({plan_.begin(merge), 0}, {plan_.begin(merge + 1), 0}, merge, [&](Index first, Index count) {
      const Index most = even_part(count, limit);
      for (Index end = first + count; first < end; first += most) f(first, (std::min)(most, end - first));
    });
  }

  /// Whole sequences from `begin` on as far as `space` goes; a sequence that is longer in about equal parts.
  TokenChunk chunk_from(TokenCursor begin, Index space) const {
    const auto num_sequences = static_cast<Index>(plan_.sequences.size());
    TokenCursor end = begin;
    Index tokens = 0;
    while (end.position < num_sequences) {
      const Index count = length(end.position) - end.row;
      if (tokens + count > space) {
        if (tokens == 0) {
          tokens = even_part(count, space);
          end.row += tokens;
        }
        break;
      }
      end = {end.position + 1, 0};
      tokens += count;
    }
    const Index end_position = end.row > 0 ? end.position + 1 : end.position;
    if (begin.position == end_position) return {begin, end, 0, 0, 0};
    return {begin, end, merge_of(begin.position), merge_of(end_position - 1) + 1, tokens};
  }

  /// From merge `first` on the most, up to `limit`, whose tokens fill no more than `space`; one at least, if
  /// any is left.
  MergeRange choose(Index first, Index limit, Index space) const {
    const Index most = (std::min)(plan_.num_merges() - first, limit);
    Index count = 0, tokens = 0;
    for (; count < most; ++count) {
      const Index more = tokens_of(first + count);
      if (count > 0 && tokens + more > space) break;
      tokens += more;
    }
    return {first, count, tokens <= space};
  }

 private:
  Index offset(Index sequence) const { return offsets_[static_cast<std::size_t>(sequence)]; }

  /// Of the sequence at a position of the plan.
  Index length(Index position) const {
    const Index sequence = plan_.sequence(position);
    return offset(sequence + 1) - offset(sequence);
  }

  Index tokens_of(Index merge) const {
    Index sum = 0;
    for (Index i = plan_.begin(merge); i < plan_.begin(merge + 1); ++i) sum += length(i);
    return sum;
  }

  Index merge_of(Index position) const {
    const auto& begins = plan_.merge_begins;
    return static_cast<Index>(std::upper_bound(begins.begin(), begins.end(), position) - begins.begin()) - 1;
  }

  const MergePlan<Scalar>& plan_;
  std::span<const Index> offsets_;
};

}  // namespace meo::detail

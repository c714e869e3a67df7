#pragma once

/// How kernels walk through the tokens of a plan's merges.

#include <algorithm>
#include <span>

#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

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

  Index offset(Index sequence) const { return offsets_[static_cast<std::size_t>(sequence)]; }
  Index length(Index sequence) const { return offset(sequence + 1) - offset(sequence); }

  /// Calls f(first token, tokens) for each sequence of a merge, in about equal stretches of at most `limit`
  /// tokens.
  template <class Function>
  void for_stretches(Index merge, Index limit, const Function& f) const {
    for (Index i = plan_.begin(merge); i < plan_.begin(merge + 1); ++i) {
      const Index begin = offset(plan_.sequence(i)), end = offset(plan_.sequence(i) + 1);
      const Index most = even_part(end - begin, limit);
      for (Index first = begin; first < end; first += most) f(first, (std::min)(most, end - first));
    }
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
  Index tokens_of(Index merge) const {
    Index sum = 0;
    for (Index i = plan_.begin(merge); i < plan_.begin(merge + 1); ++i) sum += length(plan_.sequence(i));
    return sum;
  }

  const MergePlan<Scalar>& plan_;
  std::span<const Index> offsets_;
};

}  // namespace meo::detail

#pragma once

/// Rows that go to the ranks that own their experts, and back: all-to-all, as many as there are, none padded
/// and none dropped.
///
/// Letters: N experts of all ranks, P ranks.

#include <numeric>
#include <span>
#include <vector>

#include <meo/distributed/communicator.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

namespace detail {

/// Of one batch: how many rows each rank sends to each expert.
class TokenExchange {
 public:
  /// begins: N + 1, where the rows of each expert begin among those that this rank sends, which are sorted by
  /// expert. Collective.
  void plan(const Communicator& communicator, std::span<const Index> begins);

  /// Rows that this rank sends to owners, and that it receives from senders.
  Index sent_rows() const { return std::accumulate(to_owners_.begin(), to_owners_.end(), Index{0}); }
  Index received_rows() const { return static_cast<Index>(experts_.size()); }
  /// Of each received row its expert, counted from this rank's first: sorted by sender and then by expert.
  std::span<const Index> received_experts() const { return experts_; }

  /// rows: sent_rows × width, by expert; received: received_rows × width. Collective.
  template <Sendable T>
  void send(const Communicator& communicator, const T* rows, Index width, T* received) const {
    exchange(communicator, rows, to_owners_, width, received, from_senders_);
  }
  /// Of each received row a row of results, to where it came from. Collective.
  template <Sendable T>
  void send_back(const Communicator& communicator, const T* results, Index width, T* received) const {
    exchange(communicator, results, from_senders_, width, received, to_owners_);
  }

 private:
  /// rows, received: as many as the counts of each rank say.
  template <Sendable T>
  static void exchange(const Communicator& communicator, const T* rows, std::span<const Index> counts,
                       Index width, T* received, std::span<const Index> received_counts) {
    const auto times_width = [&](std::span<const Index> of) {
      std::vector<Index> values(of.begin(), of.end());
      for (Index& value : values) value *= width;
      return values;
    };
    const auto all = [](const std::vector<Index>& values) {
      return static_cast<std::size_t>(std::accumulate(values.begin(), values.end(), Index{0}));
    };
    const std::vector<Index> to = times_width(counts), from = times_width(received_counts);
    communicator.all_to_all_v<T>({rows, all(to)}, to, {received, all(from)}, from);
  }

  std::vector<Index> to_owners_;     ///< P: rows that go to each rank
  std::vector<Index> from_senders_;  ///< P: rows that come from each rank
  std::vector<Index> experts_;       ///< of each row that comes
};

inline void TokenExchange::plan(const Communicator& communicator, std::span<const Index> begins) {
  const auto num_experts = static_cast<Index>(begins.size()) - 1;
  const int ranks = communicator.size();
  const Index own = range_of(num_experts, ranks, communicator.rank()).size();
  std::vector<Index> counts, counts_of_ranks;
  for (std::size_t expert = 0; expert + 1 < begins.size(); ++expert)
    counts.push_back(begins[expert + 1] - begins[expert]);
  to_owners_.clear();
  for (int rank = 0; rank < ranks; ++rank) {
    const RankRange experts = range_of(num_experts, ranks, rank);
    counts_of_ranks.push_back(experts.size());
    to_owners_.push_back(begins[static_cast<std::size_t>(experts.end)] -
                         begins[static_cast<std::size_t>(experts.begin)]);
  }
  const std::vector<Index> own_of_each(static_cast<std::size_t>(ranks), own);
  std::vector<Index> received(static_cast<std::size_t>(ranks * own));
  communicator.all_to_all_v<Index>(counts, counts_of_ranks, received, own_of_each);
  from_senders_.assign(static_cast<std::size_t>(ranks), 0);
  experts_.clear();
  for (std::size_t i = 0; i < received.size(); ++i) {
    const auto expert = static_cast<Index>(i) % own;
    from_senders_[i / static_cast<std::size_t>(own)] += received[i];
    experts_.insert(experts_.end(), static_cast<std::size_t>(received[i]), expert);
  }
}

}  // namespace detail
}  // namespace meo::mpi

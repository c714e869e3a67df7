#pragma once

/// What makes the losses of gates those of all ranks' rows.

#include <span>

#include <meo/distributed/communicator.hpp>
#include <meo/routing/statistics_reduction.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

/// What Inputs::reduction is given where a batch lies with several ranks. Sums are added in the order of the
/// ranks: the loss has the same bits on all of them.
///
///     const meo::mpi::StatisticsSum<float> add_up(world);
///     inputs.reduction = meo::StatisticsReduction<float>(add_up);
template <class Scalar>
class StatisticsSum {
 public:
  /// Over the ranks of `communicator`.
  explicit StatisticsSum(const Communicator& communicator) : communicator_(communicator) {}

  /// Collective.
  void operator()(std::span<meo::detail::Sum<Scalar>> sums, std::span<Index> counts) const {
    auto sums_of_all = communicator_.start_all_reduce_sum(sums);
    communicator_.all_reduce_sum(counts);
    sums_of_all.finish();
  }

 private:
  Communicator communicator_;
};

}  // namespace meo::mpi

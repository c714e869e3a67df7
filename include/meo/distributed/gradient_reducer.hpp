#pragma once

/// Data parallelism: gradients that every rank has of its part of a batch become those of all of it, while
/// backward goes on.

#include <algorithm>
#include <cstddef>
#include <deque>
#include <span>
#include <vector>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>
#include <meo/errors.hpp>
#include <meo/training/parameters.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

/// Sums of gradients over ranks, in buckets. As soon as backward is done with a layer or a block of a model,
/// its ranges are added, in the same order on all ranks; a bucket that is full is sent on its way while
/// backward goes on with the layer before, and finish waits for what is left, before the optimiser:
///
///     meo::mpi::GradientReducer<float> reducer(world);
///     for (std::size_t i = blocks.size(); i-- > 0;) {
///       blocks[i].backward(x[i], inputs, contexts[i], dy, gradients[i], dx);
///       reducer.add(meo::parameters(gradients[i]));
///       …
///     }
///     reducer.finish();
///
/// They are summed, not averaged: each rank's loss is its share of that of the whole batch, as where it
/// divides by the tokens of all ranks, and the gates' losses are so by themselves, see Inputs::reduction.
/// Ranges of a bucket's size and more are summed where they lie, smaller ones by way of a copy. Every value
/// is summed in the order of the ranks, whatever the buckets. How much is hidden behind backward is MPI's
/// affair: next to nothing where ranks share a machine, see bench/README.md. Without finish, ranges that lay
/// in buckets keep what each rank had.
template <class Scalar>
class GradientReducer {
 public:
  /// bucket_values: values of a bucket; many small ones are slow to send, and none of a large one is on its
  /// way before it is full. Throws std::invalid_argument for fewer than one, and unless all ranks say the
  /// same. Collective.
  explicit GradientReducer(const Communicator& communicator, Index bucket_values = Index{1} << 20)
      : communicator_(communicator), bucket_values_(static_cast<std::size_t>(bucket_values)) {
    agree(communicator, [&] {
      meo::detail::require(bucket_values >= 1, "bucket_values: expected at least 1, got ", bucket_values);
    });
    require_same(communicator, "bucket_values", bucket_values);
  }

  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  /// Nobody writes to these ranges or reads them any more until finish has returned. Collective, but does not
  /// wait.
  void add(const Parameters<Scalar>& ranges) {
    for (const ParameterRange<Scalar>& range : ranges) {
      if (range.values.size() >= bucket_values_) {
        sums_.push_back(communicator_.start_all_reduce_sum(range.values));
        continue;
      }
      if (!open_ || open_->values.size() + range.values.size() > bucket_values_) {
        start_open();
        open_ = &buckets_.emplace_back();
        open_->values.reserve(bucket_values_);
      }
      open_->values.insert(open_->values.end(), range.values.begin(), range.values.end());
      open_->ranges.push_back(range.values);
    }
    for (Reduction<Scalar>& sum : sums_) sum.advance();
  }

  /// Returns when all ranges that were added hold their sums. Collective.
  void finish() {
    start_open();
    for (Reduction<Scalar>& sum : sums_) sum.finish();
    sums_.clear();
    for (const Bucket& bucket : buckets_) {
      auto value = bucket.values.begin();
      for (const std::span<Scalar> range : bucket.ranges) {
        std::copy_n(value, range.size(), range.begin());
        value += static_cast<std::ptrdiff_t>(range.size());
      }
    }
    buckets_.clear();
  }

 private:
  /// Copies of ranges, one behind another.
  struct Bucket {
    std::vector<Scalar> values;
    std::vector<std::span<Scalar>> ranges;
  };

  void start_open() {
    if (open_ != nullptr) sums_.push_back(communicator_.start_all_reduce_sum(std::span(open_->values)));
    open_ = nullptr;
  }

  Communicator communicator_;
  std::size_t bucket_values_;
  std::deque<Bucket> buckets_;
  Bucket* open_ = nullptr;  ///< the last bucket, while there is room in it
  std::deque<Reduction<Scalar>> sums_;
};

}  // namespace meo::mpi

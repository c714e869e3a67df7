#pragma once

/// Memory that mixers work in; buffers grow where they must and are kept.

#include <vector>

#include <meo/experts/aligned_vector.hpp>
#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/parallel.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

template <class Scalar>
struct MixingMemory {
  Dispatch<Scalar> dispatch;
  MergePlan<Scalar> merges;
  std::vector<unsigned char> is_merged;    ///< of each row
  std::vector<unsigned char> is_combined;  ///< of each row
  AlignedVector<Scalar> packed_rows;       ///< of a chunk of tokens, as merged products read them
  AlignedVector<Scalar> scratch;           ///< of kernels, at most max_scratch_bytes a thread

  /// So many scalars for each thread.
  Scratch<Scalar> reserve_scratch(Index size) {
    const Index threads = max_threads();
    return {reserve(scratch, threads * size), threads};
  }
};

/// Gradients of what they are named after.
template <class Scalar>
struct MixingGradientMemory {
  AlignedVector<Scalar> expert_rows;       ///< tokens × D, of which one expert uses as many rows as it has
  std::vector<Sum<Scalar>> slot_products;  ///< of each slot of the dispatch
  AlignedVector<Scalar> packed_inputs;     ///< tokens × D, as outer products read them
  MergePlan<Scalar> weight_merges;         ///< merges whose weights have one gradient
  AlignedVector<Scalar> merge_products;    ///< of each pair
  AlignedVector<Sum<Scalar>> partial_products;  ///< the same for each chunk of panels
  AlignedVector<Scalar> partial_gradients;      ///< of many merges, panels of all experts
};

}  // namespace meo::detail

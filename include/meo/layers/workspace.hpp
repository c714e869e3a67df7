#pragma once

/// Memory that a layer's forward works in.

#include <vector>

#include <meo/experts/aligned_vector.hpp>
#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/layers/forward_record.hpp>
#include <meo/routing/gate.hpp>
#include <meo/routing/routing.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Belongs to one forward at a time; any layer of the scalar may use it. Buffers grow to the largest batch
/// seen and are kept, so that a forward of no larger batch allocates nothing: one of no more tokens,
/// sequences, descriptions and tokens of these, and with noise only if there was some before.
template <class Scalar>
class Workspace {
 public:
  /// What the last forward's gate decided.
  Routing<Scalar> routing;

  // The rest is between a layer and its kernels.
  detail::ForwardRecord last_forward;
  GateWorkspace<Scalar> gate;
  detail::AlignedVector<Scalar> gate_input;         ///< R × D_g: means over tokens
  detail::AlignedVector<Scalar> task_means;         ///< descriptions × S
  detail::AlignedVector<Scalar> attention_rows;     ///< tokens × ⌊D/r⌋
  detail::AlignedVector<Scalar> attended;           ///< tokens × D: x + TokenAttention(x)
  detail::AlignedVector<detail::Sum<Scalar>> sums;  ///< while means are formed
  std::vector<Index> token_offsets;                 ///< 0 … tokens, where every token is gated by itself
  detail::Dispatch<Scalar> dispatch;
  detail::MergePlan<Scalar> merges;
  detail::AlignedVector<Scalar> scratch;  ///< merged panels, at most detail::max_scratch_bytes a thread
};

}  // namespace meo

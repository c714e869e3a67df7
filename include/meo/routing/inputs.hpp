#pragma once

/// What a forward reads beside x.

#include <span>

#include <meo/routing/noise.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/routing/statistics_reduction.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Everything is optional but for the task embeddings at task level. Of what the gate alone needs, as noise,
/// top_k and allowed_experts, backward reads nothing: forward has left what it decided. Nothing is copied:
/// what is pointed to must live until forward returns.
template <class Scalar>
struct Inputs {
  /// How the rows of x divide into sequences; null: all of them are one sequence.
  const Sequences* sequences = nullptr;
  /// Task level: the embedded descriptions, one under another, tokens × task_features.
  MatrixView<Scalar> task_embeddings = {};
  /// Task level: how the rows of task_embeddings divide into descriptions; null: all of them are one. The
  /// mean of a description without tokens is 0, so that the gate sees the projection's bias p alone.
  const Sequences* descriptions = nullptr;
  /// Task level: each sequence's description; empty: the b-th for sequence b, or the only one for all.
  std::span<const Index> task_of_sequence = {};
  /// Training noise for the gate; none: inference. It breaks the symmetry of experts that start equal with
  /// zero gates: without it, training from a dense layer needs another start; see
  /// MixtureLayer::initialize_from_dense.
  Noise<Scalar> noise = {};
  /// K of this forward; 0: that of the layer's options.
  Index top_k = 0;
  /// num_experts, 0 for an expert that no row may have; it counts as one whose logit is −∞. Empty: all may
  /// be. A row has fewer than K experts where no more are left.
  std::span<const unsigned char> allowed_experts = {};
  /// Training where the rows of a batch lie with several processes: what makes the losses those of all rows.
  /// Noise is each one's own: its rows of one matrix, or draws of a generator of its own, which must not
  /// begin as another's does. Capacity and expert choice count a process's own rows.
  StatisticsReduction<Scalar> reduction = {};
};

}  // namespace meo

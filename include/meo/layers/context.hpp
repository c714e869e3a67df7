#pragma once

/// Memory that a layer's forward and the backward that follows it share.

#include <vector>

#include <meo/experts/aligned_vector.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/layers/workspace.hpp>
#include <meo/routing/gate.hpp>
#include <meo/types.hpp>

namespace meo {

/// What forward leaves here, backward reads: the gate's decision with its noise, means over tokens, and what
/// token attention made of x. x itself is not copied: backward is given it again. Belongs to one forward and
/// its backwards at a time; buffers grow to the largest batch seen and are kept.
template <class Scalar>
class Context : public Workspace<Scalar> {
 public:
  /// Task level: the gradient of inputs.task_embeddings, as the last backward wrote it.
  Matrix<Scalar> task_embeddings_gradient;

  // The rest is between a layer and its kernels: gradients of what they are named after.
  GateGradientWorkspace<Scalar> gate_gradients;
  std::vector<Scalar> weights_gradient;                   ///< R × K, in the routing's order
  detail::AlignedVector<Scalar> gate_input_gradient;      ///< R × D_g
  detail::AlignedVector<Scalar> task_inputs_gradient;     ///< descriptions × D_g
  detail::AlignedVector<Scalar> task_means_gradient;      ///< descriptions × S
  detail::AlignedVector<Scalar> attended_gradient;        ///< tokens × D
  detail::AlignedVector<Scalar> attention_rows_gradient;  ///< tokens × ⌊D/r⌋
  detail::AlignedVector<Scalar> expert_rows_gradient;     ///< MoE: rows of one expert × D
  std::vector<Scalar> slot_products;                      ///< MoE: of each slot of the dispatch
  detail::MergePlan<Scalar> weight_merges;                ///< MEO: merges whose gates have one gradient
  detail::AlignedVector<Scalar> merge_products;           ///< MEO: merges × K
  detail::AlignedVector<Scalar> partial_products;         ///< MEO: the same for each chunk of panels
};

}  // namespace meo

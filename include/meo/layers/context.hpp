#pragma once

/// Memory that a layer's forward and the backward that follows it share.

#include <vector>

#include <meo/experts/aligned_vector.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/layers/workspace.hpp>
#include <meo/routing/gate.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

/// A matrix that keeps its memory when it shrinks. After a move it has no rows.
template <class Scalar>
class GrowingMatrix {
 public:
  Eigen::Map<Matrix<Scalar>> resize(Index rows, Index cols) {
    rows_ = rows;
    cols_ = cols;
    return {reserve(values_, rows * cols), rows, cols};
  }
  Eigen::Map<const Matrix<Scalar>> get() const {
    return {values_.data(), values_.empty() ? 0 : rows_, cols_};
  }

 private:
  AlignedVector<Scalar> values_;
  Index rows_ = 0;
  Index cols_ = 0;
};

}  // namespace detail

/// What forward leaves here, backward reads: the gate's decision with its noise, means over tokens, and what
/// token attention made of x. x itself is not copied: backward is given it again. Belongs to one forward and
/// its backwards at a time; buffers grow to the largest batch seen and are kept.
///
/// A context is empty from the moment a forward begins until it finishes, so also after one that threw. It
/// knows the layer of its forward, which moves take along, but no copy of the layer, and its options, the
/// batch's sequences and, at task level, their descriptions: backward with any other throws
/// std::invalid_argument. That x and the parameters are the forward's is up to the caller.
template <class Scalar>
class Context : public Workspace<Scalar> {
 public:
  /// Task level: the gradient of inputs.task_embeddings, as the last backward wrote it.
  Eigen::Map<const Matrix<Scalar>> task_embeddings_gradient() const { return task_embeddings.get(); }

  // The rest is between a layer and its kernels: gradients of what they are named after.
  detail::GrowingMatrix<Scalar> task_embeddings;
  GateGradientWorkspace<Scalar> gate_gradients;
  std::vector<Scalar> weights_gradient;                   ///< R × K, in the routing's order
  detail::AlignedVector<Scalar> gate_input_gradient;      ///< R × D_g
  detail::AlignedVector<Scalar> task_inputs_gradient;     ///< descriptions × D_g
  detail::AlignedVector<Scalar> task_means_gradient;      ///< descriptions × S
  std::vector<Index> task_begins;                         ///< descriptions + 1, in task_order
  std::vector<Index> task_order;                          ///< sequences, by description
  detail::AlignedVector<Scalar> attended_gradient;        ///< tokens × D
  detail::AlignedVector<Scalar> attention_rows_gradient;  ///< tokens × ⌊D/r⌋
  detail::AlignedVector<Scalar>
      expert_rows_gradient;  ///< MoE: tokens × D, of which one expert uses as many rows as it has
  std::vector<detail::Sum<Scalar>> slot_products;  ///< MoE: of each slot of the dispatch
  detail::AlignedVector<Scalar> packed_inputs;     ///< MEO: tokens × D, as outer products read them
  detail::MergePlan<Scalar> weight_merges;         ///< MEO: merges whose gates have one gradient
  detail::AlignedVector<Scalar> merge_products;    ///< MEO: merges × K
  detail::AlignedVector<detail::Sum<Scalar>> partial_products;  ///< MEO: the same for each chunk of panels
  detail::AlignedVector<Scalar> partial_gradients;  ///< MEO: of many merges, panels of all experts
};

}  // namespace meo

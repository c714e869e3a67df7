#pragma once

/// A feed-forward block whose experts are merged once and kept; see MergedExpert.
///
/// Letters: R rows, T tokens, D features, H hidden features.

#include <optional>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/experts/activation.hpp>
#include <meo/experts/any_activation.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/merged_expert.hpp>
#include <meo/layers/reject_forward.hpp>
#include <meo/mixing/hidden.hpp>
#include <meo/overlap.hpp>
#include <meo/routing/assignment.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// A MergedExpert for each projection of a block, with the block's activation between them. What the gates
/// decide on a prompt is kept so, be there one for the block or one for each projection:
///
///     block.forward(prompt, {}, y, workspace);
///     meo::MergedFeedForward kept(block, workspace);
///
/// Refused is a block of MoeLayers with one gate: its experts are whole blocks, of which merged parameters
/// would make another function. One that was moved from is empty; see MergedExpert.
///
/// Storage: what merged weights are stored as, see MergedExpert.
template <class ScalarType, class ActivationType = Gelu, class StorageType = ScalarType>
class MergedFeedForward : private detail::RejectForward<ScalarType, FeedForwardWorkspace<ScalarType>> {
 public:
  /// What it is made of.
  using Scalar = ScalarType;
  using Activation = ActivationType;
  using Storage = StorageType;

  /// As merge does.
  template <class Layer>
  MergedFeedForward(const FeedForward<Layer, Activation>& block,
                    const Assignment<typename Layer::Scalar>& assignment,
                    std::optional<Index> row = std::nullopt)
      : activation_(block.activation()) {
    merge_projections(block, assignment, row);
  }
  template <class Layer, class LayerWorkspace>
  MergedFeedForward(const FeedForward<Layer, Activation>& block,
                    const FeedForwardWorkspace<typename Layer::Scalar, LayerWorkspace>& decided,
                    std::optional<Index> row = std::nullopt)
      : activation_(block.activation()) {
    merge_projections(block, decided, row);
  }

  /// Merges the experts of all projections by one assignment, for each row of it or for one. Throws
  /// std::invalid_argument as MergedExpert::merge does, and unless options().shared_gate says that one
  /// decision serves the block, and then changes nothing.
  template <class Layer>
  void merge(const FeedForward<Layer, Activation>& block, const Assignment<Scalar>& assignment,
             std::optional<Index> row = std::nullopt) {
    merge_projections(block, assignment, row);
    activation_ = block.activation();
  }

  /// The same by what each gate of the block decided in the last forward with this workspace or context.
  template <class Layer, class LayerWorkspace>
  void merge(const FeedForward<Layer, Activation>& block,
             const FeedForwardWorkspace<Scalar, LayerWorkspace>& decided,
             std::optional<Index> row = std::nullopt) {
    merge_projections(block, decided, row);
    activation_ = block.activation();
  }

  /// Whether it was moved from.
  bool empty() const { return up_->empty(); }
  Index rows() const { return up_->rows(); }
  Index features() const { return up_->in_features(); }
  Index hidden_features() const { return up_->out_features(); }
  bool gated() const { return gate_up_.has_value(); }
  const Activation& activation() const { return activation_; }

  /// The projections as they are kept.
  const MergedExpert<Scalar, Storage>& up() const { return *up_; }
  const MergedExpert<Scalar, Storage>& down() const { return *down_; }
  /// Throws std::invalid_argument for a block that is not gated.
  const MergedExpert<Scalar, Storage>& gate_up() const {
    detail::require(gated(), "gate_up: expected a gated block, got gated = false");
    return *gate_up_;
  }

  using detail::RejectForward<Scalar, FeedForwardWorkspace<Scalar>>::forward;

  /// See MergedExpert::forward for all three.
  Matrix<Scalar> forward(const ConstMatrixRef<Scalar>& x) const { return forward(x, Inputs<Scalar>{}); }
  Matrix<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Sequences& sequences) const {
    return forward(x, Inputs<Scalar>{.sequences = &sequences});
  }
  Matrix<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const;

  /// x: T × D; y: T × D, overwritten; see MergedExpert::forward. A row without pairs gives zeros.
  void forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
               FeedForwardWorkspace<Scalar>& workspace) const;

 private:
  using Kept = std::optional<MergedExpert<Scalar, Storage>>;

  template <class Block>
  void merge_projections(const Block& block, const Assignment<Scalar>& assignment, std::optional<Index> row) {
    detail::require(block.options().shared_gate,
                    "routing: expected a block with one for all projections, got shared_gate = false");
    merge_projections(block, assignment, assignment, assignment, row);
  }

  template <class Block, class LayerWorkspace>
  void merge_projections(const Block& block, const FeedForwardWorkspace<Scalar, LayerWorkspace>& decided,
                         std::optional<Index> row) {
    if (block.options().shared_gate) merge_projections(block, decided.up.routing, row);
    else merge_projections(block, decided.up.routing, decided.gate_up.routing, decided.down.routing, row);
  }

  template <class Block>
  void merge_projections(const Block& block, const Assignment<Scalar>& up, const Assignment<Scalar>& gate_up,
                         const Assignment<Scalar>& down, std::optional<Index> row) {
    const bool gated = block.options().gated;
    detail::require_not_moved_from(block.empty(), "block");
    detail::require(!(block.options().shared_gate && Block::Kind::mixes_blocks),
                    "block: expected experts that are merged projection by projection, got a MoE block with "
                    "shared_gate = true, whose experts are whole blocks");
    const Index num_experts = block.up().experts().num_experts();
    MergedExpert<Scalar, Storage>::check(up, num_experts, row);
    for (const Assignment<Scalar>* const other : {gated ? &gate_up : &up, &down})
      other->check(up.rows, num_experts);
    keep(up_, block.up(), up, row);
    keep(down_, block.down(), down, row);
    if (gated) keep(gate_up_, block.gate_up(), gate_up, row);
    else gate_up_.reset();
  }

  template <class Layer>
  static void keep(Kept& kept, const Layer& layer, const Assignment<Scalar>& assignment,
                   std::optional<Index> row) {
    if (kept) kept->merge(layer, assignment, row);
    else kept.emplace(layer, assignment, row);
  }

  Activation activation_;
  Kept up_;  ///< these two always there
  Kept down_;
  Kept gate_up_;
};

template <class ScalarType, class ActivationType, class StorageType>
auto MergedFeedForward<ScalarType, ActivationType, StorageType>::forward(const ConstMatrixRef<Scalar>& x,
                                                                         const Inputs<Scalar>& inputs) const
    -> Matrix<Scalar> {
  FeedForwardWorkspace<Scalar> workspace;
  Matrix<Scalar> y(x.rows(), features());
  forward(x, inputs, y, workspace);
  return y;
}

template <class ScalarType, class ActivationType, class StorageType>
void MergedFeedForward<ScalarType, ActivationType, StorageType>::forward(
    const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
    FeedForwardWorkspace<Scalar>& workspace) const {
  detail::BlockMemory<Scalar>& memory = memory_of(workspace);
  detail::require_shape(y, x.rows(), features(), "y (rows of x by features)");
  detail::require_apart<Scalar>(y, "y", x, "x");
  const Index size = x.rows() * hidden_features();
  Scalar* const hidden = detail::reserve(memory.hidden, size);
  Scalar* const gate_hidden = gated() ? detail::reserve(memory.gate_hidden, size) : nullptr;
  const auto matrix = [&](Scalar* values) {
    return Eigen::Map<Matrix<Scalar>>(values, x.rows(), hidden_features());
  };
  up_->forward(x, inputs, matrix(hidden), workspace.up);
  if (gate_up_) gate_up_->forward(x, inputs, matrix(gate_hidden), workspace.gate_up);
  detail::activate_rows(activation_, detail::Hidden<Scalar>{hidden_features(), hidden, hidden, gate_hidden},
                        x.rows());
  down_->forward(matrix(hidden), inputs, y, workspace.down);
}

/// In the scalar of the block.
template <class Layer, class Activation, class Decided>
MergedFeedForward(const FeedForward<Layer, Activation>&, const Decided&, std::optional<Index> = std::nullopt)
    -> MergedFeedForward<typename Layer::Scalar, Activation>;

#define MEO_INSTANCES(instance, Scalar)           \
  instance class MergedFeedForward<Scalar, Gelu>; \
  instance class MergedFeedForward<Scalar, Relu>; \
  instance class MergedFeedForward<Scalar, AnyActivation>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

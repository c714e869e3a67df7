#pragma once

/// A feed-forward block split over ranks projection by projection: each of them by its outputs, as a layer by
/// itself. So routers and token attention of `down` see hidden features of all ranks, which are gathered; y
/// has the bits of the unsplit block, on any number of ranks.
///
/// Letters: T tokens, D features, H hidden features.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>
#include <meo/distributed/tensor_parallel.hpp>
#include <meo/errors.hpp>
#include <meo/experts/activation.hpp>
#include <meo/experts/aligned_vector.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/mixing/hidden.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

/// As TensorParallel, for what that refuses: a block of MoeLayer or MeoLayer, at any level, with a router for
/// each projection, as in the MEO authors' code, and a block of MeoLayer with one router at token level,
/// where `down` has token attention. Takes MeoLayers with one router at other levels, too: TensorParallel
/// sends less for them, but sums y over ranks.
template <class LayerType, class Activation = Gelu>
class TensorParallelProjections {
 public:
  /// What is split, and how each of its projections is.
  using Layer = FeedForward<LayerType, Activation>;
  using Scalar = typename Layer::Scalar;
  using Options = FeedForwardOptions;
  using Projection = TensorParallel<LayerType>;

  /// What a forward leaves to its backward.
  class Context {
   public:
    typename Projection::Context up;       ///< of each projection
    typename Projection::Context gate_up;  ///< of a gated block
    typename Projection::Context down;     ///< as up

    /// Task level: the gradient of inputs.task_embeddings, as the last backward wrote it.
    const Matrix<Scalar>& task_embeddings_gradient() const { return task_embeddings_; }

   private:
    friend class TensorParallelProjections;
    AlignedVector<Scalar> pre_activation_, hidden_, gate_hidden_;  // T × H
    AlignedVector<Scalar> d_hidden_, d_gate_hidden_;               // T × H
    AlignedVector<Scalar> d_x_;                                    // T × D, through gate_up
    std::vector<Scalar> d_weights_;  // of each pair of the one routing, this rank's summands
    Matrix<Scalar> task_embeddings_;
  };

  /// This rank's part of a block that is the same on all ranks. Throws std::invalid_argument for a block of
  /// MoeLayer with one decision, one without a router, and unless each rank gets one output at least of each
  /// projection.
  TensorParallelProjections(const Communicator& communicator, const Layer& whole)
      : options_(agreed(communicator, [&] { return checked(whole.options()); })),
        activation_(whole.activation()),
        up_(communicator, whole.up()),
        down_(communicator, whole.down()) {
    if (options_.gated) gate_up_.emplace(communicator, whole.gate_up());
  }
  /// All parameters zero.
  TensorParallelProjections(const Communicator& communicator, const Options& options,
                            const Activation& activation = {})
      : TensorParallelProjections(communicator, Layer(options, activation)) {}

  /// The whole block, on all ranks.
  Layer whole() const {
    Layer whole(options_, activation_);
    whole.up() = up_.whole();
    if (gate_up_) whole.gate_up() = gate_up_->whole();
    whole.down() = down_.whole();
    return whole;
  }

  /// As of TensorParallel.
  const Communicator& communicator() const { return up_.communicator(); }
  const Options& options() const { return options_; }

  /// Calls visit(name, projection) for up., gate_up. in a gated block, and down.
  template <class Visitor>
  void visit_projections(const Visitor& visit) {
    visit_projections_of(*this, visit);
  }
  template <class Visitor>
  void visit_projections(const Visitor& visit) const {
    visit_projections_of(*this, visit);
  }

  /// The parts' parameters, under their projections' names; see FeedForward::visit.
  template <class Visitor>
  void visit(const Visitor& visit) {
    visit_projections([&](std::string_view projection, Projection& split) {
      split.visit(
          [&](std::string_view name, auto&& part) { visit(std::string(projection).append(name), part); });
    });
  }

  /// x, y: T × D. Returns the sum of the routers' balance losses; see TensorParallel::forward.
  Scalar forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                 Context& context) const;

  /// Gradients of forward(x, inputs, y, context); see TensorParallel::backward.
  void backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context& context,
                const ConstMatrixRef<Scalar>& dy, TensorParallelProjections& gradients, MatrixRef<Scalar> dx,
                const Scalar& d_loss = Scalar(1)) const;

 private:
  static Options checked(const Options& options) {
    meo::detail::require(!options.shared_gate || !Layer::Kind::mixes_blocks,
                         "shared_gate: expected a block with a router for each projection, got true; split a "
                         "block with one decision by its hidden features, as TensorParallel does");
    meo::detail::require(options.has_router, "has_router: expected a block with a router, got false");
    return options;
  }

  template <class Self, class Visitor>
  static void visit_projections_of(Self& self, const Visitor& visit) {
    visit("up.", self.up_);
    if (self.gate_up_) visit("gate_up.", *self.gate_up_);
    visit("down.", self.down_);
  }

  /// T × H.
  Eigen::Map<Matrix<Scalar>> hidden(AlignedVector<Scalar>& buffer, Index rows) const {
    return {meo::detail::reserve(buffer, rows * options_.hidden_features), rows, options_.hidden_features};
  }
  meo::detail::Hidden<Scalar> hidden_of(Context& context) const {
    return {options_.hidden_features, context.pre_activation_.data(), context.hidden_.data(),
            gate_up_ ? context.gate_hidden_.data() : nullptr};
  }

  Options options_;
  Activation activation_;
  Projection up_, down_;
  std::optional<Projection> gate_up_;
};

template <class LayerType, class Activation>
auto TensorParallelProjections<LayerType, Activation>::forward(const ConstMatrixRef<Scalar>& x,
                                                               const Inputs<Scalar>& inputs,
                                                               MatrixRef<Scalar> y, Context& context) const
    -> Scalar {
  agree(communicator(), [&] {
    meo::detail::require_shape(y, x.rows(), options_.features, "y (rows of x by features)");
    meo::detail::require_apart<Scalar>(y, "y", x, "x");
  });
  Scalar loss = up_.forward(x, inputs, hidden(context.pre_activation_, x.rows()), context.up);
  // The loss of a projection's own router, or 0 where it takes the decision of `up`.
  const auto forward_other = [&](const Projection& projection, const ConstMatrixRef<Scalar>& from,
                                 MatrixRef<Scalar> to, typename Projection::Context& left) {
    if (!options_.shared_gate) return projection.forward(from, inputs, to, left);
    projection.forward_routed(from, {.sequences = inputs.sequences}, context.up.routing, to, left);
    return Scalar(0);
  };
  if (gate_up_) loss += forward_other(*gate_up_, x, hidden(context.gate_hidden_, x.rows()), context.gate_up);
  const auto h = hidden(context.hidden_, x.rows());
  meo::detail::activate_rows(activation_, hidden_of(context), x.rows());
  loss += forward_other(down_, h, y, context.down);
  return loss;
}

template <class LayerType, class Activation>
void TensorParallelProjections<LayerType, Activation>::backward(
    const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context& context,
    const ConstMatrixRef<Scalar>& dy, TensorParallelProjections& gradients, MatrixRef<Scalar> dx,
    const Scalar& d_loss) const {
  agree(communicator(), [&] {
    meo::detail::require_shape(dx, x.rows(), x.cols(), "dx (the shape of x)");
    meo::detail::require_apart<Scalar>(dx, "dx", x, "x");
    meo::detail::require_apart<Scalar>(dx, "dx", dy, "dy");
    meo::detail::require(gradients.options_ == options_,
                         "gradients: expected those of a block of the same options");
    meo::detail::require(&gradients != this, "gradients: expected another block, got the one itself");
    const Index size = x.rows() * options_.hidden_features;
    meo::detail::require(static_cast<Index>(context.hidden_.size()) >= size,
                         "context: expected a forward's that left ", size, " hidden activations, got ",
                         context.hidden_.size());
  });
  context.d_weights_.assign(context.up.routing.weights.size(), Scalar(0));
  const auto backward_other = [&](const Projection& projection, const ConstMatrixRef<Scalar>& from,
                                  typename Projection::Context& left, const ConstMatrixRef<Scalar>& d_to,
                                  Projection& to_add, MatrixRef<Scalar> d_from) {
    if (!options_.shared_gate) return projection.backward(from, inputs, left, d_to, to_add, d_from, d_loss);
    projection.backward_routed(from, {.sequences = inputs.sequences}, context.up.routing, left, d_to, to_add,
                               d_from, context.d_weights_);
  };
  const auto d_hidden = hidden(context.d_hidden_, x.rows());
  backward_other(down_, hidden(context.hidden_, x.rows()), context.down, dy, gradients.down_, d_hidden);
  const auto d_gate_hidden = hidden(context.d_gate_hidden_, gate_up_ ? x.rows() : 0);
  meo::detail::activate_rows_backward(activation_, hidden_of(context), x.rows(), context.d_hidden_.data(),
                                      context.d_gate_hidden_.data());
  Eigen::Map<Matrix<Scalar>> through_gate_up(meo::detail::reserve(context.d_x_, gate_up_ ? x.size() : 0),
                                             gate_up_ ? x.rows() : 0, x.cols());
  if (gate_up_)
    backward_other(*gate_up_, x, context.gate_up, d_gate_hidden, *gradients.gate_up_, through_gate_up);
  if (options_.shared_gate) {
    up_.backward(x, inputs, context.up, d_hidden, gradients.up_, dx, d_loss,
                 std::span<const Scalar>(context.d_weights_));
  } else {
    up_.backward(x, inputs, context.up, d_hidden, gradients.up_, dx, d_loss);
  }
  if (gate_up_) dx += through_gate_up;
  if (options_.routing.level == Level::task) {
    context.task_embeddings_ = context.up.task_embeddings_gradient();
    if (options_.shared_gate) return;
    if (gate_up_) context.task_embeddings_ += context.gate_up.task_embeddings_gradient();
    context.task_embeddings_ += context.down.task_embeddings_gradient();
  }
}

}  // namespace meo::mpi

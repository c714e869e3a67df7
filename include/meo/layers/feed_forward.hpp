#pragma once

/// The feed-forward block of a transformer, y = down(activation(up(x))), or gated as in T5 v1.1,
/// y = down(activation(up(x)) · gate_up(x)), with projections that are MoE or MEO layers.
///
/// Letters: T tokens, D features, H hidden features.

#include <array>
#include <concepts>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

#include <meo/errors.hpp>
#include <meo/experts/activation.hpp>
#include <meo/kernels/dispatched_product.hpp>
#include <meo/layers/inputs.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/workspace.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo {

struct FeedForwardOptions {
  Index features = 0;             ///< D
  Index hidden_features = 0;      ///< H
  Index num_experts = 0;          ///< N; 0: the count in the layers' type
  Index top_k = 1;                ///< K
  Level level = Level::sequence;  ///< of every gate
  bool bias = true;               ///< whether experts have biases
  bool gated = false;             ///< whether there is a gate_up
  bool shared_gate =
      false;  ///< one gate, that of `up`, for the whole block; else each projection has its own
  Index reduce_factor = 64;  ///< as in LayerOptions, from here on
  Index task_features = 0;
  bool gate_before_attention = false;
  double loss_coefficient = 1e-2;
  double noise_epsilon = 1e-2;

  bool operator==(const FeedForwardOptions&) const = default;
};

/// Memory that a block's forward works in; see Workspace.
template <class Scalar>
class FeedForwardWorkspace {
 public:
  Workspace<Scalar> up;
  Workspace<Scalar> gate_up;
  Workspace<Scalar> down;
  detail::AlignedVector<Scalar> hidden;       ///< T × H: the input of `down`
  detail::AlignedVector<Scalar> gate_hidden;  ///< T × H: the output of `gate_up`
};

template <class Scalar>
struct FeedForwardOutput {
  Matrix<Scalar> y;         ///< T × D
  Scalar loss;              ///< sum of the balance losses of the block's gates
  Routing<Scalar> up;       ///< with a shared gate the only one; the others are then empty
  Routing<Scalar> gate_up;  ///< empty unless gated
  Routing<Scalar> down;
};

/// Layer is MoeLayer or MeoLayer, Activation any functor Scalar → Scalar that does not throw.
template <class Layer, class Activation = Gelu>
class FeedForward {
 public:
  using Scalar = typename Layer::Scalar;
  static_assert(std::is_invocable_r_v<Scalar, const Activation&, const Scalar&>,
                "meo: Activation must be callable as Scalar(Scalar) const");

  /// All parameters zero. Throws std::invalid_argument for options that make no block.
  explicit FeedForward(const FeedForwardOptions& options, Activation activation = {})
      : options_(options),
        activation_(std::move(activation)),
        up_(projection(options, options.features, options.hidden_features)),
        down_(projection(options, options.hidden_features, options.features)) {
    options_.num_experts = up_.num_experts();
    if (options.gated) gate_up_.emplace(up_.options());
  }

  const FeedForwardOptions& options() const { return options_; }
  const Activation& activation() const { return activation_; }

  /// D → H, H → D and, in a gated block, another D → H.
  Layer& up() { return up_; }
  const Layer& up() const { return up_; }
  Layer& down() { return down_; }
  const Layer& down() const { return down_; }
  /// Throws std::invalid_argument for a block that is not gated.
  Layer& gate_up() {
    require_gated();
    return *gate_up_;
  }
  const Layer& gate_up() const {
    require_gated();
    return *gate_up_;
  }

  /// Start values for all projections, in the order up, gate_up, down.
  template <class Generator>
  void initialize(Generator& rng) {
    up_.initialize(rng);
    if (gate_up_) gate_up_->initialize(rng);
    down_.initialize(rng);
  }

  /// x: T × D, one sequence. Throws as the layers' forwards do.
  FeedForwardOutput<Scalar> forward(const ConstMatrixRef<Scalar>& x) const {
    return forward(x, Inputs<Scalar>{});
  }

  /// x: T × D, the tokens of all sequences one under another.
  FeedForwardOutput<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Sequences& sequences) const {
    return forward(x, Inputs<Scalar>{.sequences = &sequences});
  }

  /// Every gate of the block reads the same inputs: a noise matrix serves each of them, a generator is drawn
  /// from in the order up, gate_up, down.
  FeedForwardOutput<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const {
    FeedForwardWorkspace<Scalar> workspace;
    FeedForwardOutput<Scalar> output;
    output.y.resize(x.rows(), options_.features);
    output.loss = forward(x, inputs, output.y, workspace);
    output.up = std::move(workspace.up.routing);
    output.gate_up = std::move(workspace.gate_up.routing);
    output.down = std::move(workspace.down.routing);
    return output;
  }

  template <class Other, class... More>
  requires(!std::same_as<typename Other::Scalar, Scalar>)
      FeedForwardOutput<Scalar> forward(const Eigen::MatrixBase<Other>&, const More&...)
  const {
    static_assert(std::same_as<typename Other::Scalar, Scalar>,
                  "meo: x has another scalar than the block; convert it with x.cast<Scalar>()");
    return {};
  }

  /// y: T × D, not overlapping x; what it holds is overwritten. Returns the loss; routings and hidden
  /// activations stay in the workspace. Allocates only where the workspace has to grow. If it throws, y is
  /// untouched.
  Scalar forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                 FeedForwardWorkspace<Scalar>& workspace) const {
    detail::require(x.cols() == options_.features, "x: expected features = ", options_.features,
                    " columns, got ", x.cols());
    detail::require_shape(y, x.rows(), options_.features, "y (rows of x by features)");
    const Index size = x.rows() * options_.hidden_features;
    Scalar* const hidden = detail::reserve(workspace.hidden, size);
    Scalar* const gate_hidden = options_.gated ? detail::reserve(workspace.gate_hidden, size) : nullptr;
    if (!options_.shared_gate) return forward_separately(x, inputs, y, hidden, gate_hidden, workspace);
    if constexpr (Layer::merges_experts) forward_merged(x, inputs, y, hidden, gate_hidden, workspace);
    else forward_by_expert(up_, x, inputs, y, hidden, gate_hidden, workspace);
    return workspace.up.routing.loss;
  }

 private:
  static LayerOptions projection(const FeedForwardOptions& options, Index in_features, Index out_features) {
    return {.in_features = in_features,
            .out_features = out_features,
            .num_experts = options.num_experts,
            .top_k = options.top_k,
            .level = options.level,
            .bias = options.bias,
            .reduce_factor = options.reduce_factor,
            .task_features = options.task_features,
            .gate_before_attention = options.gate_before_attention,
            .loss_coefficient = options.loss_coefficient,
            .noise_epsilon = options.noise_epsilon};
  }

  void require_gated() const {
    detail::require(options_.gated, "gate_up: expected a gated block, got gated = false");
  }

  Eigen::Map<Matrix<Scalar>> matrix(Scalar* data, Index rows) const {
    return {data, rows, options_.hidden_features};
  }

  /// hidden = activation(hidden) · gate_hidden, the factor only where there is one.
  void activate(Scalar* hidden, const Scalar* gate_hidden, Index rows) const {
    const Index cols = options_.hidden_features;
    detail::parallel_ranges(rows, detail::max_threads(), [&](Index begin, Index end, Index) {
      for (Index i = begin * cols; i < end * cols; ++i) {
        hidden[i] = activation_(hidden[i]);
        if (gate_hidden != nullptr) hidden[i] = hidden[i] * gate_hidden[i];
      }
    });
  }

  Scalar forward_separately(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                            MatrixRef<Scalar> y, Scalar* hidden, Scalar* gate_hidden,
                            FeedForwardWorkspace<Scalar>& workspace) const {
    Scalar loss = up_.forward(x, inputs, matrix(hidden, x.rows()), workspace.up).loss;
    if (gate_up_) loss += gate_up_->forward(x, inputs, matrix(gate_hidden, x.rows()), workspace.gate_up).loss;
    activate(hidden, gate_hidden, x.rows());
    loss += down_.forward(matrix(hidden, x.rows()), inputs, y, workspace.down).loss;
    return loss;
  }

  /// One gate, experts merged: one merged block for every sequence.
  void forward_merged(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                      Scalar* hidden, Scalar* gate_hidden, FeedForwardWorkspace<Scalar>& workspace) const {
    const Routing<Scalar>& routing = up_.forward(x, inputs, matrix(hidden, x.rows()), workspace.up);
    const Inputs<Scalar> sequences{.sequences = inputs.sequences};
    if (gate_up_) {
      gate_up_->forward_routed(x, sequences, routing, matrix(gate_hidden, x.rows()), workspace.gate_up);
    }
    activate(hidden, gate_hidden, x.rows());
    down_.forward_routed(matrix(hidden, x.rows()), sequences, routing, y, workspace.down);
  }

  /// One gate, vanilla experts: each expert is a whole block, y_t = Σ_i g_ti block_i(x_t).
  template <class VanillaLayer>
  void forward_by_expert(const VanillaLayer& up, const ConstMatrixRef<Scalar>& x,
                         const Inputs<Scalar>& inputs, MatrixRef<Scalar> y, Scalar* hidden,
                         Scalar* gate_hidden, FeedForwardWorkspace<Scalar>& workspace) const {
    const Routing<Scalar>& routing = up.route(x, inputs, workspace.up);
    const std::array<Index, 2> single{0, x.rows()};
    const std::span<const Index> offsets = inputs.sequences != nullptr ? inputs.sequences->offsets() : single;
    const detail::Dispatch<Scalar>& dispatch = up.dispatch(routing, offsets, workspace.up);
    for (Index expert = 0; expert < up.num_experts(); ++expert) {
      const Index rows = dispatch.begin(expert + 1) - dispatch.begin(expert);
      if (rows == 0) continue;
      detail::gathered_product(up.experts().panels(), expert, dispatch, x.data(), x.outerStride(), hidden);
      if (gate_up_) {
        detail::gathered_product(gate_up_->experts().panels(), expert, dispatch, x.data(), x.outerStride(),
                                 gate_hidden);
      }
      activate(hidden, gate_hidden, rows);
      detail::combined_product(down_.experts().panels(), expert, dispatch, hidden, options_.hidden_features,
                               y.data(), y.outerStride());
    }
  }

  FeedForwardOptions options_;
  Activation activation_;
  Layer up_;
  Layer down_;
  std::optional<Layer> gate_up_;
};

}  // namespace meo

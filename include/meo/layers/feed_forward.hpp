#pragma once

/// The feed-forward block of a transformer, y = down(activation(up(x))), or gated as in T5 v1.1,
/// y = down(activation(up(x)) · gate_up(x)), with projections that are MoE or MEO layers.
///
/// Letters: T tokens, D features, H hidden features.

#include <algorithm>
#include <concepts>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/errors.hpp>
#include <meo/experts/activate.hpp>
#include <meo/experts/activation.hpp>
#include <meo/kernels/dispatched_product.hpp>
#include <meo/kernels/input_gradient.hpp>
#include <meo/kernels/weight_gradient.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/inputs.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/offsets.hpp>
#include <meo/layers/workspace.hpp>
#include <meo/overlap.hpp>
#include <meo/parallel.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

struct FeedForwardOptions {
  Index features = 0;             ///< D
  Index hidden_features = 0;      ///< H
  Index num_experts = 0;          ///< N; 0: the count in the layers' type
  Index top_k = 1;                ///< K; with 1 gates learn nothing from the task, see LayerOptions::top_k
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
  MergeOrder merge_order = MergeOrder::automatic;

  bool operator==(const FeedForwardOptions&) const = default;
};

/// Memory that a block's forward works in; see Workspace.
template <class Scalar, class LayerWorkspace = Workspace<Scalar>>
class FeedForwardWorkspace {
 public:
  LayerWorkspace up;
  LayerWorkspace gate_up;
  LayerWorkspace down;
  detail::AlignedVector<Scalar> hidden;       ///< T × H: the input of `down`
  detail::AlignedVector<Scalar> gate_hidden;  ///< T × H: the output of `gate_up`
};

/// Memory that a block's forward and its backward share; see Context, also for which backward takes it. With
/// one gate for a block of MoE layers forward leaves no hidden activations, and backward computes them again,
/// expert by expert.
template <class Scalar>
class FeedForwardContext : public FeedForwardWorkspace<Scalar, Context<Scalar>> {
 public:
  /// Task level: the gradient of inputs.task_embeddings, as the last backward wrote it.
  Eigen::Map<const Matrix<Scalar>> task_embeddings_gradient() const { return task_embeddings.get(); }

  // The rest is between a block and its kernels.
  detail::GrowingMatrix<Scalar> task_embeddings;
  detail::AlignedVector<Scalar> pre_activation;        ///< T × H: the output of `up`
  detail::AlignedVector<Scalar> hidden_gradient;       ///< T × H
  detail::AlignedVector<Scalar> gate_hidden_gradient;  ///< T × H
  detail::AlignedVector<Scalar> gate_up_gradient;      ///< T × D: what reaches x through `gate_up`
};

template <class Scalar>
struct FeedForwardOutput {
  Matrix<Scalar> y;         ///< T × D
  Scalar loss;              ///< sum of the balance losses of the block's gates
  Routing<Scalar> up;       ///< with a shared gate the only one; the others are then empty
  Routing<Scalar> gate_up;  ///< empty unless gated
  Routing<Scalar> down;
};

/// Layer is MoeLayer or MeoLayer, Activation any functor Scalar → Scalar that does not throw. To start from a
/// dense block, start each projection from its projection; see RoutedLayer::initialize_from_dense.
template <class Layer, class Activation = Gelu>
class FeedForward {
  template <class Y>
  static constexpr bool is_output = std::convertible_to<Y, MatrixRef<typename Layer::Scalar>>;
  template <class Memory>
  static constexpr bool is_memory =
      std::convertible_to<Memory&, FeedForwardWorkspace<typename Layer::Scalar>&> ||
      std::convertible_to<Memory&, FeedForwardContext<typename Layer::Scalar>&>;

 public:
  using Scalar = typename Layer::Scalar;
  static_assert(std::is_invocable_r_v<Scalar, const Activation&, const Scalar&>,
                "meo: Activation must be callable as Scalar(Scalar) const");

  /// All parameters zero. Throws std::invalid_argument for options that make no block.
  explicit FeedForward(const FeedForwardOptions& options, Activation activation = {})
      : options_(checked(options)),
        activation_(std::move(activation)),
        up_(projection(options, options.features, options.hidden_features)),
        down_(projection(options, options.hidden_features, options.features)) {
    options_.num_experts = up_.num_experts();
    if (options.gated) gate_up_.emplace(up_.options());
  }

  const FeedForwardOptions& options() const { return options_; }
  const Activation& activation() const { return activation_; }

  /// Whether the block, or a part of it, was moved from; then it has options, but throws std::logic_error
  /// when used, until it is assigned to.
  bool empty() const { return up_.empty() || down_.empty() || (gate_up_ && gate_up_->empty()); }

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

  template <class X, class Y, class Memory>
  requires(std::same_as<typename X::Scalar, Scalar> &&
           !(is_output<Y> && is_memory<Memory>)) void forward(const Eigen::MatrixBase<X>&,
                                                              const Inputs<Scalar>&, Y&&, Memory&) const {
    static_assert(is_output<Y>,
                  "meo: y must be a meo::Matrix of the block's scalar, or a block or map of one");
    static_assert(is_memory<Memory>,
                  "meo: the workspace must be a FeedForwardWorkspace or FeedForwardContext of the block's "
                  "scalar");
  }

  /// y: T × D; what it holds is overwritten. Returns the loss; routings and hidden activations stay in the
  /// workspace. Throws std::invalid_argument if y overlaps x. Allocates only where the workspace has to grow.
  /// If it throws, y is untouched.
  Scalar forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                 FeedForwardWorkspace<Scalar>& workspace) const {
    return forward(x, inputs, y, reserve_hidden(x.rows(), workspace), workspace);
  }

  /// The same, and `context` then holds what backward needs.
  Scalar forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                 FeedForwardContext<Scalar>& context) const {
    Hidden hidden = reserve_hidden(x.rows(), context);
    if (!recomputes_hidden())
      hidden.pre_activation = detail::reserve(context.pre_activation, x.rows() * options_.hidden_features);
    return forward(x, inputs, y, hidden, context);
  }

  /// Gradients of forward(x, inputs, y, context), of which `context` is left: for dy, the gradient of y (T ×
  /// D), and d_loss, that of the loss. Adds those of the parameters to `gradients`, a block of the same
  /// options but not this one, and overwrites dx, T × D. Leaves that of the task embeddings in
  /// context.task_embeddings_gradient(). Throws std::invalid_argument for shapes, inputs or a context that do
  /// not fit, or a dx that overlaps x or dy, and then changes nothing. Allocates only where the context has
  /// to grow. Activation needs a member `derivative`.
  void backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                FeedForwardContext<Scalar>& context, const ConstMatrixRef<Scalar>& dy, FeedForward& gradients,
                MatrixRef<Scalar> dx, const Scalar& d_loss = Scalar(1)) const {
    static_assert(
        requires(const Activation& f, const Scalar& value) {
          { f.derivative(value) } -> std::convertible_to<Scalar>;
        },
        "meo: backward needs an Activation with a member Scalar derivative(Scalar) const");
    detail::require(x.cols() == options_.features, "x: expected features = ", options_.features,
                    " columns, got ", x.cols());
    detail::require_shape(dy, x.rows(), options_.features, "dy (rows of x by features)");
    detail::require_shape(dx, x.rows(), options_.features, "dx (rows of x by features)");
    detail::require(gradients.options() == options_, "gradients: expected a block of the same options");
    detail::require(&gradients != this, "gradients: expected another block, got the one itself");
    require_not_empty("block");
    gradients.require_not_empty("gradients");
    detail::require_apart<Scalar>(dx, "dx", x, "x");
    detail::require_apart<Scalar>(dx, "dx", dy, "dy");
    const detail::Offsets offsets = up_.check(x, inputs);
    check_context(offsets, inputs, context);
    const Index size = x.rows() * options_.hidden_features;
    detail::reserve(context.hidden_gradient, size);
    if (gate_up_) {
      detail::reserve(context.gate_hidden_gradient, size);
      detail::reserve(context.gate_up_gradient, x.rows() * options_.features);
    }
    if (!options_.shared_gate) backward_separately(x, inputs, context, dy, gradients, dx, d_loss);
    else if constexpr (Layer::merges_experts)
      backward_merged(x, offsets, inputs, context, dy, gradients, dx, d_loss);
    else backward_by_expert(x, offsets, inputs, context, dy, gradients, dx, d_loss);
    if (options_.level != Level::task) return;
    Eigen::Map<Matrix<Scalar>> embeddings =
        context.task_embeddings.resize(inputs.task_embeddings.rows(), options_.task_features);
    embeddings = context.up.task_embeddings_gradient();
    if (options_.shared_gate) return;
    if (gate_up_) embeddings += context.gate_up.task_embeddings_gradient();
    embeddings += context.down.task_embeddings_gradient();
  }

 private:
  /// The layers check the rest, and would give these sizes other names.
  static const FeedForwardOptions& checked(const FeedForwardOptions& options) {
    detail::require(options.features >= 1, "features: expected at least 1, got ", options.features);
    detail::require(options.hidden_features >= 1, "hidden_features: expected at least 1, got ",
                    options.hidden_features);
    return options;
  }

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
            .noise_epsilon = options.noise_epsilon,
            .merge_order = options.merge_order};
  }

  /// Throws unless `context` has what this block's forward leaves of such a batch.
  void check_context(std::span<const Index> offsets, const Inputs<Scalar>& inputs,
                     const FeedForwardContext<Scalar>& context) const {
    up_.check_context(offsets, inputs, context.up);
    if (!options_.shared_gate) {
      if (gate_up_) gate_up_->check_context(offsets, inputs, context.gate_up);
      down_.check_context(offsets, inputs, context.down);
    } else if constexpr (Layer::merges_experts) {
      if (gate_up_) gate_up_->check_routed_context(offsets, context.gate_up);
      down_.check_routed_context(offsets, context.down);
    }
    if (recomputes_hidden()) return;
    const Index size = offsets.back() * options_.hidden_features;
    check_left(context.pre_activation, size, "of pre-activations");
    check_left(context.hidden, size, "of hidden activations");
    if (gate_up_) check_left(context.gate_hidden, size, "of gate_up");
  }

  /// Throws unless a buffer of the context has `count` values at least.
  static void check_left(const detail::AlignedVector<Scalar>& buffer, Index count, std::string_view what) {
    detail::require(static_cast<Index>(buffer.size()) >= count, "context: expected a forward's that left ",
                    count, " values ", what, ", got ", buffer.size());
  }

  void require_not_empty(std::string_view name) const { detail::require_not_moved_from(empty(), name); }

  void require_gated() const {
    detail::require(options_.gated, "gate_up: expected a gated block, got gated = false");
  }

  Eigen::Map<Matrix<Scalar>> matrix(Scalar* data, Index rows) const {
    return {data, rows, options_.hidden_features};
  }

  /// Hidden activations of a forward. pre_activation may be hidden itself; gate_hidden is null unless gated.
  struct Hidden {
    Scalar* pre_activation;
    Scalar* hidden;
    Scalar* gate_hidden;
  };

  template <class Memory>
  Hidden reserve_hidden(Index rows, Memory& memory) const {
    const Index size = rows * options_.hidden_features;
    Scalar* const hidden = detail::reserve(memory.hidden, size);
    return {hidden, hidden, options_.gated ? detail::reserve(memory.gate_hidden, size) : nullptr};
  }

  bool recomputes_hidden() const { return options_.shared_gate && !Layer::merges_experts; }

  template <class Memory>
  Scalar forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                 const Hidden& hidden, Memory& memory) const {
    for (auto* const part : {&memory.up, &memory.gate_up, &memory.down}) part->last_forward.clear();
    require_not_empty("block");
    detail::require(x.cols() == options_.features, "x: expected features = ", options_.features,
                    " columns, got ", x.cols());
    detail::require_shape(y, x.rows(), options_.features, "y (rows of x by features)");
    detail::require_apart<Scalar>(y, "y", x, "x");
    if (!options_.shared_gate) return forward_separately(x, inputs, y, hidden, memory);
    if constexpr (Layer::merges_experts) forward_merged(x, inputs, y, hidden, memory);
    else forward_by_expert(up_, x, inputs, y, hidden, memory);
    return memory.up.routing.loss;
  }

  /// hidden = activation(pre_activation) · gate_hidden, the factor only where there is one.
  void activate(const Hidden& h, Index rows) const {
    const Index cols = options_.hidden_features;
    detail::parallel_ranges(rows, detail::max_threads(), [&](Index begin, Index end, Index) {
      const Index at = begin * cols;
      detail::activate(activation_, h.pre_activation + at,
                       h.gate_hidden != nullptr ? h.gate_hidden + at : nullptr, end * cols - at,
                       h.hidden + at);
    });
  }

  /// In place from the gradient of hidden to that of pre_activation; that of gate_hidden, where there is one,
  /// is written beside it.
  void activate_backward(const Scalar* pre_activation, const Scalar* gate_hidden, Index rows,
                         Scalar* hidden_gradient, Scalar* gate_hidden_gradient) const {
    const Index cols = options_.hidden_features;
    detail::parallel_ranges(rows, detail::max_threads(), [&](Index begin, Index end, Index) {
      const Index at = begin * cols;
      detail::activate_backward(activation_, pre_activation + at,
                                gate_hidden != nullptr ? gate_hidden + at : nullptr, end * cols - at,
                                hidden_gradient + at,
                                gate_hidden != nullptr ? gate_hidden_gradient + at : nullptr);
    });
  }

  template <class Memory>
  Scalar forward_separately(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                            MatrixRef<Scalar> y, const Hidden& h, Memory& memory) const {
    Scalar loss = up_.forward(x, inputs, matrix(h.pre_activation, x.rows()), memory.up).loss;
    if (gate_up_) loss += gate_up_->forward(x, inputs, matrix(h.gate_hidden, x.rows()), memory.gate_up).loss;
    activate(h, x.rows());
    loss += down_.forward(matrix(h.hidden, x.rows()), inputs, y, memory.down).loss;
    return loss;
  }

  void backward_separately(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                           FeedForwardContext<Scalar>& context, const ConstMatrixRef<Scalar>& dy,
                           FeedForward& gradients, MatrixRef<Scalar> dx, const Scalar& d_loss) const {
    down_.backward(matrix(context.hidden.data(), x.rows()), inputs, context.down, dy, gradients.down_,
                   matrix(context.hidden_gradient.data(), x.rows()), d_loss);
    activate_backward(x.rows(), context);
    up_.backward(x, inputs, context.up, matrix(context.hidden_gradient.data(), x.rows()), gradients.up_, dx,
                 d_loss);
    if (!gate_up_) return;
    Eigen::Map<Matrix<Scalar>> through_gate_up(context.gate_up_gradient.data(), x.rows(), x.cols());
    gate_up_->backward(x, inputs, context.gate_up, matrix(context.gate_hidden_gradient.data(), x.rows()),
                       *gradients.gate_up_, through_gate_up, d_loss);
    dx += through_gate_up;
  }

  void activate_backward(Index rows, FeedForwardContext<Scalar>& context) const {
    activate_backward(context.pre_activation.data(), gate_up_ ? context.gate_hidden.data() : nullptr, rows,
                      context.hidden_gradient.data(), context.gate_hidden_gradient.data());
  }

  /// One gate, experts merged: one merged block for every sequence.
  template <class Memory>
  void forward_merged(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                      const Hidden& h, Memory& memory) const {
    const Routing<Scalar>& routing = up_.forward(x, inputs, matrix(h.pre_activation, x.rows()), memory.up);
    const Inputs<Scalar> sequences{.sequences = inputs.sequences};
    if (gate_up_) {
      gate_up_->forward_routed(x, sequences, routing, matrix(h.gate_hidden, x.rows()), memory.gate_up);
    }
    activate(h, x.rows());
    down_.forward_routed(matrix(h.hidden, x.rows()), sequences, routing, y, memory.down);
  }

  void backward_merged(const ConstMatrixRef<Scalar>& x, std::span<const Index> offsets,
                       const Inputs<Scalar>& inputs, FeedForwardContext<Scalar>& context,
                       const ConstMatrixRef<Scalar>& dy, FeedForward& gradients, MatrixRef<Scalar> dx,
                       const Scalar& d_loss) const requires(Layer::merges_experts) {
    const Routing<Scalar>& routing = context.up.routing;
    std::vector<Scalar>& d_weights = context.down.weights_gradient;
    d_weights.assign(routing.weights.size(), Scalar(0));
    const auto shares = up_.shares_gradient(inputs, context.up);
    down_.backward_experts(matrix(context.hidden.data(), x.rows()), offsets, routing, context.down, dy,
                           gradients.down_, matrix(context.hidden_gradient.data(), x.rows()), d_weights,
                           shares);
    activate_backward(x.rows(), context);
    Eigen::Map<Matrix<Scalar>> through_gate_up(context.gate_up_gradient.data(), x.rows(), x.cols());
    if (gate_up_) {
      gate_up_->backward_experts(x, offsets, routing, context.gate_up,
                                 matrix(context.gate_hidden_gradient.data(), x.rows()), *gradients.gate_up_,
                                 through_gate_up, d_weights, shares);
    }
    up_.backward(x, inputs, context.up, matrix(context.hidden_gradient.data(), x.rows()), gradients.up_, dx,
                 d_loss, d_weights);
    if (gate_up_) dx += through_gate_up;
  }

  /// One gate, vanilla experts: each expert is a whole block, y_t = Σ_i g_ti block_i(x_t).
  template <class VanillaLayer, class Memory>
  void forward_by_expert(const VanillaLayer& up, const ConstMatrixRef<Scalar>& x,
                         const Inputs<Scalar>& inputs, MatrixRef<Scalar> y, const Hidden& h,
                         Memory& memory) const {
    const Routing<Scalar>& routing = up.route(x, inputs, memory.up);
    const detail::Offsets offsets(inputs.sequences, x.rows());
    const detail::Dispatch<Scalar>& dispatch = up.dispatch(routing, offsets, memory.up);
    for (Index expert = 0; expert < up.num_experts(); ++expert) {
      const Index rows = dispatch.begin(expert + 1) - dispatch.begin(expert);
      if (rows == 0) continue;
      gather_hidden(expert, dispatch, x, h);
      activate(h, rows);
      detail::combined_product(down_.experts().panels(), expert, dispatch, h.hidden, options_.hidden_features,
                               y.data(), y.outerStride());
    }
    up.finish(offsets, inputs, true, memory.up);
  }

  /// An expert's pre-activations and gate_hidden for the tokens dispatched to it, one after another.
  void gather_hidden(Index expert, const detail::Dispatch<Scalar>& dispatch, const ConstMatrixRef<Scalar>& x,
                     const Hidden& h) const {
    detail::gathered_product(up_.experts().panels(), expert, dispatch, x.data(), x.outerStride(),
                             h.pre_activation);
    if (!gate_up_) return;
    detail::gathered_product(gate_up_->experts().panels(), expert, dispatch, x.data(), x.outerStride(),
                             h.gate_hidden);
  }

  /// Expert by expert: with q_t = dy_t D_i, D_i the expert's down, dg_ti = ⟨q_t, hidden_t⟩ + ⟨dy_t, bias⟩,
  /// and g_ti q_t is the gradient of hidden_t.
  void backward_by_expert(const ConstMatrixRef<Scalar>& x, std::span<const Index> offsets,
                          const Inputs<Scalar>& inputs, FeedForwardContext<Scalar>& context,
                          const ConstMatrixRef<Scalar>& dy, FeedForward& gradients, MatrixRef<Scalar> dx,
                          const Scalar& d_loss) const requires(!Layer::merges_experts) {
    const Routing<Scalar>& routing = context.up.routing;
    const detail::Dispatch<Scalar>& dispatch = up_.dispatch(routing, offsets, context.up);
    const Index threads = detail::max_threads(), cols = options_.hidden_features;
    Hidden h = reserve_hidden(x.rows(), context);
    h.pre_activation = detail::reserve(context.pre_activation, x.rows() * cols);
    Scalar* const q = context.hidden_gradient.data();
    Scalar* const gate_q = context.gate_hidden_gradient.data();
    const auto up_panels = up_.experts().panels(), down_panels = down_.experts().panels();
    Scalar* const scratch = detail::reserve(
        context.up.scratch,
        threads * (std::max)({detail::weight_gradient_scratch_size<Scalar>(
                                  (std::max)(up_panels.num_panels(), down_panels.num_panels()), x.rows()),
                              detail::input_gradient_scratch_size(up_panels),
                              detail::input_gradient_scratch_size(down_panels)}));
    Scalar* const rows_of_x = detail::reserve(context.up.expert_rows_gradient, x.rows() * x.cols());
    context.up.slot_products.resize(dispatch.tokens.size());
    for (Index expert = 0; expert < up_.num_experts(); ++expert) {
      const Index begin = dispatch.begin(expert), rows = dispatch.begin(expert + 1) - begin;
      if (rows == 0) continue;
      const Index* const tokens = dispatch.tokens.data() + begin;
      const Scalar* const weights = dispatch.weights.data() + begin;
      gather_hidden(expert, dispatch, x, h);
      activate(h, rows);
      detail::weight_gradient<Scalar>(gradients.down_.experts().mutable_panels(), expert, {h.hidden, cols},
                                      {dy.data(), dy.outerStride(), tokens, weights}, rows, scratch, threads);
      detail::input_gradient<Scalar>(down_panels, expert, {dy.data(), dy.outerStride(), tokens}, rows, false,
                                     q, cols, scratch, threads);
      for (Index r = 0; r < rows; ++r) {
        Eigen::Map<Vector<Scalar>> q_row(q + r * cols, cols);
        const Eigen::Map<const Vector<Scalar>> hidden_row(h.hidden + r * cols, cols);
        context.up.slot_products[static_cast<std::size_t>(begin + r)] =
            detail::dot(q_row, hidden_row) +
            detail::product_with_bias(down_panels, expert, dy.data() + tokens[r] * dy.outerStride());
        q_row *= weights[r];
      }
      activate_backward(h.pre_activation, h.gate_hidden, rows, q, gate_q);
      const auto through = [&](const Layer& layer, Layer& layer_gradients, const Scalar* d_output, bool add) {
        detail::weight_gradient<Scalar>(layer_gradients.experts().mutable_panels(), expert,
                                        {x.data(), x.outerStride(), tokens}, {d_output, cols}, rows, scratch,
                                        threads);
        detail::input_gradient<Scalar>(layer.experts().panels(), expert, {d_output, cols}, rows, add,
                                       rows_of_x, x.cols(), scratch, threads);
      };
      through(up_, gradients.up_, q, false);
      if (gate_up_) through(*gate_up_, *gradients.gate_up_, gate_q, true);
      for (Index r = 0; r < rows; ++r) {
        const Eigen::Map<const Vector<Scalar>> row(rows_of_x + r * x.cols(), x.cols());
        if (dispatch.is_first[static_cast<std::size_t>(begin + r)] != 0) dx.row(tokens[r]) = row.transpose();
        else dx.row(tokens[r]) += row.transpose();
      }
    }
    context.up.weights_gradient.assign(routing.weights.size(), Scalar(0));
    up_.collect_weights_gradient(routing, offsets, context.up, context.up.weights_gradient);
    up_.backward_gate(x, offsets, inputs, context.up, d_loss, gradients.up_, dx);
  }

  FeedForwardOptions options_;
  Activation activation_;
  Layer up_;
  Layer down_;
  std::optional<Layer> gate_up_;
};

}  // namespace meo

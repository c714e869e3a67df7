#pragma once

/// The feed-forward block of a transformer, y = down(activation(up(x))), or gated as in T5 v1.1,
/// y = down(activation(up(x)) · gate_up(x)), with projections that are MoE or MEO layers. An activation of
/// two inputs makes that y = down(activation(up(x), gate_up(x))).
///
/// Letters: T tokens, D features, H hidden features.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/experts/activation.hpp>
#include <meo/experts/any_activation.hpp>
#include <meo/experts/gated_activation.hpp>
#include <meo/experts/growing_matrix.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/forward_record.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/mixture_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/layers/reject_forward.hpp>
#include <meo/layers/workspace.hpp>
#include <meo/mixing/block_mixer.hpp>
#include <meo/mixing/hidden.hpp>
#include <meo/overlap.hpp>
#include <meo/routing/assignment.hpp>
#include <meo/routing/gate_input.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/offsets.hpp>
#include <meo/routing/routing.hpp>
#include <meo/routing/routing_options.hpp>
#include <meo/routing/shared_experts.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// What the user chooses about a block; the same for MoE and MEO.
struct FeedForwardOptions {
  Index features = 0;         ///< D
  Index hidden_features = 0;  ///< H
  Index num_experts = 0;      ///< N; 0: the count in the layers' type
  Index top_k = 1;            ///< K; with 1 gates learn nothing by default, see LayerOptions::top_k
  SharedExpertOptions shared_experts = {};  ///< beside the N, in every projection; see LayerOptions
  bool bias = true;                         ///< whether experts have biases
  bool gated = false;                       ///< whether there is a gate_up
  /// One router, that of `up`, for the whole block, of which the other projections have none; else each
  /// projection has its own.
  bool shared_gate = false;
  RoutingOptions routing = {};                     ///< of every router
  MergeOrder merge_order = MergeOrder::automatic;  ///< of every projection, see LayerOptions
  /// With a shared gate: whether there is that one router. Without it the block runs by forward_routed alone.
  bool has_router = true;

  bool operator==(const FeedForwardOptions&) const = default;
};

namespace detail {

/// Those options of a layer or a block, by reference, that a block and its projections have in common: all of
/// a projection's but its sizes and whether it has a router.
template <class Options>
auto common_options(Options& options) {
  return std::tie(options.num_experts, options.top_k, options.shared_experts, options.bias, options.routing,
                  options.merge_order);
}

/// What a block and its backward keep beside their projections' memory.
template <class Scalar>
struct BlockMemory {
  ForwardRecord last_forward;         ///< of experts that are whole blocks
  GateRowsMemory gate_rows;           ///< the same
  AlignedVector<Scalar> hidden;       ///< T × H: the input of `down`
  AlignedVector<Scalar> gate_hidden;  ///< T × H: the output of `gate_up`
};
template <class Scalar>
struct BlockGradientMemory {
  GrowingMatrix<Scalar> task_embeddings;
  std::vector<Scalar> weights;           ///< of each pair of the one routing
  AlignedVector<Scalar> pre_activation;  ///< T × H: the output of `up`
  AlignedVector<Scalar> hidden;          ///< T × H: gradients of what they are named after, from here on
  AlignedVector<Scalar> gate_hidden;     ///< T × H
  AlignedVector<Scalar> gate_up_x;       ///< T × D: what reaches x through `gate_up`
};

}  // namespace detail

/// Memory that a block's forward works in; see Workspace.
template <class Scalar, class LayerWorkspace = Workspace<Scalar>>
class FeedForwardWorkspace {
 public:
  /// Of the projections.
  LayerWorkspace up;
  LayerWorkspace gate_up;
  LayerWorkspace down;

  /// Between a block and what it is made of.
  friend detail::BlockMemory<Scalar>& memory_of(FeedForwardWorkspace& workspace) { return workspace.memory_; }
  friend const detail::BlockMemory<Scalar>& memory_of(const FeedForwardWorkspace& workspace) {
    return workspace.memory_;
  }

 private:
  detail::BlockMemory<Scalar> memory_;
};

/// Memory that a block's forward and its backward share; see Context, also for which backward takes it. With
/// one router for a block of MoE layers forward leaves no hidden activations, and backward computes them
/// again, expert by expert.
template <class Scalar>
class FeedForwardContext : public FeedForwardWorkspace<Scalar, Context<Scalar>> {
 public:
  /// Task level: the gradient of inputs.task_embeddings, as the last backward wrote it.
  Eigen::Map<const Matrix<Scalar>> task_embeddings_gradient() const {
    return gradient_memory_.task_embeddings.get();
  }

  /// Between a block and what it is made of.
  friend detail::BlockGradientMemory<Scalar>& gradient_memory_of(FeedForwardContext& context) {
    return context.gradient_memory_;
  }
  friend const detail::BlockGradientMemory<Scalar>& gradient_memory_of(const FeedForwardContext& context) {
    return context.gradient_memory_;
  }

 private:
  detail::BlockGradientMemory<Scalar> gradient_memory_;
};

/// What forward gives back.
template <class Scalar>
struct FeedForwardOutput {
  Matrix<Scalar> y;         ///< T × D
  Scalar loss;              ///< sum of the balance losses of the block's gates
  Routing<Scalar> up;       ///< with a shared gate the only one; the others are then empty
  Routing<Scalar> gate_up;  ///< empty unless gated
  Routing<Scalar> down;     ///< empty with a shared gate
};

/// LayerType is MoeLayer or MeoLayer, Activation any functor Scalar → Scalar that does not throw, or of a
/// gated block one of two scalars, as GptOssSwiglu; see experts/gated_activation.hpp. To start from a dense
/// block, start each projection from its projection; see MixtureLayer::initialize_from_dense.
///
/// With one router, no biases and Identity as Activation, experts are products of low rank B_i A_i, A_i of
/// `up`, B_i of `down`, and hidden_features is the rank. MoeLayer weighs them as wholes, Σ g_i B_i A_i, as
/// mixtures of LoRA do; MeoLayer merges the factors, (Σ g_i B_i)(Σ g_i A_i), as Poly does (Ponti et al. 2022,
/// arXiv 2202.13914). What they are added to is a Linear beside them:
///
///     const meo::FeedForward<meo::MeoLayer<float>, meo::Identity> experts(
///         {.features = 768, .hidden_features = 8, .num_experts = 16, .top_k = 4, .bias = false,
///          .shared_gate = true});
///     const meo::Matrix<float> y = dense.forward(x) + experts.forward(x, batch).y;
///
/// Of a projection to another width A and B are a layer each, and the decision of the first,
/// a.forward(x, inputs, h, workspace), is the other's assignment in b.forward_routed.
template <class LayerType, class Activation = Gelu>
class FeedForward : private detail::RejectForward<typename LayerType::Scalar,
                                                  FeedForwardWorkspace<typename LayerType::Scalar>,
                                                  FeedForwardContext<typename LayerType::Scalar>> {
 public:
  /// What it is made of.
  using Layer = LayerType;
  using Kind = typename Layer::Kind;
  using Scalar = typename Layer::Scalar;
  using Options = FeedForwardOptions;
  static_assert(
      detail::PlainActivation<Activation, Scalar> || detail::GatedActivation<Activation, Scalar>,
      "meo: Activation must be callable as Scalar(Scalar) const, or as Scalar(Scalar, Scalar) const");

  /// All parameters zero. Throws std::invalid_argument for options that make no block, as one that is not
  /// gated of an Activation of two inputs.
  explicit FeedForward(const FeedForwardOptions& options, Activation activation = {});

  /// What it was made with, the number of experts filled in.
  const FeedForwardOptions& options() const { return options_; }
  const Activation& activation() const { return activation_; }

  /// The same block with experts that are stored as something else; see MixtureLayer.
  template <class OtherLayer>
  requires(!std::is_same_v<OtherLayer, LayerType>) explicit FeedForward(
      const FeedForward<OtherLayer, Activation>& other);

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

  /// Calls visit(name, part) for each part that has parameters; see MixtureLayer::visit. The names of the
  /// projections' parts are under up., gate_up. and down.
  template <class Visitor>
  void visit(const Visitor& visit) {
    visit_parts(*this, visit);
  }
  template <class Visitor>
  void visit(const Visitor& visit) const {
    visit_parts(*this, visit);
  }

  /// Calls visit(name, routing) for what each router of the block decided in the last forward with a
  /// workspace or context: up, and, unless one router serves the block, gate_up and down.
  template <class Memory, class Visitor>
  void visit_routings(const Memory& memory, const Visitor& visit) const {
    if (options_.has_router) visit("up", memory.up.routing);
    if (options_.shared_gate) return;
    if (options_.gated) visit("gate_up", memory.gate_up.routing);
    visit("down", memory.down.routing);
  }

  using detail::RejectForward<Scalar, FeedForwardWorkspace<Scalar>, FeedForwardContext<Scalar>>::forward;

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
  FeedForwardOutput<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const;

  /// y: T × D; what it holds is overwritten. Returns the loss; routings and hidden activations stay in the
  /// workspace. Throws std::invalid_argument if y overlaps x. Allocates only where the workspace has to grow.
  /// If it throws, y is untouched.
  Scalar forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                 FeedForwardWorkspace<Scalar>& workspace) const;

  /// The same, and `context` then holds what backward needs.
  Scalar forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                 FeedForwardContext<Scalar>& context) const;

  /// The whole block with one routing from elsewhere, be there a router or not: any Assignment of
  /// up().gated_rows rows. A row without pairs gives zeros. See MixtureLayer::forward_routed, also for what
  /// it throws; and std::invalid_argument unless options().shared_gate says that one decision serves the
  /// block.
  void forward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                      const Assignment<Scalar>& routing, MatrixRef<Scalar> y,
                      FeedForwardWorkspace<Scalar>& workspace) const;
  void forward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                      const Assignment<Scalar>& routing, MatrixRef<Scalar> y,
                      FeedForwardContext<Scalar>& context) const;

  /// Gradients of forward(x, inputs, y, context), of which `context` is left: for dy, the gradient of y (T ×
  /// D), and d_loss, that of the loss. Adds those of the parameters to `gradients`, a block of the same
  /// options but not this one, and overwrites dx, T × D. Leaves that of the task embeddings in
  /// context.task_embeddings_gradient(). Throws std::invalid_argument for shapes, inputs or a context that do
  /// not fit, or a dx that overlaps x or dy, and then changes nothing. Allocates only where the context has
  /// to grow. Activation needs a member `derivative`.
  void backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                FeedForwardContext<Scalar>& context, const ConstMatrixRef<Scalar>& dy, FeedForward& gradients,
                MatrixRef<Scalar> dx, const Scalar& d_loss = Scalar(1)) const;

  /// Gradients of forward_routed(x, inputs, routing, y, context), which left `context`, by the same routing:
  /// for dy, T × D, adds those of the projections to `gradients`, a block of the same options but not this
  /// one, and those of the routing's weights, summed over the projections, to d_weights, one for each pair,
  /// in the routing's order; overwrites dx, T × D. See MixtureLayer::backward_routed, also for what it
  /// throws.
  void backward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                       const Assignment<Scalar>& routing, FeedForwardContext<Scalar>& context,
                       const ConstMatrixRef<Scalar>& dy, FeedForward& gradients, MatrixRef<Scalar> dx,
                       std::span<Scalar> d_weights) const;

 private:
  using Hidden = detail::Hidden<Scalar>;

  /// Whether experts are whole blocks; then forward leaves no hidden activations.
  bool mixes_blocks() const { return options_.shared_gate && Kind::mixes_blocks; }

  /// The layers check the rest, and would give these sizes other names.
  static const FeedForwardOptions& checked(const FeedForwardOptions& options) {
    detail::require(options.features >= 1, "features: expected at least 1, got ", options.features);
    detail::require(options.hidden_features >= 1, "hidden_features: expected at least 1, got ",
                    options.hidden_features);
    detail::require(options.has_router || options.shared_gate,
                    "has_router: expected true unless one routing serves the block, shared_gate = true");
    detail::require(options.gated || !detail::GatedActivation<Activation, Scalar>,
                    "gated: expected true, since the activation has two inputs, got false");
    return options;
  }

  static LayerOptions projection(const FeedForwardOptions& options, Index in_features, Index out_features,
                                 bool has_shared_router) {
    LayerOptions projection{
        .in_features = in_features,
        .out_features = out_features,
        .has_router = options.shared_gate ? has_shared_router && options.has_router : true};
    detail::common_options(projection) = detail::common_options(options);
    return projection;
  }

  template <class Self, class Visitor>
  static void visit_parts(Self& self, const Visitor& visit) {
    const auto under = [&](const char* projection) {
      return [&visit, projection](std::string_view name, auto&& part) {
        visit(std::string(projection).append(name), part);
      };
    };
    self.up_.visit(under("up."));
    if (self.gate_up_) self.gate_up_->visit(under("gate_up."));
    self.down_.visit(under("down."));
  }

  void require_not_empty(std::string_view name) const { detail::require_not_moved_from(empty(), name); }

  void require_gated() const {
    detail::require(options_.gated, "gate_up: expected a gated block, got gated = false");
  }

  /// Of a block whose experts are whole blocks: told by those of `up`.
  detail::LayerIdentity identity() const { return {up_.experts().panels().data, Kind::name, up_.options()}; }

  // -------------------------------------------------------------------------------------------------------------
  // Checks

  void check_routing(const Assignment<Scalar>& routing, const detail::Offsets& offsets) const {
    detail::require(options_.shared_gate,
                    "routing: expected a block with one for all projections, got shared_gate = false");
    routing.check(up_.gated_rows(offsets), up_.experts().num_experts());
  }

  void check_gradients(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& dy,
                       const FeedForward& gradients, const MatrixRef<Scalar>& dx) const;

  /// Throws unless `context` has what this block's forward leaves of such a batch. routing: from elsewhere,
  /// or null for that of the block's own gates.
  void check_context(const detail::Offsets& offsets, const Inputs<Scalar>& inputs,
                     const Assignment<Scalar>* routing, const FeedForwardContext<Scalar>& context) const;

  /// Throws unless a buffer of the context has `count` values at least.
  static void check_left(const AlignedVector<Scalar>& buffer, Index count, std::string_view what) {
    detail::require(static_cast<Index>(buffer.size()) >= count, "context: expected a forward's that left ",
                    count, " values ", what, ", got ", buffer.size());
  }

  /// The offsets of the descriptions that the block's one gate has seen, if any.
  std::span<const Index> descriptions_seen(const Assignment<Scalar>* routing,
                                           const detail::Offsets& descriptions) const {
    if (routing != nullptr || options_.routing.level != Level::task) return {};
    return descriptions;
  }

  // -------------------------------------------------------------------------------------------------------------
  // Forward

  Eigen::Map<Matrix<Scalar>> matrix(Scalar* data, Index rows) const {
    return {data, rows, options_.hidden_features};
  }

  Hidden reserve_hidden(Index rows, FeedForwardWorkspace<Scalar>& workspace) const {
    return reserve_hidden(rows, memory_of(workspace));
  }
  Hidden reserve_hidden(Index rows, detail::BlockMemory<Scalar>& memory) const {
    const Index size = rows * options_.hidden_features;
    Scalar* const hidden = detail::reserve(memory.hidden, size);
    return {options_.hidden_features, hidden, hidden,
            options_.gated ? detail::reserve(memory.gate_hidden, size) : nullptr};
  }
  /// For backward to read: the pre-activations are kept.
  Hidden reserve_hidden(Index rows, FeedForwardContext<Scalar>& context) const {
    Hidden hidden = reserve_hidden(rows, memory_of(context));
    if (!mixes_blocks()) {
      hidden.pre_activation =
          detail::reserve(gradient_memory_of(context).pre_activation, rows * options_.hidden_features);
    }
    return hidden;
  }

  /// routing: from elsewhere, or null for that of the block's own gates. Returns the loss of these.
  template <class Memory>
  Scalar run(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, const Assignment<Scalar>* routing,
             MatrixRef<Scalar> y, const Hidden& h, Memory& memory) const {
    for (auto* const part : {&memory.up, &memory.gate_up, &memory.down})
      memory_of(*part).last_forward.clear();
    memory_of(memory).last_forward.clear();
    require_not_empty("block");
    detail::require(x.cols() == options_.features, "x: expected features = ", options_.features,
                    " columns, got ", x.cols());
    detail::require_shape(y, x.rows(), options_.features, "y (rows of x by features)");
    detail::require_apart<Scalar>(y, "y", x, "x");
    if (routing != nullptr) check_routing(*routing, up_.check(x, inputs));
    if (!options_.shared_gate) return run_separately(x, inputs, y, h, memory);
    if constexpr (Kind::mixes_blocks) run_blocks(x, inputs, routing, y, h, memory);
    else run_merged(x, inputs, routing, y, h, memory);
    return routing == nullptr ? memory.up.routing.loss : Scalar(0);
  }

  template <class Memory>
  Scalar run_separately(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                        const Hidden& h, Memory& memory) const {
    Scalar loss = up_.forward(x, inputs, matrix(h.pre_activation, x.rows()), memory.up).loss;
    if (gate_up_) loss += gate_up_->forward(x, inputs, matrix(h.gate_hidden, x.rows()), memory.gate_up).loss;
    detail::activate_rows(activation_, h, x.rows());
    loss += down_.forward(matrix(h.hidden, x.rows()), inputs, y, memory.down).loss;
    return loss;
  }

  /// One decision, experts merged: one merged block for every row of it.
  template <class Memory>
  void run_merged(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                  const Assignment<Scalar>* routing, MatrixRef<Scalar> y, const Hidden& h,
                  Memory& memory) const {
    const Inputs<Scalar> sequences{.sequences = inputs.sequences};
    if (routing != nullptr)
      up_.forward_routed(x, sequences, *routing, matrix(h.pre_activation, x.rows()), memory.up);
    else routing = &up_.forward(x, inputs, matrix(h.pre_activation, x.rows()), memory.up);
    if (gate_up_) {
      gate_up_->forward_routed(x, sequences, *routing, matrix(h.gate_hidden, x.rows()), memory.gate_up);
    }
    detail::activate_rows(activation_, h, x.rows());
    down_.forward_routed(matrix(h.hidden, x.rows()), sequences, *routing, y, memory.down);
  }

  /// One decision, vanilla experts: each expert is a whole block, y_t = Σ_i g_ti block_i(x_t).
  template <class Memory>
  void run_blocks(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                  const Assignment<Scalar>* routing, MatrixRef<Scalar> y, const Hidden& h,
                  Memory& memory) const {
    const bool has_gate = routing == nullptr;
    if (has_gate) routing = &up_.route(x, inputs, memory.up);
    const detail::Offsets offsets(inputs.sequences, x.rows());
    auto& block = memory_of(memory);
    detail::BlockMixer<Scalar, Activation, typename Layer::Storage>(activation_)
        .forward(mixture(*routing, offsets, block), block_inputs(), x, y, h, memory_of(memory.up).mixing);
    const detail::Offsets descriptions = detail::description_offsets(inputs);
    block.last_forward.set(identity(), has_gate, offsets,
                           descriptions_seen(has_gate ? nullptr : routing, descriptions),
                           detail::task_of(inputs));
  }

  detail::Mixture<Scalar, typename Layer::Storage> mixture(const Assignment<Scalar>& routing,
                                                           std::span<const Index> offsets,
                                                           detail::BlockMemory<Scalar>& memory) const {
    return {down_.experts(), routing, up_.gate_rows(offsets, memory.gate_rows).governed};
  }

  detail::BlockInputs<Scalar, typename Layer::Storage> block_inputs() const {
    return {up_.experts(), gate_up_ ? &gate_up_->experts() : nullptr};
  }

  // -------------------------------------------------------------------------------------------------------------
  // Backward

  void reserve_gradients(Index rows, FeedForwardContext<Scalar>& context) const {
    auto& memory = gradient_memory_of(context);
    const Index size = rows * options_.hidden_features;
    detail::reserve(memory.hidden, size);
    if (!gate_up_) return;
    detail::reserve(memory.gate_hidden, size);
    detail::reserve(memory.gate_up_x, rows * options_.features);
  }

  /// What forward has left of the hidden activations.
  Hidden hidden_of(FeedForwardContext<Scalar>& context) const {
    return {options_.hidden_features, gradient_memory_of(context).pre_activation.data(),
            memory_of(context).hidden.data(), gate_up_ ? memory_of(context).gate_hidden.data() : nullptr};
  }

  void activate_backward(Index rows, FeedForwardContext<Scalar>& context) const {
    auto& memory = gradient_memory_of(context);
    detail::activate_rows_backward(activation_, hidden_of(context), rows, memory.hidden.data(),
                                   memory.gate_hidden.data());
  }

  void backward_separately(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                           FeedForwardContext<Scalar>& context, const ConstMatrixRef<Scalar>& dy,
                           FeedForward& gradients, MatrixRef<Scalar> dx, const Scalar& d_loss) const {
    auto& memory = gradient_memory_of(context);
    down_.backward(matrix(memory_of(context).hidden.data(), x.rows()), inputs, context.down, dy,
                   gradients.down_, matrix(memory.hidden.data(), x.rows()), d_loss);
    activate_backward(x.rows(), context);
    up_.backward(x, inputs, context.up, matrix(memory.hidden.data(), x.rows()), gradients.up_, dx, d_loss);
    if (!gate_up_) return;
    Eigen::Map<Matrix<Scalar>> through_gate_up(memory.gate_up_x.data(), x.rows(), x.cols());
    gate_up_->backward(x, inputs, context.gate_up, matrix(memory.gate_hidden.data(), x.rows()),
                       *gradients.gate_up_, through_gate_up, d_loss);
    dx += through_gate_up;
  }

  /// One decision. routing: from elsewhere, or null for that of the block's own router, through which the
  /// gradient then goes; d_weights: of its pairs, added to.
  void backward_shared(const ConstMatrixRef<Scalar>& x, const detail::Offsets& offsets,
                       const Inputs<Scalar>& inputs, const Assignment<Scalar>* routing,
                       FeedForwardContext<Scalar>& context, const ConstMatrixRef<Scalar>& dy,
                       FeedForward& gradients, MatrixRef<Scalar> dx, const Scalar& d_loss,
                       std::span<Scalar> d_weights) const {
    if constexpr (Kind::mixes_blocks)
      backward_blocks(x, offsets, inputs, routing, context, dy, gradients, dx, d_loss, d_weights);
    else backward_merged(x, inputs, routing, context, dy, gradients, dx, d_loss, d_weights);
  }

  void backward_merged(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                       const Assignment<Scalar>* routing, FeedForwardContext<Scalar>& context,
                       const ConstMatrixRef<Scalar>& dy, FeedForward& gradients, MatrixRef<Scalar> dx,
                       const Scalar& d_loss, std::span<Scalar> d_weights) const {
    const bool has_gate = routing == nullptr;
    if (has_gate) routing = &context.up.routing;
    const Inputs<Scalar> sequences{.sequences = inputs.sequences};
    auto& memory = gradient_memory_of(context);
    const auto d_hidden = matrix(memory.hidden.data(), x.rows());
    down_.backward_routed(matrix(memory_of(context).hidden.data(), x.rows()), sequences, *routing,
                          context.down, dy, gradients.down_, d_hidden, d_weights);
    activate_backward(x.rows(), context);
    Eigen::Map<Matrix<Scalar>> through_gate_up(memory.gate_up_x.data(), x.rows(), x.cols());
    if (gate_up_) {
      gate_up_->backward_routed(x, sequences, *routing, context.gate_up,
                                matrix(memory.gate_hidden.data(), x.rows()), *gradients.gate_up_,
                                through_gate_up, d_weights);
    }
    if (has_gate) {
      up_.backward(x, inputs, context.up, d_hidden, gradients.up_, dx, d_loss,
                   std::span<const Scalar>(d_weights));
    } else {
      up_.backward_routed(x, sequences, *routing, context.up, d_hidden, gradients.up_, dx, d_weights);
    }
    if (gate_up_) dx += through_gate_up;
  }

  void backward_blocks(const ConstMatrixRef<Scalar>& x, const detail::Offsets& offsets,
                       const Inputs<Scalar>& inputs, const Assignment<Scalar>* routing,
                       FeedForwardContext<Scalar>& context, const ConstMatrixRef<Scalar>& dy,
                       FeedForward& gradients, MatrixRef<Scalar> dx, const Scalar& d_loss,
                       std::span<Scalar> d_weights) const {
    const bool has_gate = routing == nullptr;
    if (has_gate) routing = &context.up.routing;
    auto& memory = gradient_memory_of(context);
    detail::reserve(memory.pre_activation, x.rows() * options_.hidden_features);
    reserve_hidden(x.rows(), memory_of(context));
    detail::BlockMixer<Scalar, Activation>(activation_)
        .backward(mixture(*routing, offsets, memory_of(context)), block_inputs(),
                  {x, dy, gradients.down_.experts(), dx, d_weights},
                  {gradients.up_.experts(), gate_up_ ? &gradients.gate_up_->experts() : nullptr,
                   memory.hidden.data(), memory.gate_hidden.data()},
                  hidden_of(context), memory_of(context.up).mixing, gradient_memory_of(context.up).mixing);
    if (!has_gate) return;
    const detail::GateRows rows = up_.gate_rows(offsets, memory_of(context).gate_rows);
    up_.router().backward({x, rows, inputs, context.up.routing, memory_of(context.up).router}, d_weights,
                          d_loss, gradients.up_.router(), dx, gradient_memory_of(context.up).router);
  }

  /// The sum over the block's gates.
  void collect_embeddings_gradient(const Inputs<Scalar>& inputs, FeedForwardContext<Scalar>& context) const {
    Eigen::Map<Matrix<Scalar>> embeddings = gradient_memory_of(context).task_embeddings.resize(
        inputs.task_embeddings.rows(), options_.routing.task_features);
    embeddings = context.up.task_embeddings_gradient();
    if (options_.shared_gate) return;
    if (gate_up_) embeddings += context.gate_up.task_embeddings_gradient();
    embeddings += context.down.task_embeddings_gradient();
  }

  FeedForwardOptions options_;
  Activation activation_;
  Layer up_;
  Layer down_;
  std::optional<Layer> gate_up_;
};

template <class LayerType, class Activation>
FeedForward<LayerType, Activation>::FeedForward(const FeedForwardOptions& options, Activation activation)
    : options_(checked(options)),
      activation_(std::move(activation)),
      up_(projection(options, options.features, options.hidden_features, true)),
      down_(projection(options, options.hidden_features, options.features, false)) {
  options_.num_experts = up_.num_experts();
  if (options.gated) gate_up_.emplace(projection(options, options.features, options.hidden_features, false));
}

template <class LayerType, class Activation>
template <class OtherLayer>
requires(!std::is_same_v<OtherLayer, LayerType>)
    FeedForward<LayerType, Activation>::FeedForward(const FeedForward<OtherLayer, Activation>& other)
    : options_(other.options()), activation_(other.activation()), up_(other.up()), down_(other.down()) {
  if (options_.gated) gate_up_.emplace(other.gate_up());
}

template <class LayerType, class Activation>
auto FeedForward<LayerType, Activation>::forward(const ConstMatrixRef<Scalar>& x,
                                                 const Inputs<Scalar>& inputs) const
    -> FeedForwardOutput<Scalar> {
  FeedForwardWorkspace<Scalar> workspace;
  FeedForwardOutput<Scalar> output;
  output.y.resize(x.rows(), options_.features);
  output.loss = forward(x, inputs, output.y, workspace);
  output.up = std::move(workspace.up.routing);
  output.gate_up = std::move(workspace.gate_up.routing);
  output.down = std::move(workspace.down.routing);
  return output;
}

template <class LayerType, class Activation>
auto FeedForward<LayerType, Activation>::forward(const ConstMatrixRef<Scalar>& x,
                                                 const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                                                 FeedForwardWorkspace<Scalar>& workspace) const -> Scalar {
  return run(x, inputs, nullptr, y, reserve_hidden(x.rows(), workspace), workspace);
}

template <class LayerType, class Activation>
auto FeedForward<LayerType, Activation>::forward(const ConstMatrixRef<Scalar>& x,
                                                 const Inputs<Scalar>& inputs, MatrixRef<Scalar> y,
                                                 FeedForwardContext<Scalar>& context) const -> Scalar {
  return run(x, inputs, nullptr, y, reserve_hidden(x.rows(), context), context);
}

template <class LayerType, class Activation>
void FeedForward<LayerType, Activation>::forward_routed(const ConstMatrixRef<Scalar>& x,
                                                        const Inputs<Scalar>& inputs,
                                                        const Assignment<Scalar>& routing,
                                                        MatrixRef<Scalar> y,
                                                        FeedForwardWorkspace<Scalar>& workspace) const {
  run(x, inputs, &routing, y, reserve_hidden(x.rows(), workspace), workspace);
}

template <class LayerType, class Activation>
void FeedForward<LayerType, Activation>::forward_routed(const ConstMatrixRef<Scalar>& x,
                                                        const Inputs<Scalar>& inputs,
                                                        const Assignment<Scalar>& routing,
                                                        MatrixRef<Scalar> y,
                                                        FeedForwardContext<Scalar>& context) const {
  run(x, inputs, &routing, y, reserve_hidden(x.rows(), context), context);
}

template <class LayerType, class Activation>
void FeedForward<LayerType, Activation>::backward(const ConstMatrixRef<Scalar>& x,
                                                  const Inputs<Scalar>& inputs,
                                                  FeedForwardContext<Scalar>& context,
                                                  const ConstMatrixRef<Scalar>& dy, FeedForward& gradients,
                                                  MatrixRef<Scalar> dx, const Scalar& d_loss) const {
  check_gradients(x, dy, gradients, dx);
  const detail::Offsets offsets = up_.check(x, inputs);
  check_context(offsets, inputs, nullptr, context);
  reserve_gradients(x.rows(), context);
  if (!options_.shared_gate) {
    backward_separately(x, inputs, context, dy, gradients, dx, d_loss);
  } else {
    std::vector<Scalar>& d_weights = gradient_memory_of(context).weights;
    d_weights.assign(context.up.routing.weights.size(), Scalar(0));
    backward_shared(x, offsets, inputs, nullptr, context, dy, gradients, dx, d_loss, d_weights);
  }
  if (options_.routing.level == Level::task) collect_embeddings_gradient(inputs, context);
}

template <class LayerType, class Activation>
void FeedForward<LayerType, Activation>::backward_routed(
    const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, const Assignment<Scalar>& routing,
    FeedForwardContext<Scalar>& context, const ConstMatrixRef<Scalar>& dy, FeedForward& gradients,
    MatrixRef<Scalar> dx, std::span<Scalar> d_weights) const {
  check_gradients(x, dy, gradients, dx);
  const detail::Offsets offsets = up_.check(x, inputs);
  check_routing(routing, offsets);
  detail::require(d_weights.size() == routing.weights.size(), "d_weights: expected ", routing.weights.size(),
                  " values, got ", d_weights.size());
  check_context(offsets, inputs, &routing, context);
  reserve_gradients(x.rows(), context);
  backward_shared(x, offsets, inputs, &routing, context, dy, gradients, dx, Scalar(0), d_weights);
}

template <class LayerType, class Activation>
void FeedForward<LayerType, Activation>::check_gradients(const ConstMatrixRef<Scalar>& x,
                                                         const ConstMatrixRef<Scalar>& dy,
                                                         const FeedForward& gradients,
                                                         const MatrixRef<Scalar>& dx) const {
  static_assert(detail::DifferentiableActivation<Activation, Scalar>,
                "meo: backward needs an Activation with a member Scalar derivative(Scalar) const, or of two "
                "inputs GatedDerivative<Scalar> derivative(Scalar, Scalar) const");
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
}

template <class LayerType, class Activation>
void FeedForward<LayerType, Activation>::check_context(const detail::Offsets& offsets,
                                                       const Inputs<Scalar>& inputs,
                                                       const Assignment<Scalar>* routing,
                                                       const FeedForwardContext<Scalar>& context) const {
  if (mixes_blocks()) {
    if (routing == nullptr) up_.router().check(offsets.num_sequences(), inputs);
    const detail::Offsets descriptions = detail::description_offsets(inputs);
    memory_of(context).last_forward.check(identity(), routing == nullptr, offsets,
                                          descriptions_seen(routing, descriptions), detail::task_of(inputs));
    if (routing == nullptr) up_.check_decision(offsets, context.up);
    return;
  }
  const auto check_layer = [&](const Layer& layer, bool has_gate, const Context<Scalar>& left) {
    if (has_gate) layer.check_context(offsets, inputs, left);
    else layer.check_routed_context(offsets, left);
  };
  const bool separate = !options_.shared_gate;
  check_layer(up_, routing == nullptr, context.up);
  if (gate_up_) check_layer(*gate_up_, separate, context.gate_up);
  check_layer(down_, separate, context.down);
  const std::span<const Index> tokens = offsets;
  const Index size = tokens.back() * options_.hidden_features;
  check_left(gradient_memory_of(context).pre_activation, size, "of pre-activations");
  check_left(memory_of(context).hidden, size, "of hidden activations");
  if (gate_up_) check_left(memory_of(context).gate_hidden, size, "of gate_up");
}

#define MEO_INSTANCES(instance, Scalar)                        \
  instance class FeedForward<MoeLayer<Scalar>, Gelu>;          \
  instance class FeedForward<MoeLayer<Scalar>, Relu>;          \
  instance class FeedForward<MoeLayer<Scalar>, AnyActivation>; \
  instance class FeedForward<MeoLayer<Scalar>, Gelu>;          \
  instance class FeedForward<MeoLayer<Scalar>, Relu>;          \
  instance class FeedForward<MeoLayer<Scalar>, AnyActivation>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

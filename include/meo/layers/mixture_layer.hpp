#pragma once

/// A projection that is a mixture of experts: token attention where there is some, a router, experts, and a
/// mixer that applies the router's assignment to them. MoeLayer and MeoLayer are its two kinds.
///
/// Letters: T tokens of the batch, B sequences, D in_features, F out_features, N num_experts, R rows of the
/// router, r reduce_factor.

#include <concepts>
#include <optional>
#include <random>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/errors.hpp>
#include <meo/experts/expert_bank.hpp>
#include <meo/experts/initialize.hpp>
#include <meo/experts/linear.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/forward_record.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/output.hpp>
#include <meo/layers/reject_forward.hpp>
#include <meo/layers/token_attention.hpp>
#include <meo/layers/upcycling.hpp>
#include <meo/layers/workspace.hpp>
#include <meo/mixing/mixture.hpp>
#include <meo/overlap.hpp>
#include <meo/routing/assignment.hpp>
#include <meo/routing/gate_input.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/offsets.hpp>
#include <meo/routing/router.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// KindType is Moe or Meo. StorageType: what the experts' weights are stored as, see ExpertBank; a layer that
/// stores something else than its scalar only computes, and is made from one that was trained, or from a
/// file. A layer that was moved from is empty: until it is assigned to, all but options and sizes throws
/// std::logic_error.
template <class ScalarType, int NumExperts, class KindType, class StorageType = ScalarType>
class MixtureLayer : private detail::RejectForward<ScalarType, Workspace<ScalarType>> {
  static_assert(std::is_same_v<ScalarType, std::remove_cvref_t<ScalarType>>,
                "meo: Scalar must be a plain type, without const or reference");
  static_assert(!std::is_integral_v<ScalarType>,
                "meo: Scalar must be a floating-point type or behave like one, not an integer");
  static_assert(NumExperts == Eigen::Dynamic || NumExperts >= 1,
                "meo: NumExperts must be at least 1, or Eigen::Dynamic");

 public:
  /// What it is made of.
  using Scalar = ScalarType;
  using Kind = KindType;
  using Storage = StorageType;
  using Experts = ExpertBank<Scalar, Storage>;
  using Options = LayerOptions;
  static constexpr int num_experts_at_compile_time = NumExperts;

  /// All parameters zero. Throws std::invalid_argument for options that make no layer.
  explicit MixtureLayer(const LayerOptions& options);

  /// The same layer with experts that are stored as something else: each weight is rounded to what the new
  /// storage has, so an infinity where it is beyond half's 65504. Takes no memory beside both layers. Throws
  /// std::logic_error for a layer that was moved from, std::invalid_argument for weights that are not finite
  /// where they are to be stored in 8 bits.
  template <class OtherStorage>
  requires(!std::is_same_v<OtherStorage, StorageType>) explicit MixtureLayer(
      const MixtureLayer<ScalarType, NumExperts, KindType, OtherStorage>& other);

  /// A copy has parameters of its own; see empty for what a move leaves.
  MixtureLayer(const MixtureLayer&);
  MixtureLayer(MixtureLayer&&) noexcept(std::is_nothrow_move_constructible_v<ScalarType>);
  MixtureLayer& operator=(const MixtureLayer&);
  MixtureLayer& operator=(MixtureLayer&&) noexcept(std::is_nothrow_move_constructible_v<ScalarType>);
  ~MixtureLayer();

  /// What it was made with, the number of experts filled in.
  const LayerOptions& options() const { return options_; }
  Index in_features() const { return options_.in_features; }
  Index out_features() const { return options_.out_features; }
  /// N, without shared experts. Of these, expert N + i is the i-th; experts().num_experts() counts all.
  Index num_experts() const {
    if constexpr (NumExperts == Eigen::Dynamic) return options_.num_experts;
    else return NumExperts;
  }
  Index top_k() const { return options_.top_k; }
  /// Whether the layer, or a part of it, was moved from.
  bool empty() const {
    return experts_.empty() || (router_ && router_->empty()) ||
           (token_attention_ && token_attention_->empty());
  }

  /// An expert's weight in PyTorch's form, out_features × in_features. These four throw std::invalid_argument
  /// for an expert that does not exist, another shape, or a bias where there is none, and then change
  /// nothing.
  Matrix<Scalar> weight(Index expert) const { return experts_.weight(expert); }
  void set_weight(Index expert, const ConstMatrixRef<Scalar>& weight) { experts_.set_weight(expert, weight); }
  Vector<Scalar> bias(Index expert) const { return experts_.bias(expert); }
  void set_bias(Index expert, const ConstVectorRef<Scalar>& bias) { experts_.set_bias(expert, bias); }

  /// All experts as they are packed.
  Experts& experts() { return experts_; }
  const Experts& experts() const { return experts_; }

  /// The router, and its gate. These throw std::invalid_argument for a layer without a router.
  Router<Scalar, NumExperts>& router() {
    require_router();
    return *router_;
  }
  const Router<Scalar, NumExperts>& router() const {
    require_router();
    return *router_;
  }
  Gate<Scalar, NumExperts>& gate() { return router().gate(); }
  const Gate<Scalar, NumExperts>& gate() const { return router().gate(); }
  /// See Router::task_projection.
  Linear<Scalar>& task_projection() { return router().task_projection(); }
  const Linear<Scalar>& task_projection() const { return router().task_projection(); }

  /// Throws std::invalid_argument unless this is a MeoLayer at token level.
  TokenAttention<Scalar>& token_attention() {
    require_attention();
    return *token_attention_;
  }
  const TokenAttention<Scalar>& token_attention() const {
    require_attention();
    return *token_attention_;
  }

  /// Calls visit(name, part) for each part that has parameters, in a fixed order and by the names of the MEO
  /// authors' state_dict: a TurnedWeight for w_gate and w_noise, a TurnedBuffer for correction_bias, an
  /// ExpertBank for experts, the shared ones among them, a Linear for shared_expert_gate, tokenatt.down_proj,
  /// tokenatt.up_proj and task_proj.
  template <class Visitor>
  void visit(const Visitor& visit) {
    visit_parts(*this, visit);
  }
  template <class Visitor>
  void visit(const Visitor& visit) const {
    visit_parts(*this, visit);
  }

  /// Start values from the caller's generator: experts, biases, W_g, s, V, v and the task projection uniform
  /// in ±1/√(inputs), as PyTorch's nn.Linear starts; W_n, U and u zero.
  template <class Generator>
  void initialize(Generator& rng) {
    require_not_empty("layer");
    detail::initialize_uniform(experts_, rng);
    initialize_all_but_experts(rng, 1);
  }

  /// "Upcycling" (Komatsuzaki et al. 2023, arXiv 2212.05055): every expert a copy of a dense layer's weight
  /// (out_features × in_features) and bias, W_g and W_n zero, U and u zero; all else stays as it is. Outputs
  /// then equal the dense layer's to rounding, whatever the gate decides. Throws std::invalid_argument for
  /// another shape, or a bias where the options say none or the reverse, and changes nothing.
  ///
  /// To compute with, not to train from: with zero gates every row selects the experts 0 … K − 1 with equal
  /// weights, and between equal experts the gate's gradient is 0. So these K get the same updates for ever,
  /// and the others none. Training needs Inputs::noise, or the start values below.
  ///
  /// Shared experts and their s start at zero: whatever their weight, they add nothing to the dense layer,
  /// and learn from the first step on what is to be added. In a MoE block with one router, though, an expert
  /// of which every projection is zero learns nothing: give it an expert_spread, or start its up and gate_up
  /// by set_weight. A base weight W₀ with task vectors, instead of experts beside a zero, is for set_weight,
  /// too: of expert N the dense weight, of the others what they differ by.
  void initialize_from_dense(const ConstMatrixRef<Scalar>& weight, const ConstVectorRef<Scalar>& bias);
  void initialize_from_dense(const ConstMatrixRef<Scalar>& weight);

  /// The same for training: rows select different experts, which part from the first step on. Draws in the
  /// order of initialize: what sets the experts apart, W_g, s, the task projection, V and v; see Upcycling.
  template <std::uniform_random_bit_generator Generator>
  void initialize_from_dense(const ConstMatrixRef<Scalar>& weight, const ConstVectorRef<Scalar>& bias,
                             Generator& rng, const Upcycling& upcycling = {}) {
    detail::check_spreads<Scalar>(upcycling);
    initialize_from_dense(weight, bias);
    spread_apart(weight, rng, upcycling);
  }
  template <std::uniform_random_bit_generator Generator>
  void initialize_from_dense(const ConstMatrixRef<Scalar>& weight, Generator& rng,
                             const Upcycling& upcycling = {}) {
    detail::check_spreads<Scalar>(upcycling);
    initialize_from_dense(weight);
    spread_apart(weight, rng, upcycling);
  }

  /// Whether every token is a row of the router, instead of every sequence.
  bool routes_tokens() const { return Kind::routes_tokens && options_.routing.level == Level::token; }

  /// Rows that a router decides on for a batch whose sequences have these offsets (see Sequences::offsets).
  Index gated_rows(std::span<const Index> offsets) const {
    if (routes_tokens()) return offsets.back();
    if (options_.routing.level == Level::segment)
      return detail::num_segments(offsets, options_.routing.segment_tokens);
    return static_cast<Index>(offsets.size()) - 1;
  }
  /// The same for `tokens` tokens in `sequences` sequences. Throws std::invalid_argument at segment level,
  /// where each one's length counts.
  Index gated_rows(Index tokens, Index sequences) const {
    detail::require(options_.routing.level != Level::segment,
                    "gated_rows: expected the offsets of the sequences at segment level");
    return routes_tokens() ? tokens : sequences;
  }

  /// The rows of a router over a batch with these offsets; `memory` holds what they look at.
  detail::GateRows gate_rows(std::span<const Index> offsets, detail::GateRowsMemory& memory) const {
    return detail::gate_rows(options_.routing, Kind::routes_tokens, offsets, memory);
  }

  using detail::RejectForward<Scalar, Workspace<Scalar>>::forward;

  /// x: T × D, one sequence. Returns y, T × F, and the routing. All forwards throw std::invalid_argument for
  /// shapes that do not fit or a layer without a router, std::domain_error for a gate whose logits are not
  /// finite.
  Output<Scalar> forward(const ConstMatrixRef<Scalar>& x) const { return forward(x, Inputs<Scalar>{}); }

  /// x: T × D, the tokens of all sequences one under another.
  Output<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Sequences& sequences) const {
    return forward(x, Inputs<Scalar>{.sequences = &sequences});
  }

  /// x: T × D, with all that a forward may read beside it.
  Output<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const;

  /// x: T × D; y: T × F; what it holds is overwritten. Returns workspace.routing. Throws
  /// std::invalid_argument if y overlaps x. Allocates only where the workspace has to grow. If it throws, y
  /// is untouched.
  const Routing<Scalar>& forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                 MatrixRef<Scalar> y, Workspace<Scalar>& workspace) const;

  /// The gate alone, with the token attention that it sees. Returns workspace.routing.
  const Routing<Scalar>& route(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                               Workspace<Scalar>& workspace) const;

  /// The experts, and token attention where there is some, with a routing from elsewhere, be there a router
  /// or not: any Assignment of gated_rows rows, one for each sequence, for each token of a MoeLayer at token
  /// level, or for each segment at segment level. Its experts are all of experts(): those that are shared
  /// have no other pairs than it says. Its weights count as they are, whatever their sum. x: T × D; y: T × F;
  /// what it holds is overwritten, with zeros for tokens of a row without pairs. Of `inputs` only the
  /// sequences count. Where backward_routed is to follow, the workspace is a Context; its `routing` stays as
  /// it is. Throws std::invalid_argument for shapes or a routing that do not fit, or a y that overlaps x, and
  /// then y is untouched. Allocates only where the workspace has to grow.
  void forward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                      const Assignment<Scalar>& routing, MatrixRef<Scalar> y,
                      Workspace<Scalar>& workspace) const;

  /// Gradients of forward(x, inputs, y, context), of which `context` is left: for dy, the gradient of y (T ×
  /// F), and d_loss, that of the balance loss. Adds those of the parameters to `gradients`, a layer of the
  /// same options but not this one, and overwrites dx, T × D. Leaves that of the task embeddings in
  /// context.task_embeddings_gradient(). Throws std::invalid_argument for shapes, inputs or a context that do
  /// not fit, or a dx that overlaps x or dy, and then changes nothing. Allocates only where the context has
  /// to grow.
  void backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context<Scalar>& context,
                const ConstMatrixRef<Scalar>& dy, MixtureLayer& gradients, MatrixRef<Scalar> dx,
                const Scalar& d_loss = Scalar(1)) const;

  /// The same where other layers have used the gate's decision as well: d_weights is what they make of the
  /// gradient of its weights, one for each pair, in the order of context.routing.
  void backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context<Scalar>& context,
                const ConstMatrixRef<Scalar>& dy, MixtureLayer& gradients, MatrixRef<Scalar> dx,
                const Scalar& d_loss, std::span<const Scalar> d_weights) const;

  /// Gradients of forward_routed(x, inputs, routing, y, context), of which `context` is left; that the
  /// routing is the same is up to the caller, as it is of x. For dy, the gradient of y (T × F), adds those of
  /// the experts and of token attention to `gradients`, a layer of the same options but not this one, and
  /// those of the routing's weights to d_weights, one for each pair, in the routing's order; overwrites dx, T
  /// × D. What reaches parameters and x through the weights is for the routing's maker to add. Throws
  /// std::invalid_argument for shapes, a routing or a context that do not fit, or a dx that overlaps x or dy,
  /// and then changes nothing. Allocates only where the context has to grow.
  void backward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                       const Assignment<Scalar>& routing, Context<Scalar>& context,
                       const ConstMatrixRef<Scalar>& dy, MixtureLayer& gradients, MatrixRef<Scalar> dx,
                       std::span<Scalar> d_weights) const;

  /// Throws std::invalid_argument unless `context` has what this layer's forward leaves of a batch with these
  /// offsets.
  void check_context(std::span<const Index> offsets, const Inputs<Scalar>& inputs,
                     const Context<Scalar>& context) const;

  /// Throws std::invalid_argument unless context.routing is one that this layer's router may have made for a
  /// batch with these offsets. It is the caller's to read, and to change or move away.
  void check_decision(std::span<const Index> offsets, const Context<Scalar>& context) const;

  /// The same for what forward_routed leaves, and forward as well.
  void check_routed_context(std::span<const Index> offsets, const Context<Scalar>& context) const;

  /// Throws std::invalid_argument unless x and the inputs fit this layer. The batch's offsets.
  detail::Offsets check(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const;

 private:
  void require_not_empty(std::string_view name) const { detail::require_not_moved_from(empty(), name); }

  void require_router() const {
    detail::require(router_.has_value(),
                    "router: expected a layer with one, got has_router = false; forward_routed and "
                    "backward_routed need none");
  }

  void require_attention() const {
    detail::require(token_attention_.has_value(),
                    "token_attention: expected a MEO layer at token level, got ", Kind::name, " at ",
                    to_string(options_.routing.level), " level");
  }

  template <class Self, class Visitor>
  static void visit_parts(Self& self, const Visitor& visit) {
    if (self.router_) {
      self.router_->gate().visit(visit);
      self.router_->visit_shared_expert_gate(visit);
    }
    visit("experts", self.experts_);
    if (self.token_attention_) {
      visit("tokenatt.down_proj", self.token_attention_->down());
      visit("tokenatt.up_proj", self.token_attention_->up());
    }
    if (self.router_) self.router_->visit_task_projection(visit);
  }

  // -------------------------------------------------------------------------------------------------------------
  // Start values

  /// bias: null without one.
  void check_dense(const ConstMatrixRef<Scalar>& weight, const ConstVectorRef<Scalar>* bias) const;

  void copy_to_experts(const ConstMatrixRef<Scalar>& weight, const ConstVectorRef<Scalar>* bias);

  template <class Generator>
  void spread_apart(const ConstMatrixRef<Scalar>& weight, Generator& rng, const Upcycling& upcycling) {
    if (upcycling.expert_spread > 0)
      detail::initialize_around(experts_, num_experts(), weight, upcycling.expert_spread, rng);
    initialize_all_but_experts(rng, upcycling.router_spread);
  }

  /// router_spread: of W_g, see Upcycling.
  template <class Generator>
  void initialize_all_but_experts(Generator& rng, double router_spread) {
    if (router_) router_->initialize(rng, router_spread);
    if (token_attention_) token_attention_->initialize(rng);
  }

  // -------------------------------------------------------------------------------------------------------------
  // Forward

  auto mixer() const { return Kind::template mixer<Scalar, Storage>(options_); }

  detail::LayerIdentity identity() const { return {experts_.panels().data, Kind::name, options_}; }

  /// Of a forward: from here on until finish, no backward takes what is in the workspace. Returns the batch's
  /// offsets.
  detail::Offsets begin(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                        detail::LayerMemory<Scalar>& memory) const {
    memory.last_forward.clear();
    return check(x, inputs);
  }

  /// has_gate: whether the layer's gate decided, on `inputs`.
  void finish(std::span<const Index> offsets, const Inputs<Scalar>& inputs, bool has_gate,
              detail::LayerMemory<Scalar>& memory) const;

  /// The offsets of the descriptions that the gate has seen, if any.
  std::span<const Index> gate_descriptions(bool has_gate, const detail::Offsets& descriptions) const {
    if (!has_gate || options_.routing.level != Level::task) return {};
    return descriptions;
  }

  void check_output(const ConstMatrixRef<Scalar>& x, const MatrixRef<Scalar>& y) const {
    detail::require_shape(y, x.rows(), out_features(), "y (rows of x by out_features)");
    detail::require_apart<Scalar>(y, "y", x, "x");
  }

  /// What the experts see: x + TokenAttention(x) where there is token attention, else x.
  MatrixView<Scalar> attend(const MatrixView<Scalar>& x, detail::LayerMemory<Scalar>& memory) const;

  // -------------------------------------------------------------------------------------------------------------
  // Backward

  /// All that a backward through the gate needs; the batch's offsets.
  detail::Offsets check_backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                 const Context<Scalar>& context, const ConstMatrixRef<Scalar>& dy,
                                 const MixtureLayer& gradients, const MatrixRef<Scalar>& dx) const {
    const detail::Offsets offsets = check(x, inputs);
    check_context(offsets, inputs, context);
    check_gradients(x, dy, gradients, dx);
    return offsets;
  }

  void check_weights_gradient(const Assignment<Scalar>& routing, std::span<const Scalar> d_weights) const {
    detail::require(d_weights.size() == routing.weights.size(), "d_weights: expected ",
                    routing.weights.size(), " values, got ", d_weights.size());
  }

  static constexpr bool is_trainable = detail::stores_scalars<ScalarType, StorageType>;

  /// Throws unless dy, dx and gradients fit x, and are apart from what is read.
  void check_gradients(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& dy,
                       const MixtureLayer& gradients, const MatrixRef<Scalar>& dx) const;

  /// Experts, gate and token attention, with what gradient_memory_of(context).weights holds already.
  void backward_all(const MatrixView<Scalar>& x, std::span<const Index> offsets, const Inputs<Scalar>& inputs,
                    Context<Scalar>& context, const ConstMatrixRef<Scalar>& dy, MixtureLayer& gradients,
                    MatrixRef<Scalar> dx, const Scalar& d_loss) const;

  /// Through the experts: writes dx, adds to the experts' gradients and to d_weights.
  void backward_mixture(const MatrixView<Scalar>& x, const detail::GateRows& rows,
                        const Assignment<Scalar>& routing, Context<Scalar>& context,
                        const MatrixView<Scalar>& dy, MixtureLayer& gradients, MatrixRef<Scalar> dx,
                        std::span<Scalar> d_weights) const {
    mixer().backward({experts_, routing, rows.governed}, {x, dy, gradients.experts_, dx, d_weights},
                     memory_of(context).mixing, gradient_memory_of(context).mixing);
  }

  /// What attend left in the context.
  MatrixView<Scalar> attended(const MatrixView<Scalar>& x, const Context<Scalar>& context) const {
    return {memory_of(context).attended.data(), x.rows(), x.cols(), x.cols()};
  }

  static Eigen::Map<Matrix<Scalar>> attended_gradient(const MatrixView<Scalar>& x, Context<Scalar>& context) {
    return {detail::reserve(gradient_memory_of(context).attended, x.rows() * x.cols()), x.rows(), x.cols()};
  }

  void backward_attention(const MatrixView<Scalar>& x, Context<Scalar>& context,
                          const MatrixView<Scalar>& d_attended, MixtureLayer& gradients,
                          MatrixRef<Scalar> dx) const {
    auto& memory = gradient_memory_of(context);
    Scalar* const d_rows =
        detail::reserve(memory.attention_rows, x.rows() * token_attention_->reduced_features());
    token_attention_->backward(x, memory_of(context).attention_rows.data(), d_attended, d_rows,
                               *gradients.token_attention_, dx.data(), dx.outerStride(), memory.scratch);
  }

  LayerOptions options_;
  Experts experts_;
  std::optional<Router<Scalar, NumExperts>> router_;
  std::optional<TokenAttention<Scalar>> token_attention_;
};

template <class ScalarType, int NumExperts, class KindType, class StorageType>
MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::MixtureLayer(const LayerOptions& options)
    : options_(detail::checked_options<Scalar, NumExperts>(options)),
      experts_(options_.num_experts + options_.shared_experts.count, options_.in_features,
               options_.out_features, options_.bias) {
  const RoutingOptions& routing = options_.routing;
  if (options_.has_router)
    router_.emplace(routing, options_.in_features, options_.num_experts, options_.top_k,
                    options_.shared_experts);
  if (Kind::has_token_attention && routing.level == Level::token) {
    token_attention_.emplace(options_.in_features,
                             detail::reduced_features(options_.in_features, routing.reduce_factor));
  }
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
template <class OtherStorage>
requires(!std::is_same_v<OtherStorage, StorageType>)
    MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::MixtureLayer(
        const MixtureLayer<ScalarType, NumExperts, KindType, OtherStorage>& other)
    : MixtureLayer(other.options()) {
  detail::require_not_moved_from(other.empty(), "layer");
  detail::copy_experts(other.experts(), experts_);
  if (router_) *router_ = other.router();
  if (token_attention_) *token_attention_ = other.token_attention();
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::MixtureLayer(const MixtureLayer&) = default;
template <class ScalarType, int NumExperts, class KindType, class StorageType>
MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::MixtureLayer(MixtureLayer&&) noexcept(
    std::is_nothrow_move_constructible_v<ScalarType>) = default;
template <class ScalarType, int NumExperts, class KindType, class StorageType>
auto MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::operator=(const MixtureLayer&)
    -> MixtureLayer& = default;
template <class ScalarType, int NumExperts, class KindType, class StorageType>
auto MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::operator=(MixtureLayer&&) noexcept(
    std::is_nothrow_move_constructible_v<ScalarType>) -> MixtureLayer& = default;
template <class ScalarType, int NumExperts, class KindType, class StorageType>
MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::~MixtureLayer() = default;

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::initialize_from_dense(
    const ConstMatrixRef<Scalar>& weight, const ConstVectorRef<Scalar>& bias) {
  check_dense(weight, &bias);
  copy_to_experts(weight, &bias);
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::initialize_from_dense(
    const ConstMatrixRef<Scalar>& weight) {
  check_dense(weight, nullptr);
  copy_to_experts(weight, nullptr);
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
auto MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::forward(const ConstMatrixRef<Scalar>& x,
                                                                          const Inputs<Scalar>& inputs) const
    -> Output<Scalar> {
  Workspace<Scalar> workspace;
  Output<Scalar> output;
  output.y.resize(x.rows(), out_features());
  forward(x, inputs, output.y, workspace);
  output.routing = std::move(workspace.routing);
  return output;
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
auto MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::forward(const ConstMatrixRef<Scalar>& x,
                                                                          const Inputs<Scalar>& inputs,
                                                                          MatrixRef<Scalar> y,
                                                                          Workspace<Scalar>& workspace) const
    -> const Routing<Scalar>& {
  auto& memory = memory_of(workspace);
  const detail::Offsets offsets = begin(x, inputs, memory);
  require_router();
  check_output(x, y);
  const detail::GateRows rows = gate_rows(offsets, memory.gate_rows);
  const MatrixView<Scalar> attended = attend(x, memory);
  router_->route(options_.routing.gate_before_attention ? MatrixView<Scalar>(x) : attended, rows, inputs,
                 workspace.routing, memory.router);
  mixer().forward({experts_, workspace.routing, rows.governed}, attended, y, memory.mixing);
  finish(offsets, inputs, true, memory);
  return workspace.routing;
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
auto MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::route(const ConstMatrixRef<Scalar>& x,
                                                                        const Inputs<Scalar>& inputs,
                                                                        Workspace<Scalar>& workspace) const
    -> const Routing<Scalar>& {
  auto& memory = memory_of(workspace);
  const detail::Offsets offsets = begin(x, inputs, memory);
  require_router();
  const bool sees_attention = !options_.routing.gate_before_attention;
  router_->route(sees_attention ? attend(x, memory) : MatrixView<Scalar>(x),
                 gate_rows(offsets, memory.gate_rows), inputs, workspace.routing, memory.router);
  return workspace.routing;
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::forward_routed(
    const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, const Assignment<Scalar>& routing,
    MatrixRef<Scalar> y, Workspace<Scalar>& workspace) const {
  auto& memory = memory_of(workspace);
  const detail::Offsets offsets = begin(x, inputs, memory);
  check_output(x, y);
  routing.check(gated_rows(offsets), experts_.num_experts());
  const detail::GateRows rows = gate_rows(offsets, memory.gate_rows);
  mixer().forward({experts_, routing, rows.governed}, attend(x, memory), y, memory.mixing);
  finish(offsets, inputs, false, memory);
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::backward(
    const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context<Scalar>& context,
    const ConstMatrixRef<Scalar>& dy, MixtureLayer& gradients, MatrixRef<Scalar> dx,
    const Scalar& d_loss) const {
  const detail::Offsets offsets = check_backward(x, inputs, context, dy, gradients, dx);
  gradient_memory_of(context).weights.assign(context.routing.weights.size(), Scalar(0));
  backward_all(x, offsets, inputs, context, dy, gradients, dx, d_loss);
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::backward(
    const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context<Scalar>& context,
    const ConstMatrixRef<Scalar>& dy, MixtureLayer& gradients, MatrixRef<Scalar> dx, const Scalar& d_loss,
    std::span<const Scalar> d_weights) const {
  const detail::Offsets offsets = check_backward(x, inputs, context, dy, gradients, dx);
  check_weights_gradient(context.routing, d_weights);
  gradient_memory_of(context).weights.assign(d_weights.begin(), d_weights.end());
  backward_all(x, offsets, inputs, context, dy, gradients, dx, d_loss);
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::backward_routed(
    const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, const Assignment<Scalar>& routing,
    Context<Scalar>& context, const ConstMatrixRef<Scalar>& dy, MixtureLayer& gradients, MatrixRef<Scalar> dx,
    std::span<Scalar> d_weights) const {
  const detail::Offsets offsets = check(x, inputs);
  routing.check(gated_rows(offsets), experts_.num_experts());
  check_routed_context(offsets, context);
  check_gradients(x, dy, gradients, dx);
  check_weights_gradient(routing, d_weights);
  const detail::GateRows rows = gate_rows(offsets, memory_of(context).gate_rows);
  if (!token_attention_) {
    backward_mixture(x, rows, routing, context, dy, gradients, dx, d_weights);
    return;
  }
  Eigen::Map<Matrix<Scalar>> d_attended = attended_gradient(x, context);
  backward_mixture(attended(x, context), rows, routing, context, dy, gradients, d_attended, d_weights);
  backward_attention(x, context, d_attended, gradients, dx);
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::check_context(
    std::span<const Index> offsets, const Inputs<Scalar>& inputs, const Context<Scalar>& context) const {
  const Index sequences = static_cast<Index>(offsets.size()) - 1;
  router().check(sequences, inputs);
  memory_of(context).last_forward.check(identity(), true, offsets,
                                        gate_descriptions(true, detail::description_offsets(inputs)),
                                        detail::task_of(inputs));
  check_decision(offsets, context);
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::check_decision(
    std::span<const Index> offsets, const Context<Scalar>& context) const {
  context.routing.check(gated_rows(offsets), experts_.num_experts());
  router_->check_decision(context.routing, memory_of(context).router);
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::check_routed_context(
    std::span<const Index> offsets, const Context<Scalar>& context) const {
  memory_of(context).last_forward.check(identity(), false, offsets, {}, detail::task_of<Scalar>({}));
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
detail::Offsets MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::check(
    const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const {
  require_not_empty("layer");
  detail::require(x.cols() == in_features(), "x: expected in_features = ", in_features(), " columns, got ",
                  x.cols());
  const Level level = options_.routing.level;
  if (level != Level::task) {
    detail::require(
        !inputs.task_embeddings && inputs.descriptions == nullptr && inputs.task_of_sequence.empty(),
        "task_embeddings: expected none at ", to_string(level), " level, got some");
  }
  if (inputs.sequences != nullptr) {
    detail::require(inputs.sequences->tokens() == x.rows(), "sequences: expected ", x.rows(),
                    " tokens in all, as x has rows, got ", inputs.sequences->tokens());
  }
  return {inputs.sequences, x.rows()};
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::check_dense(
    const ConstMatrixRef<Scalar>& weight, const ConstVectorRef<Scalar>* bias) const {
  require_not_empty("layer");
  if (bias == nullptr) {
    detail::require(!options_.bias, "dense bias: expected ", out_features(),
                    " values as bias = true, got none");
  } else {
    detail::require(options_.bias, "dense bias: expected none as bias = false, got ", bias->size(),
                    " values");
  }
  detail::require_shape(weight, out_features(), in_features(), "dense weight (out_features x in_features)");
  detail::require(bias == nullptr || bias->size() == out_features(), "dense bias: expected ", out_features(),
                  " values, got ", bias == nullptr ? 0 : bias->size());
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::copy_to_experts(
    const ConstMatrixRef<Scalar>& weight, const ConstVectorRef<Scalar>* bias) {
  for (Index expert = 0; expert < num_experts(); ++expert) {
    experts_.set_weight(expert, weight);
    if (bias != nullptr) experts_.set_bias(expert, *bias);
  }
  for (Index expert = num_experts(); expert < experts_.num_experts(); ++expert) {
    experts_.set_weight(expert, Matrix<Scalar>::Zero(out_features(), in_features()));
    if (bias != nullptr) experts_.set_bias(expert, Vector<Scalar>::Zero(out_features()));
  }
  if (router_) router_->reset_gate();
  if (token_attention_) token_attention_->reset();
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::finish(
    std::span<const Index> offsets, const Inputs<Scalar>& inputs, bool has_gate,
    detail::LayerMemory<Scalar>& memory) const {
  const detail::Offsets descriptions = detail::description_offsets(inputs);
  memory.last_forward.set(identity(), has_gate, offsets, gate_descriptions(has_gate, descriptions),
                          detail::task_of(inputs));
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
auto MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::attend(
    const MatrixView<Scalar>& x, detail::LayerMemory<Scalar>& memory) const -> MatrixView<Scalar> {
  if (!token_attention_) return x;
  Scalar* const rows =
      detail::reserve(memory.attention_rows, x.rows() * token_attention_->reduced_features());
  Scalar* const attended = detail::reserve(memory.attended, x.rows() * x.cols());
  token_attention_->apply(x, rows, attended);
  return {attended, x.rows(), x.cols(), x.cols()};
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::check_gradients(
    const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& dy, const MixtureLayer& gradients,
    const MatrixRef<Scalar>& dx) const {
  static_assert(is_trainable,
                "meo: backward needs experts that are stored as Scalar: train such a layer, and make the "
                "smaller one of it");
  detail::require_shape(dy, x.rows(), out_features(), "dy (rows of x by out_features)");
  detail::require_shape(dx, x.rows(), in_features(), "dx (rows of x by in_features)");
  detail::require(gradients.options() == options_, "gradients: expected a layer of the same options");
  detail::require(&gradients != this, "gradients: expected another layer, got the one itself");
  gradients.require_not_empty("gradients");
  detail::require_apart<Scalar>(dx, "dx", x, "x");
  detail::require_apart<Scalar>(dx, "dx", dy, "dy");
}

template <class ScalarType, int NumExperts, class KindType, class StorageType>
void MixtureLayer<ScalarType, NumExperts, KindType, StorageType>::backward_all(
    const MatrixView<Scalar>& x, std::span<const Index> offsets, const Inputs<Scalar>& inputs,
    Context<Scalar>& context, const ConstMatrixRef<Scalar>& dy, MixtureLayer& gradients, MatrixRef<Scalar> dx,
    const Scalar& d_loss) const {
  auto& memory = gradient_memory_of(context);
  const detail::GateRows rows = gate_rows(offsets, memory_of(context).gate_rows);
  const auto backward_router = [&](const MatrixView<Scalar>& seen, MatrixRef<Scalar> d_seen) {
    router_->backward({seen, rows, inputs, context.routing, memory_of(context).router}, memory.weights,
                      d_loss, *gradients.router_, d_seen, memory.router);
  };
  if (!token_attention_) {
    backward_mixture(x, rows, context.routing, context, dy, gradients, dx, memory.weights);
    backward_router(x, dx);
    return;
  }
  const MatrixView<Scalar> seen = attended(x, context);
  Eigen::Map<Matrix<Scalar>> d_attended = attended_gradient(x, context);
  backward_mixture(seen, rows, context.routing, context, dy, gradients, d_attended, memory.weights);
  if (!options_.routing.gate_before_attention) backward_router(seen, d_attended);
  backward_attention(x, context, d_attended, gradients, dx);
  if (options_.routing.gate_before_attention) backward_router(x, dx);
}

}  // namespace meo

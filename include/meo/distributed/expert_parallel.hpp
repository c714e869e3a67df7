#pragma once

/// Expert parallelism for vanilla mixtures: every rank owns some of the experts, and tokens go to the owners
/// of the experts that they selected, as in GShard (Lepikhin et al. 2021, arXiv 2006.16668), but ragged: no
/// expert has a capacity, no row is padded, none is dropped.
///
/// Letters: T tokens of a rank's part of the batch, D in_features, F out_features, N experts of all ranks, S
/// (token, expert) pairs of a rank's tokens, M those that came to a rank.

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>
#include <meo/distributed/token_exchange.hpp>
#include <meo/errors.hpp>
#include <meo/experts/aligned_vector.hpp>
#include <meo/kernels/combine_rows.hpp>
#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/mixing/by_expert.hpp>
#include <meo/mixing/mixture.hpp>
#include <meo/overlap.hpp>
#include <meo/routing/assignment.hpp>
#include <meo/routing/gate_input.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/offsets.hpp>
#include <meo/routing/router.hpp>
#include <meo/routing/routing.hpp>
#include <meo/sums.hpp>
#include <meo/training/parameters.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

namespace detail {

/// What kinds of layers have experts that can be spread over ranks: their sizes, their router, and how some
/// of their experts are copied to a layer of these alone.
template <class Layer>
struct Spreadable;

template <class Scalar>
struct Spreadable<MoeLayer<Scalar>> {
  using LocalContext = meo::Context<Scalar>;

  static void check(const LayerOptions&) {}
  static Index in_features(const LayerOptions& options) { return options.in_features; }
  static Index out_features(const LayerOptions& options) { return options.out_features; }
  static const Router<Scalar>& router(const MoeLayer<Scalar>& whole) { return whole.router(); }
  static MoeLayer<Scalar> like(const MoeLayer<Scalar>&, const LayerOptions& options) {
    return MoeLayer<Scalar>(options);
  }
  static void copy(const MoeLayer<Scalar>& whole, Index first, MoeLayer<Scalar>& own) {
    for (Index expert = 0; expert < own.num_experts(); ++expert) {
      own.set_weight(expert, whole.weight(first + expert));
      if (own.options().bias) own.set_bias(expert, whole.bias(first + expert));
    }
  }
};

template <class Scalar, class Activation>
struct Spreadable<FeedForward<MoeLayer<Scalar>, Activation>> {
  using Layer = FeedForward<MoeLayer<Scalar>, Activation>;
  using LocalContext = FeedForwardContext<Scalar>;

  static void check(const FeedForwardOptions& options) {
    meo::detail::require(options.shared_gate,
                         "shared_gate: expected a block with one router for all projections, got false");
  }
  static Index in_features(const FeedForwardOptions& options) { return options.features; }
  static Index out_features(const FeedForwardOptions& options) { return options.features; }
  static const Router<Scalar>& router(const Layer& whole) { return whole.up().router(); }
  static Layer like(const Layer& whole, const FeedForwardOptions& options) {
    return Layer(options, whole.activation());
  }
  static void copy(const Layer& whole, Index first, Layer& own) {
    using Projection = Spreadable<MoeLayer<Scalar>>;
    Projection::copy(whole.up(), first, own.up());
    if (own.options().gated) Projection::copy(whole.gate_up(), first, own.gate_up());
    Projection::copy(whole.down(), first, own.down());
  }
};

/// What a forward and the backward that follows it keep. Rows of pairs are sorted by expert.
template <class Layer, class Scalar>
struct ExpertParallelMemory {
  Index tokens = -1;  ///< of the last forward; −1: none has finished
  meo::detail::GateRowsMemory gate_rows;
  RouterWorkspace<Scalar> router;
  meo::detail::Dispatch<Scalar> dispatch;
  TokenExchange exchange;
  Assignment<Scalar> assignment;   ///< of the rows that came: one expert each
  AlignedVector<Scalar> inputs;    ///< M × D: these rows
  AlignedVector<Scalar> sent;      ///< S rows of x or dy
  AlignedVector<Scalar> returned;  ///< S rows of y or dx
  AlignedVector<Scalar> results;   ///< M rows of y or dx
  typename Spreadable<Layer>::LocalContext local;
  AlignedVector<Scalar> d_outputs;                ///< M rows of dy
  std::vector<Scalar> d_pairs;                    ///< M: gradients of the weights
  std::vector<Scalar> d_weights;                  ///< the same of each pair of the routing
  std::vector<meo::detail::Sum<Scalar>> d_slots;  ///< S: the same of each token of it
  RouterGradientWorkspace<Scalar> router_gradient;
};

}  // namespace detail

/// Memory that a forward of ExpertParallel and its backward share; buffers grow where they must and are kept.
template <class Layer>
class ExpertParallelContext {
 public:
  /// The layer's.
  using Scalar = typename Layer::Scalar;

  /// What the router decided on this rank's rows.
  Routing<Scalar> routing;

  /// Task level: the gradient of inputs.task_embeddings, as the last backward wrote it.
  Eigen::Map<const Matrix<Scalar>> task_embeddings_gradient() const {
    return memory_.router_gradient.task_embeddings.get();
  }

  /// Between ExpertParallel and its memory.
  friend detail::ExpertParallelMemory<Layer, Scalar>& memory_of(ExpertParallelContext& context) {
    return context.memory_;
  }

 private:
  detail::ExpertParallelMemory<Layer, Scalar> memory_;
};

/// A MoeLayer, or a FeedForward of them with one router, of whose experts each rank owns some, see range_of.
/// Every rank has the whole router and works on its part of the batch, whole sequences.
///
/// Of one rank that has the whole batch, the parts one after another, y and the experts' gradients are had to
/// the bit, on any number of ranks, and without losses of the router, d_loss = 0, dx as well: rows are
/// multiplied by the kernels that one rank has, come to an expert in the order of the batch, and come back
/// unsummed. Losses, see Inputs::reduction, and gradients of the router are sums over ranks, and the same to
/// rounding, as is then dx. Shared experts are owned as others are: all tokens go to their owners. Capacity
/// and expert choice count the rows of each rank by themselves.
///
/// Constructors, forward and backward are for all ranks to call, with tokens or without. What is wrong on one
/// rank throws on all, see agree, and changes nothing. Where Inputs::reduction is over other ranks as well,
/// those wait for the ones that throw: see run.
template <class LayerType>
class ExpertParallel {
  using Spreadable = detail::Spreadable<LayerType>;

 public:
  /// What it is made of.
  using Layer = LayerType;
  using Scalar = typename Layer::Scalar;
  using Options = typename Layer::Options;
  using Context = ExpertParallelContext<Layer>;

  /// All parameters zero. options: of all experts; more: what else Layer is made of, as an activation. Throws
  /// std::invalid_argument for options that make no layer, or a block with several routers, and where sizes
  /// are not the same on all ranks.
  template <class... More>
  ExpertParallel(const Communicator& communicator, const Options& options, const More&... more)
      : communicator_(communicator), options_(options), router_(agreed(communicator, [&] {
          check_options(options);
          return Router<Scalar>(options.routing, Spreadable::in_features(options), options.num_experts,
                                options.top_k, options.shared_experts);
        })) {
    require_same_sizes();
    agree(communicator_, [&] {
      if (own().size() > 0) experts_.emplace(local(options, own().size()), more...);
    });
  }

  /// With the parameters of a layer, of whose experts it copies its own. Throws std::invalid_argument for one
  /// without a router, or with several, and where sizes are not the same on all ranks.
  ExpertParallel(const Communicator& communicator, const Layer& whole)
      : communicator_(communicator), options_(whole.options()), router_(agreed(communicator, [&] {
          check_options(whole.options());
          return Spreadable::router(whole);
        })) {
    require_same_sizes();
    agree(communicator_, [&] {
      if (own().size() == 0) return;
      experts_.emplace(Spreadable::like(whole, local(options_, own().size())));
      Spreadable::copy(whole, own().begin, *experts_);
    });
  }

  /// The ranks that share the layer.
  const Communicator& communicator() const { return communicator_; }
  /// What the whole layer is made with.
  const Options& options() const { return options_; }
  /// This rank's experts, of those with the shared ones behind them; none where there are fewer than ranks.
  RankRange own() const { return range_of(num_experts(), communicator_.size(), communicator_.rank()); }

  /// Each rank has the same; who changes one, changes all.
  Router<Scalar>& router() { return router_; }
  const Router<Scalar>& router() const { return router_; }
  /// This rank's experts: a layer without a router, whose expert e is own().begin + e. Throws
  /// std::invalid_argument on a rank that has none.
  Layer& experts() {
    require_experts();
    return *experts_;
  }
  const Layer& experts() const {
    require_experts();
    return *experts_;
  }

  /// Ranges of the router, whose gradients are each rank's part: GradientReducer adds them up.
  Parameters<Scalar> router_parameters() {
    Parameters<Scalar> all;
    const auto add = [&](std::string_view name, auto&& part) {
      if constexpr (!meo::detail::is_buffer<std::remove_cvref_t<decltype(part)>>)
        all.push_back({std::string(name), part.values()});
    };
    router_.gate().visit(add);
    router_.visit_shared_expert_gate(add);
    router_.visit_task_projection(add);
    return all;
  }
  /// Ranges of this rank's experts, whose gradients are complete as backward leaves them. With those of the
  /// router, once they are added up, they are the parts and what is shared of SplitParameters, to be clipped.
  Parameters<Scalar> expert_parameters() { return experts_ ? parameters(*experts_) : Parameters<Scalar>(); }

  /// x: T × D, this rank's tokens; y: T × F, overwritten. Returns context.routing. Throws
  /// std::invalid_argument for what does not fit, std::domain_error for a gate whose logits are not finite.
  const Routing<Scalar>& forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                 MatrixRef<Scalar> y, Context& context) const;

  /// Gradients of forward(x, inputs, y, context), of which `context` is left: for dy, T × F, and d_loss, that
  /// of the loss. Adds those of the parameters to `gradients`, another one of the same options, and
  /// overwrites dx, T × D. Throws std::invalid_argument for what does not fit.
  void backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context& context,
                const ConstMatrixRef<Scalar>& dy, ExpertParallel& gradients, MatrixRef<Scalar> dx,
                const Scalar& d_loss = Scalar(1)) const;

 private:
  using Memory = detail::ExpertParallelMemory<Layer, Scalar>;
  using Map = Eigen::Map<Matrix<Scalar>, 0, Eigen::OuterStride<>>;

  static void check_options(const Options& options) {
    Spreadable::check(options);
    meo::detail::require(options.has_router, "has_router: expected a layer with a router, got false");
  }

  /// The same layer of some of the experts: every row that comes has one of them.
  static Options local(Options options, Index num_experts) {
    options.num_experts = num_experts;
    options.top_k = 1;
    options.shared_experts = {};
    options.routing = {.level = Level::token};
    options.has_router = false;
    return options;
  }

  /// What rows that are sent and received have to fit.
  void require_same_sizes() const {
    require_same(communicator_, "num_experts, with shared ones", num_experts());
    require_same(communicator_, "features of x", in_features());
    require_same(communicator_, "features of y", out_features());
  }

  /// With the shared ones.
  Index num_experts() const { return options_.num_experts + options_.shared_experts.count; }
  Index in_features() const { return Spreadable::in_features(options_); }
  Index out_features() const { return Spreadable::out_features(options_); }

  void require_experts() const {
    meo::detail::require(experts_.has_value(), "experts: expected a rank that has some, got rank ",
                         communicator_.rank(), " of ", communicator_.size(), " for ", num_experts(),
                         " experts");
  }

  meo::detail::GateRows rows_of(std::span<const Index> offsets, Memory& memory) const {
    return meo::detail::gate_rows(options_.routing, true, offsets, memory.gate_rows);
  }

  /// Throws unless the sizes fit; the batch's offsets.
  meo::detail::Offsets check(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const;

  /// memory.sent: of every pair its token's row, with `more` values of room behind each.
  static Scalar* gather(const MatrixView<Scalar>& from, Index more, Memory& memory);

  /// This rank's experts on the rows that came, memory.inputs: leaves their outputs in memory.results.
  void forward_own(Memory& memory) const;

  /// The same backward, from memory.d_outputs, whose rows end with weights: leaves gradients of the inputs in
  /// memory.results, each with that of its weight behind it.
  void backward_own(Memory& memory, ExpertParallel& gradients) const;

  /// What has come back in memory.returned, added up in the order of the experts: gradients of x and weights.
  static void collect(Memory& memory, MatrixRef<Scalar> dx);

  Communicator communicator_;
  Options options_;
  Router<Scalar> router_;
  std::optional<Layer> experts_;
};

template <class LayerType>
auto ExpertParallel<LayerType>::check(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const
    -> meo::detail::Offsets {
  meo::detail::require_not_moved_from(router_.empty(), "layer");
  meo::detail::require(x.cols() == in_features(), "x: expected ", in_features(), " columns, got ", x.cols());
  if (inputs.sequences != nullptr) {
    meo::detail::require(inputs.sequences->tokens() == x.rows(), "sequences: expected ", x.rows(),
                         " tokens in all, as x has rows, got ", inputs.sequences->tokens());
  }
  const meo::detail::Offsets offsets(inputs.sequences, x.rows());
  router_.check(offsets.num_sequences(), inputs);
  return offsets;
}

template <class LayerType>
auto ExpertParallel<LayerType>::gather(const MatrixView<Scalar>& from, Index more, Memory& memory)
    -> Scalar* {
  const std::vector<Index>& tokens = memory.dispatch.tokens;
  const Index width = from.cols() + more;
  Scalar* const sent = meo::detail::reserve(memory.sent, static_cast<Index>(tokens.size()) * width);
  for (std::size_t slot = 0; slot < tokens.size(); ++slot)
    std::copy_n(from.row(tokens[slot]), from.cols(), sent + static_cast<Index>(slot) * width);
  return sent;
}

template <class LayerType>
void ExpertParallel<LayerType>::forward_own(Memory& memory) const {
  const Index rows = memory.exchange.received_rows(), in = in_features(), out = out_features();
  const std::span<const Index> experts = memory.exchange.received_experts();
  memory.assignment.rows = rows;
  memory.assignment.num_experts = own().size();
  memory.assignment.top_k = 1;
  memory.assignment.experts.assign(experts.begin(), experts.end());
  memory.assignment.weights.assign(experts.size(), Scalar(1));
  Scalar* const results = meo::detail::reserve(memory.results, rows * out);
  if (rows == 0) return;
  experts_->forward_routed(Eigen::Map<Matrix<Scalar>>(memory.inputs.data(), rows, in), {}, memory.assignment,
                           Eigen::Map<Matrix<Scalar>>(results, rows, out), memory.local);
}

template <class LayerType>
void ExpertParallel<LayerType>::backward_own(Memory& memory, ExpertParallel& gradients) const {
  const Index rows = memory.exchange.received_rows(), in = in_features(), out = out_features();
  Scalar* const results = meo::detail::reserve(memory.results, rows * (in + 1));
  if (rows == 0) return;
  const Eigen::OuterStride<> d_stride(out + 1), stride(in + 1);
  for (Index row = 0; row < rows; ++row) {
    memory.assignment.weights[static_cast<std::size_t>(row)] =
        memory.d_outputs[static_cast<std::size_t>(row * (out + 1) + out)];
  }
  memory.d_pairs.assign(static_cast<std::size_t>(rows), Scalar(0));
  experts_->backward_routed(Eigen::Map<Matrix<Scalar>>(memory.inputs.data(), rows, in), {}, memory.assignment,
                            memory.local, Map(memory.d_outputs.data(), rows, out, d_stride),
                            gradients.experts(), Map(results, rows, in, stride), memory.d_pairs);
  for (Index row = 0; row < rows; ++row)
    results[row * (in + 1) + in] = memory.d_pairs[static_cast<std::size_t>(row)];
}

template <class LayerType>
void ExpertParallel<LayerType>::collect(Memory& memory, MatrixRef<Scalar> dx) {
  const Index in = dx.cols();
  const auto& dispatch = memory.dispatch;
  memory.d_slots.resize(dispatch.tokens.size());
  for (std::size_t slot = 0; slot < dispatch.tokens.size(); ++slot) {
    const Scalar* const row = memory.returned.data() + static_cast<Index>(slot) * (in + 1);
    memory.d_slots[slot] = static_cast<meo::detail::Sum<Scalar>>(row[in]);
    const Eigen::Map<const Vector<Scalar>> d_token(row, in);
    if (dispatch.is_first[slot] != 0) dx.row(dispatch.tokens[slot]) = d_token.transpose();
    else dx.row(dispatch.tokens[slot]) += d_token.transpose();
  }
}

template <class LayerType>
auto ExpertParallel<LayerType>::forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                        MatrixRef<Scalar> y, Context& context) const
    -> const Routing<Scalar>& {
  Memory& memory = memory_of(context);
  memory.tokens = -1;
  std::optional<meo::detail::Offsets> offsets;
  meo::detail::GateRows rows;
  agree_reducing(communicator_, inputs, [&](const Inputs<Scalar>& reduced) {
    offsets.emplace(check(x, inputs));
    meo::detail::require_shape(y, x.rows(), out_features(), "y (rows of x by out_features)");
    meo::detail::require_apart<Scalar>(y, "y", x, "x");
    rows = rows_of(*offsets, memory);
    router_.route(x, rows, reduced, context.routing, memory.router);
  });
  auto& dispatch = memory.dispatch;
  meo::detail::dispatch_tokens<Scalar>(meo::detail::pairs_of(context.routing), num_experts(), rows.governed,
                                       dispatch);

  memory.exchange.plan(communicator_, dispatch.begins);
  Scalar* const inputs_of_own =
      meo::detail::reserve(memory.inputs, memory.exchange.received_rows() * in_features());
  memory.exchange.send(communicator_, gather(x, 0, memory), in_features(), inputs_of_own);
  forward_own(memory);
  const Index sent = memory.exchange.sent_rows();
  Scalar* const returned = meo::detail::reserve(memory.returned, sent * out_features());
  memory.exchange.send_back(communicator_, memory.results.data(), out_features(), returned);

  meo::detail::zero_rows_without_experts<Scalar>(context.routing, rows.governed, y);
  meo::detail::combine_rows<Scalar>(
      {returned, out_features()}, sent, out_features(), dispatch.is_first.data(),
      {y.data(), y.outerStride(), dispatch.tokens.data(), dispatch.weights.data()});
  memory.tokens = x.rows();
  return context.routing;
}

template <class LayerType>
void ExpertParallel<LayerType>::backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                         Context& context, const ConstMatrixRef<Scalar>& dy,
                                         ExpertParallel& gradients, MatrixRef<Scalar> dx,
                                         const Scalar& d_loss) const {
  Memory& memory = memory_of(context);
  std::optional<meo::detail::Offsets> offsets;
  agree(communicator_, [&] {
    offsets.emplace(check(x, inputs));
    meo::detail::require(memory.tokens == x.rows(), "context: expected a forward's of ", x.rows(),
                         " tokens, got ", memory.tokens == -1 ? "none" : "another");
    meo::detail::require_shape(dy, x.rows(), out_features(), "dy (rows of x by out_features)");
    meo::detail::require_shape(dx, x.rows(), in_features(), "dx (rows of x by in_features)");
    meo::detail::require(gradients.options() == options_, "gradients: expected a layer of the same options");
    meo::detail::require(&gradients != this, "gradients: expected another layer, got the one itself");
    meo::detail::require_apart<Scalar>(dx, "dx", x, "x");
    meo::detail::require_apart<Scalar>(dx, "dx", dy, "dy");
  });
  const meo::detail::GateRows rows = rows_of(*offsets, memory);
  const auto& dispatch = memory.dispatch;
  // Owners weigh, as one rank does before it multiplies: behind each row goes its weight, and comes its
  // gradient.
  const Index in = in_features(), out = out_features(), sent = memory.exchange.sent_rows();
  Scalar* const d_sent = gather(dy, 1, memory);
  for (Index slot = 0; slot < sent; ++slot)
    d_sent[slot * (out + 1) + out] = dispatch.weights[static_cast<std::size_t>(slot)];
  Scalar* const d_outputs =
      meo::detail::reserve(memory.d_outputs, memory.exchange.received_rows() * (out + 1));
  memory.exchange.send(communicator_, d_sent, out + 1, d_outputs);
  backward_own(memory, gradients);
  Scalar* const returned = meo::detail::reserve(memory.returned, sent * (in + 1));
  memory.exchange.send_back(communicator_, memory.results.data(), in + 1, returned);

  meo::detail::zero_rows_without_experts<Scalar>(context.routing, rows.governed, dx);
  collect(memory, dx);
  memory.d_weights.assign(context.routing.weights.size(), Scalar(0));
  meo::detail::collect_weights_gradient<Scalar>(context.routing, rows.governed, dispatch, memory.d_slots,
                                                memory.d_weights);
  router_.backward({x, rows, inputs, context.routing, memory.router}, memory.d_weights, d_loss,
                   gradients.router_, dx, memory.router_gradient);
}

}  // namespace meo::mpi

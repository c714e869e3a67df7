#pragma once

/// What the MoE and the MEO layer have in common: experts, a gate, and how a batch is checked and routed.
///
/// Letters: T tokens of the batch, B sequences, D in_features, F out_features, N num_experts, R gated rows, S
/// task_features, r reduce_factor.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <numeric>
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
#include <meo/finite.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/forward_record.hpp>
#include <meo/layers/inputs.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/offsets.hpp>
#include <meo/layers/upcycling.hpp>
#include <meo/layers/workspace.hpp>
#include <meo/overlap.hpp>
#include <meo/routing/gate.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

template <class Layer, class Activation>
class FeedForward;

/// A layer that was moved from is empty: until it is assigned to, all but options and sizes throws
/// std::logic_error.
///
/// Derived is MoeLayer or MeoLayer and has forward(x, inputs, y, workspace), and for backward, which comes
/// to both with what has been checked, backward_all and backward_experts; of its token attention, if any,
/// initialize_attention, reset_attention and is_attention_empty.
template <class Derived, class ScalarType, int NumExperts>
class RoutedLayer {
  static_assert(std::is_same_v<ScalarType, std::remove_cvref_t<ScalarType>>,
                "meo: Scalar must be a plain type, without const or reference");
  static_assert(!std::is_integral_v<ScalarType>,
                "meo: Scalar must be a floating-point type or behave like one, not an integer");
  static_assert(NumExperts == Eigen::Dynamic || NumExperts >= 1,
                "meo: NumExperts must be at least 1, or Eigen::Dynamic");

  template <class Y>
  static constexpr bool is_output = std::convertible_to<Y, MatrixRef<ScalarType>>;
  template <class Memory>
  static constexpr bool is_memory = std::convertible_to<Memory&, Workspace<ScalarType>&>;

 public:
  using Scalar = ScalarType;
  static constexpr int num_experts_at_compile_time = NumExperts;

  const LayerOptions& options() const { return options_; }
  Index in_features() const { return options_.in_features; }
  Index out_features() const { return options_.out_features; }
  Index num_experts() const {
    if constexpr (NumExperts == Eigen::Dynamic) return options_.num_experts;
    else return NumExperts;
  }
  Index top_k() const { return options_.top_k; }
  /// Whether the layer, or a part of it, was moved from.
  bool empty() const {
    return experts_.empty() || gate_.empty() || (task_projection_ && task_projection_->empty()) ||
           derived().is_attention_empty();
  }

  /// An expert's weight in PyTorch's form, out_features × in_features. These four throw std::invalid_argument
  /// for an expert that does not exist, another shape, or a bias where there is none, and then change
  /// nothing.
  Matrix<Scalar> weight(Index expert) const { return experts_.weight(expert); }
  void set_weight(Index expert, const ConstMatrixRef<Scalar>& weight) { experts_.set_weight(expert, weight); }
  Vector<Scalar> bias(Index expert) const { return experts_.bias(expert); }
  void set_bias(Index expert, const ConstVectorRef<Scalar>& bias) { experts_.set_bias(expert, bias); }

  ExpertBank<Scalar>& experts() { return experts_; }
  const ExpertBank<Scalar>& experts() const { return experts_; }
  Gate<Scalar, NumExperts>& gate() { return gate_; }
  const Gate<Scalar, NumExperts>& gate() const { return gate_; }

  /// P (⌊S/r⌋ × S) and p, which make the gate's input of a task's description. Throws std::invalid_argument
  /// at other levels.
  Linear<Scalar>& task_projection() {
    require_task_level();
    return *task_projection_;
  }
  const Linear<Scalar>& task_projection() const {
    require_task_level();
    return *task_projection_;
  }

  /// Start values from the caller's generator: experts, biases, W_g, V, v and the task projection uniform in
  /// ±1/√(inputs), as PyTorch's nn.Linear starts; W_n, U and u zero.
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
  void initialize_from_dense(const ConstMatrixRef<Scalar>& weight, const ConstVectorRef<Scalar>& bias) {
    check_dense(weight, &bias);
    copy_to_experts(weight, &bias);
  }
  void initialize_from_dense(const ConstMatrixRef<Scalar>& weight) {
    check_dense(weight, nullptr);
    copy_to_experts(weight, nullptr);
  }

  /// The same for training: rows select different experts, which part from the first step on. Draws in the
  /// order of initialize: what sets the experts apart, W_g, the task projection, V and v; see Upcycling.
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

  /// Rows that the gate decides on for a batch of `tokens` tokens in `sequences` sequences.
  Index gated_rows(Index tokens, Index sequences) const { return gates_by_token() ? tokens : sequences; }

  /// x: T × D, one sequence. Returns y, T × F, and the routing. All forwards throw std::invalid_argument for
  /// shapes that do not fit, std::domain_error for a gate whose logits are not finite.
  Output<Scalar> forward(const ConstMatrixRef<Scalar>& x) const { return forward(x, Inputs<Scalar>{}); }

  /// x: T × D, the tokens of all sequences one under another.
  Output<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Sequences& sequences) const {
    return forward(x, Inputs<Scalar>{.sequences = &sequences});
  }

  Output<Scalar> forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const {
    Workspace<Scalar> workspace;
    Output<Scalar> output;
    output.y.resize(x.rows(), out_features());
    derived().forward(x, inputs, output.y, workspace);
    output.routing = std::move(workspace.routing);
    return output;
  }

  template <class Other, class... More>
  requires(!std::same_as<typename Other::Scalar, Scalar>) Output<Scalar> forward(
      const Eigen::MatrixBase<Other>&, const More&...)
  const {
    static_assert(std::same_as<typename Other::Scalar, Scalar>,
                  "meo: x has another scalar than the layer; convert it with x.cast<Scalar>()");
    return {};
  }

  template <class X, class Y, class Memory>
  requires(std::same_as<typename X::Scalar, Scalar> &&
           !(is_output<Y> && is_memory<Memory>)) void forward(const Eigen::MatrixBase<X>&,
                                                              const Inputs<Scalar>&, Y&&, Memory&) const {
    static_assert(is_output<Y>,
                  "meo: y must be a meo::Matrix of the layer's scalar, or a block or map of one");
    static_assert(is_memory<Memory>,
                  "meo: the workspace must be a Workspace or Context of the layer's scalar");
  }

  /// Gradients of forward(x, inputs, y, context), of which `context` is left: for dy, the gradient of y (T ×
  /// F), and d_loss, that of the balance loss. Adds those of the parameters to `gradients`, a layer of the
  /// same options but not this one, and overwrites dx, T × D. Leaves that of the task embeddings in
  /// context.task_embeddings_gradient(). Throws std::invalid_argument for shapes, inputs or a context that do
  /// not fit, or a dx that overlaps x or dy, and then changes nothing. Allocates only where the context has
  /// to grow.
  void backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context<Scalar>& context,
                const ConstMatrixRef<Scalar>& dy, Derived& gradients, MatrixRef<Scalar> dx,
                const Scalar& d_loss = Scalar(1)) const {
    const detail::Offsets offsets = check_backward(x, inputs, context, dy, gradients, dx);
    context.weights_gradient.assign(context.routing.weights.size(), Scalar(0));
    derived().backward_all(x, offsets, inputs, context, dy, gradients, dx, d_loss);
  }

  /// The same where other layers have used the gate's decision as well: d_weights is what they make of the
  /// gradient of its weights, R × K in the order of context.routing.
  void backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs, Context<Scalar>& context,
                const ConstMatrixRef<Scalar>& dy, Derived& gradients, MatrixRef<Scalar> dx,
                const Scalar& d_loss, std::span<const Scalar> d_weights) const {
    const detail::Offsets offsets = check_backward(x, inputs, context, dy, gradients, dx);
    check_weights_gradient(context.routing, d_weights);
    context.weights_gradient.assign(d_weights.begin(), d_weights.end());
    derived().backward_all(x, offsets, inputs, context, dy, gradients, dx, d_loss);
  }

  /// Gradients of forward_routed(x, inputs, routing, y, context): as backward, but instead of going through
  /// the gate it adds the gradient of the routing's weights to d_weights, R × K in the routing's order.
  void backward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                       const Routing<Scalar>& routing, Context<Scalar>& context,
                       const ConstMatrixRef<Scalar>& dy, Derived& gradients, MatrixRef<Scalar> dx,
                       std::span<Scalar> d_weights) const {
    const detail::Offsets offsets = check(x, inputs);
    check_routing(routing, x.rows(), offsets.num_sequences());
    check_routed_context(offsets, context);
    check_gradients(x, dy, gradients, dx);
    check_weights_gradient(routing, d_weights);
    derived().backward_experts(x, offsets, routing, context, dy, gradients, dx, d_weights);
  }

 protected:
  template <class Layer, class Activation>
  friend class FeedForward;

  explicit RoutedLayer(const LayerOptions& options)
      : options_(detail::checked_options<Scalar, NumExperts>(options)),
        experts_(options_.num_experts, options_.in_features, options_.out_features, options_.bias),
        gate_(gate_features(options_), options_.num_experts, options_.top_k,
              static_cast<Scalar>(options_.loss_coefficient), static_cast<Scalar>(options_.noise_epsilon)) {
    if (options_.level == Level::task)
      task_projection_.emplace(options_.task_features, gate_features(options_));
  }

  void require_not_empty(std::string_view name) const { detail::require_not_moved_from(empty(), name); }

  /// Of a forward: from here on until finish, no backward takes what is in the workspace. Returns the batch's
  /// offsets.
  detail::Offsets begin(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                        Workspace<Scalar>& workspace) const {
    workspace.last_forward.clear();
    return check(x, inputs);
  }

  /// has_gate: whether the layer's gate decided, on `inputs`.
  void finish(std::span<const Index> offsets, const Inputs<Scalar>& inputs, bool has_gate,
              Workspace<Scalar>& workspace) const {
    const detail::Offsets descriptions(inputs.descriptions, inputs.task_embeddings.rows());
    workspace.last_forward.set(identity(), has_gate, offsets, gate_descriptions(has_gate, descriptions),
                               task_of(inputs));
  }

  /// The batch's offsets.
  detail::Offsets check(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs) const {
    require_not_empty("layer");
    detail::require(x.cols() == in_features(), "x: expected in_features = ", in_features(), " columns, got ",
                    x.cols());
    if (options_.level != Level::task) {
      detail::require(
          !inputs.task_embeddings && inputs.descriptions == nullptr && inputs.task_of_sequence.empty(),
          "task_embeddings: expected none at ", to_string(options_.level), " level, got some");
    }
    if (inputs.sequences != nullptr) {
      detail::require(inputs.sequences->tokens() == x.rows(), "sequences: expected ", x.rows(),
                      " tokens in all, as x has rows, got ", inputs.sequences->tokens());
    }
    return {inputs.sequences, x.rows()};
  }

  void check_output(const ConstMatrixRef<Scalar>& x, const MatrixRef<Scalar>& y) const {
    detail::require_shape(y, x.rows(), out_features(), "y (rows of x by out_features)");
    detail::require_apart<Scalar>(y, "y", x, "x");
  }

  /// Routes by sequence or task into workspace.routing. `gate_source`: the tokens that the gate sees, T × D.
  void route_sequences(const MatrixView<Scalar>& gate_source, std::span<const Index> offsets,
                       const Inputs<Scalar>& inputs, Workspace<Scalar>& workspace) const {
    const MatrixView<Scalar> z = options_.level == Level::task
                                     ? task_inputs(static_cast<Index>(offsets.size()) - 1, inputs, workspace)
                                     : means(gate_source, offsets, workspace.gate_input, workspace.sums);
    gate_.route(z, inputs.noise, workspace.routing, workspace.gate);
  }

  /// Throws unless `routing` fits this layer and a batch of so many tokens and sequences.
  void check_routing(const Routing<Scalar>& routing, Index tokens, Index sequences) const {
    const Index rows = gated_rows(tokens, sequences);
    detail::require(routing.rows == rows, "routing: expected ", rows, " rows, got ", routing.rows);
    detail::require(routing.num_experts == num_experts(), "routing: expected num_experts = ", num_experts(),
                    ", got ", routing.num_experts);
    detail::require(routing.top_k >= 1 && routing.top_k <= num_experts(),
                    "routing: expected top_k from 1 to ", num_experts(), ", got ", routing.top_k);
    const auto pairs = static_cast<std::size_t>(routing.rows * routing.top_k);
    detail::require(routing.experts.size() == pairs && routing.weights.size() == pairs, "routing: expected ",
                    pairs, " pairs, got ", routing.experts.size(), " experts and ", routing.weights.size(),
                    " weights");
    for (Index row = 0; row < rows; ++row) {
      const std::span<const Index> experts = routing.row_experts(row);
      const std::span<const Scalar> weights = routing.row_weights(row);
      for (std::size_t i = 0; i < experts.size(); ++i) {
        detail::require_expert(experts[i], num_experts());
        const auto place = experts.begin() + static_cast<std::ptrdiff_t>(i);
        detail::require(std::find(experts.begin(), place, experts[i]) == place,
                        "routing: expected distinct experts in row ", row, ", got expert ", experts[i],
                        " twice");
        detail::require(detail::is_finite(weights[i]),
                        "routing: expected finite weights, got one that is not in row ", row, " for expert ",
                        experts[i]);
      }
    }
  }

  /// All that a backward through the gate needs; the batch's offsets.
  detail::Offsets check_backward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                 const Context<Scalar>& context, const ConstMatrixRef<Scalar>& dy,
                                 const Derived& gradients, const MatrixRef<Scalar>& dx) const {
    const detail::Offsets offsets = check(x, inputs);
    check_context(offsets, inputs, context);
    check_gradients(x, dy, gradients, dx);
    return offsets;
  }

  /// Throws unless `context` has what this layer's forward leaves of such a batch.
  void check_context(std::span<const Index> offsets, const Inputs<Scalar>& inputs,
                     const Context<Scalar>& context) const {
    const Index sequences = static_cast<Index>(offsets.size()) - 1;
    if (options_.level == Level::task) check_tasks(sequences, inputs);
    const detail::Offsets descriptions(inputs.descriptions, inputs.task_embeddings.rows());
    context.last_forward.check(identity(), true, offsets, gate_descriptions(true, descriptions),
                               task_of(inputs));
    // The routing is the caller's to read, and to change or move away.
    const Routing<Scalar>& routing = context.routing;
    check_routing(routing, offsets.back(), sequences);
    detail::require(routing.top_k == top_k(), "routing: expected top_k = ", top_k(), ", got ", routing.top_k);
    const auto experts = static_cast<std::size_t>(num_experts());
    detail::require(routing.importance.size() == experts && routing.load.size() == experts,
                    "routing: expected importance and load of ", experts, " experts, got ",
                    routing.importance.size(), " and ", routing.load.size(), " values");
  }

  /// The same for what forward_routed leaves, and forward as well.
  void check_routed_context(std::span<const Index> offsets, const Context<Scalar>& context) const {
    context.last_forward.check(identity(), false, offsets, {}, task_of({}));
  }

  void check_weights_gradient(const Routing<Scalar>& routing, std::span<const Scalar> d_weights) const {
    detail::require(d_weights.size() == routing.weights.size(), "d_weights: expected ",
                    routing.weights.size(), " values, got ", d_weights.size());
  }

  /// Throws unless dy, dx and gradients fit x, and are apart from what is read.
  void check_gradients(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& dy,
                       const Derived& gradients, const MatrixRef<Scalar>& dx) const {
    detail::require_shape(dy, x.rows(), out_features(), "dy (rows of x by out_features)");
    detail::require_shape(dx, x.rows(), in_features(), "dx (rows of x by in_features)");
    detail::require(gradients.options() == options_, "gradients: expected a layer of the same options");
    detail::require(&gradients != this, "gradients: expected another layer, got the one itself");
    gradients.require_not_empty("gradients");
    detail::require_apart<Scalar>(dx, "dx", x, "x");
    detail::require_apart<Scalar>(dx, "dx", dy, "dy");
  }

  /// From the gradients of the gate's weights (R × K, in the order of context.routing) and of its loss to
  /// those of the gate, which are added to `gradients`, and of what it saw: task embeddings at task level,
  /// else the tokens, T × D at stride, where they are added.
  void backward_sequence_gate(std::span<const Index> offsets, const Inputs<Scalar>& inputs,
                              Context<Scalar>& context, std::span<const Scalar> d_weights,
                              const Scalar& d_loss, Derived& gradients, Scalar* d_tokens,
                              Index stride) const {
    const Index sequences = static_cast<Index>(offsets.size()) - 1;
    const Index features = gate_.gate_features();
    Scalar* const dz = detail::reserve(context.gate_input_gradient, sequences * features);
    gate_.backward({context.gate_input.data(), sequences, features, features}, context.routing, context.gate,
                   d_weights, d_loss, gradients.gate(), false, dz, features, context.gate_gradients,
                   context.scratch);
    if (options_.level == Level::task) {
      backward_task_inputs({dz, sequences, features, features}, inputs, context, gradients);
    } else {
      add_to_group_members(offsets, dz, features, d_tokens, stride);
    }
  }

  /// Whether every token is a row of the gate.
  bool gates_by_token() const { return Derived::gates_tokens && options_.level == Level::token; }

  /// Whether the gate sees the same features for sequences a and b.
  bool share_gate_input(const Inputs<Scalar>& inputs, Index a, Index b) const {
    const auto task = task_of(inputs);
    return options_.level == Level::task && task(a) == task(b);
  }

  /// Offsets 0 … tokens, with which every token is a row of its own.
  static std::span<const Index> token_offsets(Index tokens, Workspace<Scalar>& workspace) {
    workspace.token_offsets.resize(static_cast<std::size_t>(tokens) + 1);
    std::iota(workspace.token_offsets.begin(), workspace.token_offsets.end(), Index{0});
    return workspace.token_offsets;
  }

 private:
  static Index gate_features(const LayerOptions& options) {
    return options.level == Level::task
               ? detail::reduced_features(options.task_features, options.reduce_factor)
               : options.in_features;
  }

  detail::LayerIdentity identity() const {
    return {std::as_const(experts_).values().data(), Derived::merges_experts, options_};
  }

  /// The offsets of the descriptions that the gate has seen, if any.
  std::span<const Index> gate_descriptions(bool has_gate, const detail::Offsets& descriptions) const {
    if (!has_gate || options_.level != Level::task) return {};
    return descriptions;
  }

  /// bias: null without one.
  void check_dense(const ConstMatrixRef<Scalar>& weight, const ConstVectorRef<Scalar>* bias) const {
    require_not_empty("layer");
    if (bias == nullptr) {
      detail::require(!options_.bias, "dense bias: expected ", out_features(),
                      " values as bias = true, got none");
    } else {
      detail::require(options_.bias, "dense bias: expected none as bias = false, got ", bias->size(),
                      " values");
    }
    detail::require_shape(weight, out_features(), in_features(), "dense weight (out_features x in_features)");
    detail::require(bias == nullptr || bias->size() == out_features(), "dense bias: expected ",
                    out_features(), " values, got ", bias == nullptr ? 0 : bias->size());
  }

  void copy_to_experts(const ConstMatrixRef<Scalar>& weight, const ConstVectorRef<Scalar>* bias) {
    for (Index expert = 0; expert < num_experts(); ++expert) {
      experts_.set_weight(expert, weight);
      if (bias != nullptr) experts_.set_bias(expert, *bias);
    }
    const Matrix<Scalar> zero = Matrix<Scalar>::Zero(gate_.gate_features(), num_experts());
    gate_.set_weight(zero);
    gate_.set_noise_weight(zero);
    derived().reset_attention();
  }

  template <class Generator>
  void spread_apart(const ConstMatrixRef<Scalar>& weight, Generator& rng, const Upcycling& upcycling) {
    if (upcycling.expert_spread > 0)
      detail::initialize_around(experts_, weight, upcycling.expert_spread, rng);
    initialize_all_but_experts(rng, upcycling.router_spread);
  }

  /// router_spread: of W_g, see Upcycling.
  template <class Generator>
  void initialize_all_but_experts(Generator& rng, double router_spread) {
    gate_.initialize(rng, router_spread);
    if (task_projection_) task_projection_->initialize(rng);
    derived().initialize_attention(rng);
  }

  Derived& derived() { return static_cast<Derived&>(*this); }
  const Derived& derived() const { return static_cast<const Derived&>(*this); }

  void require_task_level() const {
    detail::require(task_projection_.has_value(), "task_projection: expected a layer at task level, got ",
                    to_string(options_.level), " level");
  }

  /// The mean over the rows of each group, groups × columns; zero for a group without rows.
  static MatrixView<Scalar> means(const MatrixView<Scalar>& rows, std::span<const Index> offsets,
                                  detail::AlignedVector<Scalar>& buffer,
                                  detail::AlignedVector<detail::Sum<Scalar>>& sums) {
    using Sum = detail::Sum<Scalar>;
    const Index groups = static_cast<Index>(offsets.size()) - 1;
    const Index cols = rows.cols();
    Scalar* const out = detail::reserve(buffer, groups * cols);
    Sum* const sum = reserve_sums(sums, rows.rows(), cols);
    for (Index group = 0; group < groups; ++group) {
      const auto g = static_cast<std::size_t>(group);
      detail::sum_rows(
          offsets[g], offsets[g + 1], cols, [&](Index row) { return rows.row(row); }, sum, sum + cols);
      const auto count =
          static_cast<Sum>(static_cast<double>(std::max<Index>(offsets[g + 1] - offsets[g], 1)));
      for (Index d = 0; d < cols; ++d) out[group * cols + d] = static_cast<Scalar>(Sum(sum[d] / count));
    }
    return {out, groups, cols, cols};
  }

  /// Memory for a sum of at most so many rows: `cols` values, and as many as detail::sum_rows needs beside.
  static detail::Sum<Scalar>* reserve_sums(detail::AlignedVector<detail::Sum<Scalar>>& sums, Index rows,
                                           Index cols) {
    return detail::reserve(sums, (1 + detail::pairwise_depth(detail::num_parts(rows))) * cols);
  }

  /// Adds to every row of a group its share of the gradient of the group's mean, groups × columns.
  static void add_to_group_members(std::span<const Index> offsets, const Scalar* mean_gradients, Index cols,
                                   Scalar* rows, Index stride) {
    for (std::size_t group = 0; group + 1 < offsets.size(); ++group) {
      const Scalar* const gradient = mean_gradients + static_cast<Index>(group) * cols;
      using Sum = detail::Sum<Scalar>;
      const auto count = static_cast<Sum>(static_cast<double>(offsets[group + 1] - offsets[group]));
      for (Index row = offsets[group]; row < offsets[group + 1]; ++row) {
        for (Index d = 0; d < cols; ++d) {
          Scalar& value = rows[row * stride + d];
          value = static_cast<Scalar>(Sum(static_cast<Sum>(value) + static_cast<Sum>(gradient[d]) / count));
        }
      }
    }
  }

  /// A function from a sequence to its description.
  static auto task_of(const Inputs<Scalar>& inputs) {
    const bool has_one = inputs.descriptions == nullptr || inputs.descriptions->size() == 1;
    return [tasks = inputs.task_of_sequence, has_one](Index sequence) {
      if (!tasks.empty()) return tasks[static_cast<std::size_t>(sequence)];
      return has_one ? 0 : sequence;
    };
  }

  /// Counting sort: order[begins[t]] … order[begins[t + 1] − 1] are the sequences of description t,
  /// ascending.
  static void sort_by_task(Index sequences, Index descriptions, const Inputs<Scalar>& inputs,
                           std::vector<Index>& begins, std::vector<Index>& order) {
    begins.assign(static_cast<std::size_t>(descriptions) + 1, 0);
    order.resize(static_cast<std::size_t>(sequences));
    const auto task = task_of(inputs);
    for (Index b = 0; b < sequences; ++b) ++begins[static_cast<std::size_t>(task(b))];
    std::partial_sum(begins.begin(), begins.end(), begins.begin());
    for (Index b = sequences; b-- > 0;)
      order[static_cast<std::size_t>(--begins[static_cast<std::size_t>(task(b))])] = b;
  }

  /// From the gradient dz of task_inputs to those of the projection, which are added, and of the embeddings.
  void backward_task_inputs(const MatrixView<Scalar>& dz, const Inputs<Scalar>& inputs,
                            Context<Scalar>& context, Derived& gradients) const {
    const detail::Offsets offsets(inputs.descriptions, inputs.task_embeddings.rows());
    const Index descriptions = offsets.num_sequences();
    const Index features = dz.cols(), task_features = options_.task_features;
    Scalar* const projected = detail::reserve(context.task_inputs_gradient, descriptions * features);
    std::vector<Index>& begins = context.task_begins;
    std::vector<Index>& order = context.task_order;
    sort_by_task(dz.rows(), descriptions, inputs, begins, order);
    detail::Sum<Scalar>* const sum = reserve_sums(context.sums, dz.rows(), features);
    for (Index task = 0; task < descriptions; ++task) {
      const auto t = static_cast<std::size_t>(task);
      detail::sum_rows(
          begins[t], begins[t + 1], features,
          [&](Index i) { return dz.row(order[static_cast<std::size_t>(i)]); }, sum, sum + features);
      for (Index j = 0; j < features; ++j) projected[task * features + j] = static_cast<Scalar>(sum[j]);
    }
    Scalar* const means = detail::reserve(context.task_means_gradient, descriptions * task_features);
    task_projection_->backward({context.task_means.data(), descriptions, task_features, task_features},
                               {projected, descriptions, features, features}, gradients.task_projection(),
                               false, means, task_features, context.scratch);
    Eigen::Map<Matrix<Scalar>> embeddings =
        context.task_embeddings.resize(inputs.task_embeddings.rows(), task_features);
    embeddings.setZero();
    add_to_group_members(offsets, means, task_features, embeddings.data(), task_features);
  }

  /// Throws unless the inputs describe the tasks of so many sequences. Returns the descriptions' offsets.
  detail::Offsets check_tasks(Index sequences, const Inputs<Scalar>& inputs) const {
    const MatrixView<Scalar>& embeddings = inputs.task_embeddings;
    detail::require(static_cast<bool>(embeddings), "task_embeddings: expected some at task level, got none");
    detail::require(embeddings.cols() == options_.task_features,
                    "task_embeddings: expected task_features = ", options_.task_features, " columns, got ",
                    embeddings.cols());
    const detail::Offsets offsets(inputs.descriptions, embeddings.rows());
    if (inputs.descriptions != nullptr) {
      detail::require(inputs.descriptions->tokens() == embeddings.rows(), "descriptions: expected ",
                      embeddings.rows(), " tokens in all, as task_embeddings has rows, got ",
                      inputs.descriptions->tokens());
    }
    const Index descriptions = offsets.num_sequences();
    const std::span<const Index> tasks = inputs.task_of_sequence;
    if (tasks.empty()) {
      detail::require(descriptions == 1 || descriptions == sequences || sequences == 0,
                      "descriptions: expected 1 or one for each of ", sequences, " sequences, got ",
                      descriptions);
    } else {
      detail::require(static_cast<Index>(tasks.size()) == sequences, "task_of_sequence: expected ", sequences,
                      " entries, got ", tasks.size());
      for (const Index task : tasks) {
        detail::require(task >= 0 && task < descriptions, "task_of_sequence: expected 0 to ",
                        descriptions - 1, ", got ", task);
      }
    }
    return offsets;
  }

  /// The gate's input at task level: per sequence the mean over its description's tokens of E Pᵀ + p. The
  /// projection is linear, so the mean comes first, and a description without tokens gives p.
  MatrixView<Scalar> task_inputs(Index sequences, const Inputs<Scalar>& inputs,
                                 Workspace<Scalar>& workspace) const {
    const detail::Offsets offsets = check_tasks(sequences, inputs);
    const MatrixView<Scalar> description_means =
        means(inputs.task_embeddings, offsets, workspace.task_means, workspace.sums);
    const Index features = gate_.gate_features();
    Scalar* const z = detail::reserve(workspace.gate_input, sequences * features);
    const auto task = task_of(inputs);
    for (Index b = 0; b < sequences; ++b) {
      const MatrixView<Scalar> mean(description_means.row(task(b)), 1, description_means.cols(),
                                    description_means.cols());
      task_projection_->apply(mean, z + b * features, features);
    }
    return {z, sequences, features, features};
  }

  LayerOptions options_;
  ExpertBank<Scalar> experts_;
  Gate<Scalar, NumExperts> gate_;
  std::optional<Linear<Scalar>> task_projection_;
};

}  // namespace meo

#pragma once

/// From a batch to the assignment of its rows to experts: what the gate sees, the gate, and the experts that
/// every row has.
///
/// Letters: T tokens, R rows, D features, N num_experts, K top_k, S task_features, D_g gate features.

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/experts/growing_matrix.hpp>
#include <meo/experts/linear.hpp>
#include <meo/finite.hpp>
#include <meo/routing/gate.hpp>
#include <meo/routing/gate_input.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/routing.hpp>
#include <meo/routing/routing_options.hpp>
#include <meo/routing/scores.hpp>
#include <meo/routing/shared_experts.hpp>
#include <meo/routing/task_descriptions.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Buffers of Router::route; they grow where they must and are kept.
template <class Scalar>
struct RouterWorkspace {
  GateWorkspace<Scalar> gate;                 ///< of the gate itself
  AlignedVector<Scalar> gate_input;           ///< R × D_g, where it is not the tokens themselves
  AlignedVector<Scalar> task_means;           ///< descriptions × S
  AlignedVector<detail::Sum<Scalar>> sums;    ///< while means are formed
  detail::SharedExpertMemory<Scalar> shared;  ///< where there are shared experts
};

/// Buffers of Router::backward: gradients of what they are named after.
template <class Scalar>
struct RouterGradientWorkspace {
  GateGradientWorkspace<Scalar> gate;                 ///< of the gate itself
  AlignedVector<Scalar> gate_input;                   ///< R × D_g
  AlignedVector<Scalar> task_inputs;                  ///< descriptions × D_g
  AlignedVector<Scalar> task_means;                   ///< descriptions × S
  detail::GrowingMatrix<Scalar> task_embeddings;      ///< description tokens × S
  std::vector<Index> task_begins;                     ///< descriptions + 1, in task_order
  std::vector<Index> task_order;                      ///< sequences, by description
  AlignedVector<detail::Sum<Scalar>> sums;            ///< while those of a task are added up
  detail::SharedExpertGradientMemory<Scalar> shared;  ///< where there are shared experts
  AlignedVector<Scalar> scratch;
};

/// What Router::route was given and has left. A view.
template <class Scalar>
struct RouterDecision {
  MatrixView<Scalar> tokens;  ///< T × D, what the rows saw
  const detail::GateRows& rows;
  const Inputs<Scalar>& inputs;
  const Routing<Scalar>& routing;
  const RouterWorkspace<Scalar>& workspace;
};

/// A gate, at task level the projection of what it sees, and the shared experts' weights.
template <class Scalar, int NumExperts = Eigen::Dynamic>
class Router {
 public:
  /// All parameters zero. features: D. Throws std::invalid_argument for sizes or options that make no router.
  Router(const RoutingOptions& options, Index features, Index num_experts, Index top_k,
         const SharedExpertOptions& shared_experts = {});

  /// What it was made with.
  const RoutingOptions& options() const { return options_; }
  const SharedExpertOptions& shared_experts() const { return shared_experts_; }
  /// Without the shared ones.
  Index num_experts() const { return gate_.num_experts(); }
  Index top_k() const { return gate_.top_k(); }
  /// Whether it was moved from; see Linear::empty.
  bool empty() const {
    return gate_.empty() || (task_projection_ && task_projection_->empty()) ||
           (shared_expert_gate_ && shared_expert_gate_->empty());
  }

  /// What decides.
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

  /// s, 1 × D_g, of the weight σ(z · s) that shared experts have. Throws std::invalid_argument unless the
  /// options say SharedWeight::sigmoid of some.
  Linear<Scalar>& shared_expert_gate() {
    require_shared_expert_gate();
    return *shared_expert_gate_;
  }
  const Linear<Scalar>& shared_expert_gate() const {
    require_shared_expert_gate();
    return *shared_expert_gate_;
  }

  /// Start values: those of Gate::initialize, s and the task projection as PyTorch's nn.Linear.
  template <class Generator>
  void initialize(Generator& rng, double spread = 1) {
    gate_.initialize(rng, spread);
    if (shared_expert_gate_) shared_expert_gate_->initialize(rng);
    if (task_projection_) task_projection_->initialize(rng);
  }

  /// All of the gate zero: every row selects the experts 0 … K − 1 with equal weights. So is s: it weighs
  /// shared experts by 1/2.
  void reset_gate() {
    gate_.reset();
    if (shared_expert_gate_) shared_expert_gate_->set_zero();
  }

  /// Calls visit("shared_expert_gate", projection) where there is s.
  template <class Visitor>
  void visit_shared_expert_gate(const Visitor& visit) {
    if (shared_expert_gate_) visit("shared_expert_gate", *shared_expert_gate_);
  }
  template <class Visitor>
  void visit_shared_expert_gate(const Visitor& visit) const {
    if (shared_expert_gate_) visit("shared_expert_gate", *shared_expert_gate_);
  }

  /// Calls visit("task_proj", projection) at task level.
  template <class Visitor>
  void visit_task_projection(const Visitor& visit) {
    if (task_projection_) visit("task_proj", *task_projection_);
  }
  template <class Visitor>
  void visit_task_projection(const Visitor& visit) const {
    if (task_projection_) visit("task_proj", *task_projection_);
  }

  /// Throws std::invalid_argument unless the inputs have what a batch of so many sequences needs.
  void check(Index sequences, const Inputs<Scalar>& inputs) const;

  /// Throws std::invalid_argument unless `routing` has the pairs and sums of what route has left in
  /// `workspace`.
  void check_decision(const Routing<Scalar>& routing, const RouterWorkspace<Scalar>& workspace) const;

  /// Decides on every row. tokens: T × D, what the rows see, but for the task level. Throws
  /// std::invalid_argument for inputs that do not fit, std::domain_error for logits that are not finite.
  /// Allocates only where routing or workspace have to grow.
  void route(const MatrixView<Scalar>& tokens, const detail::GateRows& rows, const Inputs<Scalar>& inputs,
             Routing<Scalar>& routing, RouterWorkspace<Scalar>& workspace) const;

  /// Gradients of a decision of route: from those of the weights (one for each pair, in the routing's order)
  /// and of the loss to those of the parameters, which are added to `gradients`, and of what it saw: the
  /// tokens, T × D, where they are added to d_tokens, or at task level the embeddings, which are left in
  /// memory.task_embeddings.
  void backward(const RouterDecision<Scalar>& decision, std::span<const Scalar> d_weights,
                const Scalar& d_loss, Router& gradients, MatrixRef<Scalar> d_tokens,
                RouterGradientWorkspace<Scalar>& memory) const;

 private:
  static const RoutingOptions& checked(const RoutingOptions& options) {
    detail::check_routing_options<Scalar>(options);
    return options;
  }

  static Index gate_features(const RoutingOptions& options, Index features) {
    return options.level == Level::task
               ? detail::reduced_features(options.task_features, options.reduce_factor)
               : features;
  }

  void require_task_level() const {
    detail::require(task_projection_.has_value(), "task_projection: expected a layer at task level, got ",
                    to_string(options_.level), " level");
  }

  void require_shared_expert_gate() const {
    detail::require(shared_expert_gate_.has_value(),
                    "shared_expert_gate: expected shared experts with the weight sigmoid, got ",
                    shared_experts_.count, " of the weight one");
  }

  bool sees_tokens(const detail::GateRows& rows) const {
    return options_.level != Level::task && rows.seen.empty();
  }

  MatrixView<Scalar> gate_input(const MatrixView<Scalar>& tokens, const detail::GateRows& rows,
                                const Inputs<Scalar>& inputs, RouterWorkspace<Scalar>& workspace) const {
    if (options_.level == Level::task) return task_inputs(rows.size(), inputs, workspace);
    if (sees_tokens(rows)) return tokens;
    return detail::means(tokens, rows.size(), rows.seen, workspace.gate_input, workspace.sums);
  }

  /// The gate's input at task level: per sequence the mean over its description's tokens of E Pᵀ + p. The
  /// projection is linear, so the mean comes first, and a description without tokens gives p.
  MatrixView<Scalar> task_inputs(Index sequences, const Inputs<Scalar>& inputs,
                                 RouterWorkspace<Scalar>& workspace) const;

  /// From the gradient dz of task_inputs to those of the projection, which are added, and of the embeddings.
  void backward_tasks(const MatrixView<Scalar>& dz, const Inputs<Scalar>& inputs,
                      const RouterWorkspace<Scalar>& workspace, Router& gradients,
                      RouterGradientWorkspace<Scalar>& memory) const;

  /// Adds the shared experts' pairs to what the gate has decided on z.
  void add_shared_experts(const MatrixView<Scalar>& z, RouterWorkspace<Scalar>& workspace,
                          Routing<Scalar>& routing) const;

  /// Backward from the weights to what the gate sees, z: see Gate::backward.
  void backward_gates(const MatrixView<Scalar>& z, const RouterDecision<Scalar>& decision,
                      std::span<const Scalar> d_weights, const Scalar& d_loss, Router& gradients,
                      MatrixRef<Scalar> dz, bool add, RouterGradientWorkspace<Scalar>& memory) const;

  /// From the gradients of the shared weights of all rows to those of the logits z · s, in place.
  void shared_weights_to_logits(const RouterDecision<Scalar>& decision, Scalar* gradients) const;

  /// Rows whose weights' gradients are needed in sum only: those of one task without noise, whose gate sees
  /// the same and which have the same pairs; and all where the weight of K = 1 is the same whatever the
  /// logit, and that of shared experts as well.
  void set_gradient_groups(const Inputs<Scalar>& inputs, const GateWorkspace<Scalar>& gate,
                           Routing<Scalar>& routing) const;

  RoutingOptions options_;
  SharedExpertOptions shared_experts_;
  Gate<Scalar, NumExperts> gate_;
  std::optional<Linear<Scalar>> shared_expert_gate_;
  std::optional<Linear<Scalar>> task_projection_;
};

template <class Scalar, int NumExperts>
Router<Scalar, NumExperts>::Router(const RoutingOptions& options, Index features, Index num_experts,
                                   Index top_k, const SharedExpertOptions& shared_experts)
    : options_(checked(options)),
      shared_experts_(shared_experts),
      gate_(gate_features(options, features), num_experts, top_k, options) {
  detail::check_shared_experts(shared_experts, num_experts);
  if (detail::has_shared_expert_gate(shared_experts))
    shared_expert_gate_.emplace(gate_features(options, features), 1, false);
  if (options.level == Level::task)
    task_projection_.emplace(options.task_features, gate_features(options, features));
}

template <class Scalar, int NumExperts>
void Router<Scalar, NumExperts>::check(Index sequences, const Inputs<Scalar>& inputs) const {
  if (options_.level == Level::task) detail::check_tasks(sequences, options_.task_features, inputs);
}

template <class Scalar, int NumExperts>
void Router<Scalar, NumExperts>::check_decision(const Routing<Scalar>& routing,
                                                const RouterWorkspace<Scalar>& workspace) const {
  const GateWorkspace<Scalar>& gate = workspace.gate;
  const Index shared = shared_experts_.count;
  if (gate.is_composed) {
    const Index pairs = gate.num_pairs + routing.rows * shared;
    detail::require(routing.size() == pairs, "routing: expected ", pairs, " pairs, got ", routing.size());
  } else {
    detail::require(routing.begins.empty() && routing.top_k == gate.top_k + shared,
                    "routing: expected top_k = ", gate.top_k + shared, ", got ", routing.top_k);
  }
  const auto experts = static_cast<std::size_t>(num_experts());
  detail::require(routing.importance.size() == experts && routing.load.size() == experts,
                  "routing: expected importance and load of ", experts, " experts, got ",
                  routing.importance.size(), " and ", routing.load.size(), " values");
}

template <class Scalar, int NumExperts>
void Router<Scalar, NumExperts>::route(const MatrixView<Scalar>& tokens, const detail::GateRows& rows,
                                       const Inputs<Scalar>& inputs, Routing<Scalar>& routing,
                                       RouterWorkspace<Scalar>& workspace) const {
  const bool are_sequences_apart = sees_tokens(rows) && inputs.sequences != nullptr;
  const MatrixView<Scalar> z = gate_input(tokens, rows, inputs, workspace);
  const bool has_shared = shared_experts_.count > 0;
  gate_.route(z, inputs.noise, has_shared ? workspace.shared.routed : routing, workspace.gate,
              {.top_k = inputs.top_k,
               .allowed_experts = inputs.allowed_experts,
               .parts = are_sequences_apart ? inputs.sequences->offsets() : std::span<const Index>(),
               .reduction = inputs.reduction});
  if (has_shared) add_shared_experts(z, workspace, routing);
  set_gradient_groups(inputs, workspace.gate, routing);
}

template <class Scalar, int NumExperts>
void Router<Scalar, NumExperts>::backward(const RouterDecision<Scalar>& decision,
                                          std::span<const Scalar> d_weights, const Scalar& d_loss,
                                          Router& gradients, MatrixRef<Scalar> d_tokens,
                                          RouterGradientWorkspace<Scalar>& memory) const {
  const detail::GateRows& rows = decision.rows;
  if (sees_tokens(rows)) {
    backward_gates(decision.tokens, decision, d_weights, d_loss, gradients, d_tokens, true, memory);
    return;
  }
  const Index features = gate_.gate_features();
  const MatrixView<Scalar> z(decision.workspace.gate_input.data(), rows.size(), features, features);
  Eigen::Map<Matrix<Scalar>> dz(detail::reserve(memory.gate_input, rows.size() * features), rows.size(),
                                features);
  backward_gates(z, decision, d_weights, d_loss, gradients, dz, false, memory);
  if (options_.level == Level::task) {
    backward_tasks(dz, decision.inputs, decision.workspace, gradients, memory);
  } else {
    detail::add_means_gradient(dz.data(), rows.size(), rows.seen, features, d_tokens.data(),
                               d_tokens.outerStride());
  }
}

template <class Scalar, int NumExperts>
void Router<Scalar, NumExperts>::add_shared_experts(const MatrixView<Scalar>& z,
                                                    RouterWorkspace<Scalar>& workspace,
                                                    Routing<Scalar>& routing) const {
  using Sum = detail::Sum<Scalar>;
  Scalar* weights = nullptr;
  if (shared_expert_gate_) {
    weights = detail::reserve(workspace.shared.weights, z.rows());
    shared_expert_gate_->apply(z, weights, 1);
    for (Index row = 0; row < z.rows(); ++row) {
      if (!detail::is_finite(weights[row]))
        throw std::domain_error(detail::message("gate: expected finite logits, got one that is not in row ",
                                                row, " for the shared experts"));
      weights[row] = static_cast<Scalar>(detail::sigmoid(static_cast<Sum>(weights[row])));
    }
  }
  detail::add_shared_pairs(workspace.shared.routed, shared_experts_.count, weights, routing);
}

template <class Scalar, int NumExperts>
void Router<Scalar, NumExperts>::backward_gates(const MatrixView<Scalar>& z,
                                                const RouterDecision<Scalar>& decision,
                                                std::span<const Scalar> d_weights, const Scalar& d_loss,
                                                Router& gradients, MatrixRef<Scalar> dz, bool add,
                                                RouterGradientWorkspace<Scalar>& memory) const {
  const auto backward_gate = [&](const Routing<Scalar>& routed, std::span<const Scalar> d_routed) {
    gate_.backward({z, routed, decision.workspace.gate, decision.rows.constant}, d_routed, d_loss,
                   gradients.gate_, dz, add, memory.gate);
  };
  if (shared_experts_.count == 0) return backward_gate(decision.routing, d_weights);
  const Routing<Scalar>& routed = decision.workspace.shared.routed;
  Scalar* const logits = shared_expert_gate_ ? detail::reserve(memory.shared.logits, z.rows()) : nullptr;
  detail::split_weight_gradients(routed, shared_experts_.count, d_weights, memory.shared.routed_weights,
                                 logits);
  backward_gate(routed, memory.shared.routed_weights);
  if (!shared_expert_gate_) return;
  shared_weights_to_logits(decision, logits);
  shared_expert_gate_->backward(z, {logits, z.rows(), 1, 1}, *gradients.shared_expert_gate_, true, dz.data(),
                                dz.outerStride(), memory.scratch);
}

template <class Scalar, int NumExperts>
void Router<Scalar, NumExperts>::shared_weights_to_logits(const RouterDecision<Scalar>& decision,
                                                          Scalar* gradients) const {
  const Scalar* const weights = decision.workspace.shared.weights.data();
  const std::span<const unsigned char> constant = decision.rows.constant;
  for (Index row = 0; row < decision.rows.size(); ++row) {
    const bool is_constant = !constant.empty() && constant[static_cast<std::size_t>(row)] != 0;
    if (is_constant) gradients[row] = Scalar(0);
    else gradients[row] = gradients[row] * weights[row] * (Scalar(1) - weights[row]);
  }
}

template <class Scalar, int NumExperts>
MatrixView<Scalar> Router<Scalar, NumExperts>::task_inputs(Index sequences, const Inputs<Scalar>& inputs,
                                                           RouterWorkspace<Scalar>& workspace) const {
  const detail::Offsets descriptions = detail::check_tasks(sequences, options_.task_features, inputs);
  const MatrixView<Scalar> means =
      detail::means(inputs.task_embeddings, descriptions.num_sequences(),
                    std::span<const Index>(descriptions), workspace.task_means, workspace.sums);
  const Index features = gate_.gate_features();
  Scalar* const z = detail::reserve(workspace.gate_input, sequences * features);
  const auto task = detail::task_of(inputs);
  for (Index b = 0; b < sequences; ++b) {
    const MatrixView<Scalar> mean(means.row(task(b)), 1, means.cols(), means.cols());
    task_projection_->apply(mean, z + b * features, features);
  }
  return {z, sequences, features, features};
}

template <class Scalar, int NumExperts>
void Router<Scalar, NumExperts>::backward_tasks(const MatrixView<Scalar>& dz, const Inputs<Scalar>& inputs,
                                                const RouterWorkspace<Scalar>& workspace, Router& gradients,
                                                RouterGradientWorkspace<Scalar>& memory) const {
  const detail::Offsets offsets = detail::description_offsets(inputs);
  const Index descriptions = offsets.num_sequences();
  const Index features = dz.cols(), task_features = options_.task_features;
  Scalar* const projected = detail::reserve(memory.task_inputs, descriptions * features);
  detail::sort_by_task(dz.rows(), descriptions, inputs, memory.task_begins, memory.task_order);
  detail::Sum<Scalar>* const sum = detail::reserve_sums<Scalar>(memory.sums, dz.rows(), features);
  for (Index task = 0; task < descriptions; ++task) {
    const auto t = static_cast<std::size_t>(task);
    detail::sum_rows(
        memory.task_begins[t], memory.task_begins[t + 1], features,
        [&](Index i) { return dz.row(memory.task_order[static_cast<std::size_t>(i)]); }, sum, sum + features);
    for (Index j = 0; j < features; ++j) projected[task * features + j] = static_cast<Scalar>(sum[j]);
  }
  Scalar* const means = detail::reserve(memory.task_means, descriptions * task_features);
  task_projection_->backward({workspace.task_means.data(), descriptions, task_features, task_features},
                             {projected, descriptions, features, features}, *gradients.task_projection_,
                             false, means, task_features, memory.scratch);
  Eigen::Map<Matrix<Scalar>> embeddings =
      memory.task_embeddings.resize(inputs.task_embeddings.rows(), task_features);
  embeddings.setZero();
  detail::add_means_gradient(means, descriptions, std::span<const Index>(offsets), task_features,
                             embeddings.data(), task_features);
}

template <class Scalar, int NumExperts>
void Router<Scalar, NumExperts>::set_gradient_groups(const Inputs<Scalar>& inputs,
                                                     const GateWorkspace<Scalar>& gate,
                                                     Routing<Scalar>& routing) const {
  const bool by_rows = options_.selection.method == SelectionMethod::top_k;
  const bool are_constant =
      gate.top_k == 1 && by_rows && detail::are_normalized(options_.scores) && !shared_expert_gate_;
  routing.gradient_groups.clear();
  routing.gradient_groups.reserve(static_cast<std::size_t>(routing.rows));
  const bool are_of_tasks =
      options_.level == Level::task && !gate.is_noisy && !detail::may_leave_out_pairs(options_.selection);
  if (!are_constant && !are_of_tasks) return;
  const auto task = detail::task_of(inputs);
  for (Index row = 0; row < routing.rows; ++row)
    routing.gradient_groups.push_back(are_constant ? 0 : task(row));
}

#define MEO_INSTANCES(instance, Scalar) instance class Router<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

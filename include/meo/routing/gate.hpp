#pragma once

/// The gate: logits ℓ = z W_g, in training ℓ̃ = ℓ + n ⊙ σ with σ = softplus(z W_n) + ε, the K largest of a
/// row, and a softmax over those K (Shazeer et al. 2017, arXiv 1701.06538, equations 3 to 5). Or, as the
/// options say, ℓ = z W_g + b and other policies; see policies.hpp.
///
/// Letters: R gated rows, D_g gate features, N num_experts, K top_k.

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/experts/linear.hpp>
#include <meo/finite.hpp>
#include <meo/kernels/vector_math.hpp>
#include <meo/routing/balance_loss.hpp>
#include <meo/routing/noise.hpp>
#include <meo/routing/policies.hpp>
#include <meo/routing/routing.hpp>
#include <meo/routing/routing_options.hpp>
#include <meo/routing/scores.hpp>
#include <meo/routing/selection.hpp>
#include <meo/routing/statistics_reduction.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

/// Φ(x), the standard normal distribution function.
template <class Scalar>
Scalar normal_cdf(const Scalar& x) {
  using std::erfc;
  return Scalar(0.5) * erfc(-x * constant<Scalar>(0.70710678118654752440L));
}

/// φ(x) = Φ'(x).
template <class Scalar>
Scalar normal_density(const Scalar& x) {
  using std::exp;
  return constant<Scalar>(0.39894228040143267794L) * exp(Scalar(-0.5) * x * x);
}

}  // namespace detail

/// Buffers of Gate::route; they grow where they must and are kept.
template <class Scalar>
struct GateWorkspace {
  bool is_noisy = false;                          ///< whether the last call had noise
  bool is_composed = false;                       ///< whether it left what it decided in `policies`
  bool estimates_load = false;                    ///< whether its load is no count
  Index top_k = 0;                                ///< its K
  Index num_pairs = 0;                            ///< of what it decided
  Index loss_rows = 0;                            ///< that its losses are of: R, or all processes' rows
  std::vector<Scalar> logits;                     ///< R × N, before the noise
  std::vector<Scalar> noise;                      ///< R × N, training only, as all that follow: the draws n
  std::vector<Scalar> noise_logits;               ///< R × N, z W_n
  std::vector<Scalar> noisy_logits;               ///< R × N
  std::vector<Scalar> noise_deviations;           ///< R × N, σ
  std::vector<Index> ranking;                     ///< the K + 1 first experts of a row
  std::vector<detail::Sum<Scalar>> exponentials;  ///< K for each row of a part of the rows
  std::vector<detail::Sum<Scalar>> sums;          ///< importance and load of parts of the rows
  std::vector<Index> counts;                      ///< N: of the loss_rows those that select an expert
  std::vector<detail::Sum<Scalar>> statistics;    ///< while they are added up over processes
  detail::PolicyMemory<Scalar> policies;
};

/// Buffers of Gate::backward; they grow where they must and are kept.
template <class Scalar>
struct GateGradientWorkspace {
  std::vector<detail::Sum<Scalar>> importance;    ///< N: gradients of what they are named after, from here on
  std::vector<detail::Sum<Scalar>> load;          ///< N
  AlignedVector<Scalar> logits;                   ///< R × N
  AlignedVector<Scalar> noise_logits;             ///< R × N
  std::vector<detail::Sum<Scalar>> noisy_logits;  ///< N, of one row
  std::vector<detail::Sum<Scalar>> deviations;    ///< N, of one row
  std::vector<detail::Sum<Scalar>> row_logits;    ///< N, of one row
  std::vector<Index> ranking;
  detail::PolicyGradientMemory<Scalar> policies;
  AlignedVector<Scalar> scratch;
};

/// What one call of Gate::route may have other than the next. Views.
template <class Scalar>
struct GateCall {
  Index top_k = 0;                                      ///< K; 0: the gate's
  std::span<const unsigned char> allowed_experts = {};  ///< N; see Inputs::allowed_experts
  /// Offsets of rows that a capacity holds for by themselves, parts + 1; none: all rows are one part.
  std::span<const Index> parts = {};
  StatisticsReduction<Scalar> reduction = {};  ///< see Inputs::reduction
};

/// What Gate::route was given and has left, and which rows of it are constant. A view.
template <class Scalar>
struct GateDecision {
  MatrixView<Scalar> z;  ///< R × D_g
  const Routing<Scalar>& routing;
  const GateWorkspace<Scalar>& workspace;
  std::span<const unsigned char> constant_rows =
      {};  ///< R: not 0 for those that no gradient goes through; or none

  /// Whether no gradient goes through the row.
  bool is_constant(Index row) const {
    return !constant_rows.empty() && constant_rows[static_cast<std::size_t>(row)] != 0;
  }
};

/// W_g and W_n, and the decisions that they make of what rows see.
template <class Scalar, int NumExperts = Eigen::Dynamic>
class Gate {
  using Sum = detail::Sum<Scalar>;

 public:
  /// Zero W_g and W_n, with which every row selects the experts 0 … K − 1. Throws std::invalid_argument for
  /// sizes that are not positive, a top_k above num_experts, or options that make no gate. Of the options
  /// level and what belongs to it do not count.
  Gate(Index gate_features, Index num_experts, Index top_k, const RoutingOptions& options = {});

  /// What it was made with.
  Index gate_features() const { return logits_.in_features(); }
  Index top_k() const { return top_k_; }
  const RoutingOptions& options() const { return options_; }
  Index num_experts() const {
    if constexpr (NumExperts == Eigen::Dynamic) return logits_.out_features();
    else return NumExperts;
  }

  /// Whether it was moved from; see Linear::empty.
  bool empty() const { return logits_.empty() || noise_.empty() || (correction_ && correction_->empty()); }

  /// W_g and W_n, gate_features × num_experts; setters throw std::invalid_argument for another shape.
  Matrix<Scalar> weight() const;
  Matrix<Scalar> noise_weight() const;
  void set_weight(const ConstMatrixRef<Scalar>& weight) { set(logits_, weight, "gate weight"); }
  void set_noise_weight(const ConstMatrixRef<Scalar>& weight) { set(noise_, weight, "noise weight"); }

  /// b, what is added to the logits. These throw std::invalid_argument unless the options' scores have one,
  /// or for another size than num_experts.
  Vector<Scalar> bias() const { return logits_.bias(); }
  void set_bias(const ConstVectorRef<Scalar>& bias) { logits_.set_bias(bias); }

  /// What experts are selected with, but not weighed by; zero in a new gate. These throw
  /// std::invalid_argument unless the options' selection has one, or for another size than num_experts.
  Vector<Scalar> correction_bias() const;
  void set_correction_bias(const ConstVectorRef<Scalar>& bias);

  /// W_g and b uniform in ±spread/√gate_features, W_n and the correction bias zero.
  template <class Generator>
  void initialize(Generator& rng, double spread = 1) {
    reset();
    logits_.initialize(rng, spread);
  }

  /// W_g, b, W_n and the correction bias zero.
  void reset() {
    logits_.set_zero();
    noise_.set_zero();
    if (correction_) correction_->set_zero();
  }

  /// Routes the rows of z (R × gate_features), with noise where there is any. Throws std::invalid_argument
  /// for another width of z or shape of the noise, std::domain_error naming the first row whose logits are
  /// not finite. Allocates only where routing or workspace have to grow.
  void route(const MatrixView<Scalar>& z, const Noise<Scalar>& noise, Routing<Scalar>& routing,
             GateWorkspace<Scalar>& workspace, const GateCall<Scalar>& call = {}) const;

  /// Gradients of a decision of route: through the weights, whose gradients are d_weights (of each pair, in
  /// the routing's order), and through the losses, whose gradient is d_loss; with noise also through τ and σ.
  /// Not through the selection itself, nor through constant rows. Adds those of W_g, b and W_n to
  /// `gradients`, a gate of the same shape, and writes dz, R × gate_features, or adds to it with `add`.
  /// Allocates only where buffers have to grow.
  void backward(const GateDecision<Scalar>& decision, std::span<const Scalar> d_weights, const Scalar& d_loss,
                Gate& gradients, MatrixRef<Scalar> dz, bool add,
                GateGradientWorkspace<Scalar>& workspace) const;

  /// Calls visit(name, part) for W_g with b and for W_n, by the names of the MEO authors' state_dict, and for
  /// the correction bias where there is one.
  template <class Visitor>
  void visit(const Visitor& visit) {
    visit_parts(*this, visit);
  }
  template <class Visitor>
  void visit(const Visitor& visit) const {
    visit_parts(*this, visit);
  }

 private:
  template <class Self, class Visitor>
  static void visit_parts(Self& self, const Visitor& visit) {
    visit("w_gate", TurnedWeight(self.logits_));
    visit("w_noise", TurnedWeight(self.noise_));
    if (self.correction_) visit("correction_bias", TurnedBuffer(*self.correction_));
  }

  void set(Linear<Scalar>& linear, const ConstMatrixRef<Scalar>& weight, std::string_view name);

  void compute_logits(const MatrixView<Scalar>& z, const Noise<Scalar>& noise,
                      GateWorkspace<Scalar>& workspace) const;

  /// Of one row, from the gradients of weights, d_weights and those of the importance, to those of the logits
  /// that were selected by, into workspace.noisy_logits. The weight of a single expert is 1 whatever its
  /// logit: then they are 0, also where gradients of the weights are not finite.
  void weights_to_logits(const Routing<Scalar>& routing, std::span<const Scalar> d_weights, Index row,
                         GateGradientWorkspace<Scalar>& workspace) const;

  /// Of one row, from the gradients of the noisy logits and of the load to those of z W_g and z W_n.
  void noisy_to_logits(const GateWorkspace<Scalar>& decision, Index row, Scalar* logits, Scalar* noise_logits,
                       GateGradientWorkspace<Scalar>& workspace) const;

  void store(const std::vector<Sum>& row, Scalar* to) const {
    for (Index j = 0; j < num_experts(); ++j) to[j] = static_cast<Scalar>(row[static_cast<std::size_t>(j)]);
  }

  void require_finite(const Scalar* logits, Index rows) const;

  void require_correction_bias() const {
    detail::require(correction_.has_value(),
                    "correction_bias: expected a gate with one, got selection.correction_bias = false");
  }

  /// Throws std::invalid_argument for a call that does not fit. K of the call.
  Index check(const GateCall<Scalar>& call) const;

  /// Decides with the default policies: fills pairs, importance and counts.
  void route_by_default(const Scalar* logits, Index rows, Routing<Scalar>& routing,
                        GateWorkspace<Scalar>& workspace) const;

  /// The same with those of the options, and a mask; and what the losses beside cv² are made of.
  void route_by_policies(const detail::PolicyCall<Scalar>& call, Routing<Scalar>& routing,
                         GateWorkspace<Scalar>& workspace) const;

  /// Of the rows of all processes from here on: importance, a load that is no count, counts, sums for losses.
  static void add_up(const StatisticsReduction<Scalar>& reduction, Routing<Scalar>& routing,
                     GateWorkspace<Scalar>& workspace);

  /// From all these to the load and the loss.
  void compute_loss(Routing<Scalar>& routing, GateWorkspace<Scalar>& workspace) const;

  /// logits: those that are selected by.
  detail::PolicyCall<Scalar> policy_call(const Scalar* logits, Index rows, Index top_k,
                                         detail::AllowedExperts experts,
                                         std::span<const Index> parts = {}) const {
    return {options_, rows, num_experts(), top_k, logits, experts, parts};
  }

  /// Sums over rows of N values, the result in workspace.sums.
  detail::PairwiseSum<Sum> sums_of_experts(Index rows, GateWorkspace<Scalar>& workspace) const {
    const Index depth = detail::pairwise_depth(detail::num_parts(rows));
    workspace.sums.assign(static_cast<std::size_t>((1 + depth) * num_experts()), Sum(0));
    Sum* const sums = workspace.sums.data();
    return {num_experts(), sums, sums + num_experts()};
  }

  /// The load estimate looks one place beyond the selection of K.
  Index ranked(Index top_k) const { return (std::min)(top_k + 1, num_experts()); }

  /// The first experts of a row; see rank_experts.
  void rank(const Scalar* logits, Index count, Index* ranking) const {
    if constexpr (NumExperts == Eigen::Dynamic) detail::rank_experts(logits, num_experts(), count, ranking);
    else detail::rank_experts<NumExperts>(logits, count, ranking);
  }

  /// A row's experts, and how far their logits lie below the largest: the exponents of the softmax.
  static void select(const Scalar* logits, const Index* ranking, Index top_k, Index* experts,
                     Sum* exponents) {
    for (Index i = 0; i < top_k; ++i) {
      experts[i] = ranking[i];
      exponents[i] = static_cast<Sum>(logits[ranking[i]]) - static_cast<Sum>(logits[ranking[0]]);
    }
  }

  /// From a row's exponentials to its weights, which are added to `importance`, N sums.
  static void normalize(const Sum* exponentials, Index row, Routing<Scalar>& routing, Sum* importance) {
    const Index top_k = routing.top_k;
    const Index* const experts = routing.experts.data() + row * top_k;
    Scalar* const weights = routing.weights.data() + row * top_k;
    Sum sum(0);
    for (Index i = 0; i < top_k; ++i) sum += exponentials[i];
    for (Index i = 0; i < top_k; ++i) {
      weights[i] = static_cast<Scalar>(Sum(exponentials[i] / sum));
      importance[experts[i]] += static_cast<Sum>(weights[i]);
    }
  }

  /// A count in integers: one in Scalar would stop at the first that has no successor.
  static void copy_counts(const GateWorkspace<Scalar>& workspace, Routing<Scalar>& routing) {
    routing.load.resize(workspace.counts.size());
    for (std::size_t e = 0; e < routing.load.size(); ++e)
      routing.load[e] = static_cast<Sum>(static_cast<double>(workspace.counts[e]));
  }

  /// The expert whose noisy logit j has to beat to be selected, τ_j: the first that is rejected if j is above
  /// it, else the last that is selected.
  static Index threshold(const Scalar* noisy, const Index* ranking, Index top_k, Index j) {
    return noisy[j] > noisy[ranking[top_k]] ? ranking[top_k] : ranking[top_k - 1];
  }

  /// (ℓ − τ) / σ of the logit at place i of the decision.
  Sum distance_to(const Scalar& threshold, const GateWorkspace<Scalar>& decision, Index i) const {
    const auto at = static_cast<std::size_t>(i);
    return (static_cast<Sum>(decision.logits[at]) - static_cast<Sum>(threshold)) /
           static_cast<Sum>(decision.noise_deviations[at]);
  }

  /// Of all rows: load_j = Σ Φ((ℓ_j − τ_j) / σ_j), the chances that a new draw of j's noise alone would
  /// select j.
  void estimate_load(Index rows, GateWorkspace<Scalar>& workspace, Routing<Scalar>& routing) const;

  /// The same of one row, added.
  void add_chances(const GateWorkspace<Scalar>& workspace, Index row, Sum* load) const {
    const Index begin = row * num_experts();
    const Scalar* const noisy = workspace.noisy_logits.data() + begin;
    for (Index j = 0; j < num_experts(); ++j) {
      const Scalar& beaten = noisy[threshold(noisy, workspace.ranking.data(), workspace.top_k, j)];
      load[j] += detail::normal_cdf<Sum>(distance_to(beaten, workspace, begin + j));
    }
  }

  Linear<Scalar> logits_;
  Linear<Scalar> noise_;
  std::optional<Linear<Scalar>> correction_;  ///< its weight, num_experts × 1
  RoutingOptions options_;
  Index top_k_;
  Scalar loss_coefficient_;
  Scalar noise_epsilon_;
};

template <class Scalar, int NumExperts>
Gate<Scalar, NumExperts>::Gate(Index gate_features, Index num_experts, Index top_k,
                               const RoutingOptions& options)
    : logits_(gate_features, num_experts, options.scores.bias),
      noise_(gate_features, num_experts, false),
      options_(options),
      top_k_(top_k),
      loss_coefficient_(static_cast<Scalar>(options.loss_coefficient)),
      noise_epsilon_(static_cast<Scalar>(options.noise_epsilon)) {
  detail::require(NumExperts == Eigen::Dynamic || num_experts == NumExperts, "num_experts: expected ",
                  NumExperts, " as the type says, got ", num_experts);
  detail::require(top_k >= 1 && top_k <= num_experts, "top_k: expected 1 to num_experts = ", num_experts,
                  ", got ", top_k);
  detail::check_scores<Scalar>(options.scores);
  detail::check_selection<Scalar>(options.selection, num_experts, top_k);
  detail::check_losses<Scalar>(options.losses);
  if (options.selection.correction_bias) correction_.emplace(1, num_experts, false);
}

template <class Scalar, int NumExperts>
Matrix<Scalar> Gate<Scalar, NumExperts>::weight() const {
  return logits_.weight().transpose();
}

template <class Scalar, int NumExperts>
Matrix<Scalar> Gate<Scalar, NumExperts>::noise_weight() const {
  return noise_.weight().transpose();
}

template <class Scalar, int NumExperts>
Vector<Scalar> Gate<Scalar, NumExperts>::correction_bias() const {
  require_correction_bias();
  return correction_->weight().col(0);
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::set_correction_bias(const ConstVectorRef<Scalar>& bias) {
  require_correction_bias();
  detail::require(bias.size() == num_experts(), "correction_bias: expected ", num_experts(), " values, got ",
                  bias.size());
  correction_->set_weight(bias);
}

template <class Scalar, int NumExperts>
Index Gate<Scalar, NumExperts>::check(const GateCall<Scalar>& call) const {
  const std::span<const unsigned char> allowed = call.allowed_experts;
  detail::require(allowed.empty() || static_cast<Index>(allowed.size()) == num_experts(),
                  "allowed_experts: expected none or num_experts = ", num_experts(), ", got ",
                  allowed.size());
  detail::require(allowed.empty() || std::count(allowed.begin(), allowed.end(), 0) < num_experts(),
                  "allowed_experts: expected one at least, got none");
  if (call.top_k == 0) return top_k_;
  detail::require(call.top_k >= 1 && call.top_k <= num_experts(),
                  "top_k: expected 1 to num_experts = ", num_experts(), ", got ", call.top_k);
  detail::check_selection<Scalar>(options_.selection, num_experts(), call.top_k);
  return call.top_k;
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::route(const MatrixView<Scalar>& z, const Noise<Scalar>& noise,
                                     Routing<Scalar>& routing, GateWorkspace<Scalar>& workspace,
                                     const GateCall<Scalar>& call) const {
  detail::require(z.cols() == gate_features(), "gate input: expected ", gate_features(), " features, got ",
                  z.cols());
  workspace.top_k = check(call);
  const bool training = static_cast<bool>(noise);
  compute_logits(z, noise, workspace);
  const Scalar* logits = training ? workspace.noisy_logits.data() : workspace.logits.data();
  require_finite(logits, z.rows());
  workspace.is_composed = !call.allowed_experts.empty() || !detail::are_default(options_);
  workspace.estimates_load = training && workspace.top_k < num_experts() && call.allowed_experts.empty() &&
                             detail::selects_largest_logits(options_.selection);
  if (workspace.is_composed) {
    const std::array<Index, 2> all{0, z.rows()};
    auto& allowed = workspace.policies.allowed;
    allowed.assign(call.allowed_experts.begin(), call.allowed_experts.end());
    route_by_policies(policy_call(logits, z.rows(), workspace.top_k, workspace.policies.experts(),
                                  call.parts.empty() ? std::span<const Index>(all) : call.parts),
                      routing, workspace);
  } else {
    route_by_default(logits, z.rows(), routing, workspace);
  }
  if (workspace.estimates_load) estimate_load(z.rows(), workspace, routing);
  workspace.num_pairs = routing.size();
  workspace.loss_rows = z.rows();
  if (call.reduction) add_up(call.reduction, routing, workspace);
  compute_loss(routing, workspace);
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::add_up(const StatisticsReduction<Scalar>& reduction, Routing<Scalar>& routing,
                                      GateWorkspace<Scalar>& workspace) {
  std::vector<Sum>* const parts[] = {&routing.importance, workspace.estimates_load ? &routing.load : nullptr,
                                     workspace.is_composed ? &workspace.policies.loss_sums : nullptr};
  workspace.statistics.clear();
  for (const std::vector<Sum>* const part : parts) {
    if (part != nullptr) workspace.statistics.insert(workspace.statistics.end(), part->begin(), part->end());
  }
  workspace.counts.push_back(workspace.loss_rows);
  reduction(workspace.statistics, workspace.counts);
  workspace.loss_rows = workspace.counts.back();
  workspace.counts.pop_back();
  auto sum = workspace.statistics.cbegin();
  for (std::vector<Sum>* const part : parts) {
    if (part == nullptr) continue;
    const auto end = sum + static_cast<std::ptrdiff_t>(part->size());
    std::copy(sum, end, part->begin());
    sum = end;
  }
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::compute_loss(Routing<Scalar>& routing,
                                            GateWorkspace<Scalar>& workspace) const {
  if (!workspace.estimates_load) copy_counts(workspace, routing);
  Sum further(0);
  if (workspace.is_composed) {
    further = detail::further_losses(options_.losses, std::span<const Index>(workspace.counts),
                                     workspace.loss_rows, workspace.policies);
  }
  const Sum imbalance = cv_squared<Sum>(routing.importance) + cv_squared<Sum>(routing.load);
  routing.loss = static_cast<Scalar>(Sum(static_cast<Sum>(loss_coefficient_) * imbalance + further));
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::route_by_default(const Scalar* logits, Index rows, Routing<Scalar>& routing,
                                                GateWorkspace<Scalar>& workspace) const {
  const Index top_k = workspace.top_k;
  const auto experts = static_cast<std::size_t>(num_experts());
  const auto pairs = static_cast<std::size_t>(rows * top_k);
  routing.rows = rows;
  routing.num_experts = num_experts();
  routing.top_k = top_k;
  routing.begins.clear();
  routing.gradient_groups.clear();
  routing.experts.resize(pairs);
  routing.weights.resize(pairs);
  routing.importance.assign(experts, Sum(0));
  workspace.ranking.resize(static_cast<std::size_t>(num_experts()));
  workspace.exponentials.resize(static_cast<std::size_t>((std::min)(rows, detail::serial_terms) * top_k));
  Sum* const exponentials = workspace.exponentials.data();
  workspace.counts.assign(experts, 0);
  detail::PairwiseSum<Sum> parts = sums_of_experts(rows, workspace);
  for (Index first = 0; first < rows; first += detail::serial_terms) {
    Sum* const importance = parts.part();
    std::fill_n(importance, num_experts(), Sum(0));
    const Index end = (std::min)(first + detail::serial_terms, rows);
    for (Index row = first; row < end; ++row) {
      rank(logits + row * num_experts(), top_k, workspace.ranking.data());
      select(logits + row * num_experts(), workspace.ranking.data(), top_k,
             routing.experts.data() + row * top_k, exponentials + (row - first) * top_k);
    }
    detail::exponentials(exponentials, (end - first) * top_k);
    for (Index row = first; row < end; ++row)
      normalize(exponentials + (row - first) * top_k, row, routing, importance);
    parts.next();
  }
  parts.finish();
  std::copy_n(workspace.sums.begin(), num_experts(), routing.importance.begin());
  for (const Index expert : routing.experts) ++workspace.counts[static_cast<std::size_t>(expert)];
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::estimate_load(Index rows, GateWorkspace<Scalar>& workspace,
                                             Routing<Scalar>& routing) const {
  workspace.ranking.resize(static_cast<std::size_t>(num_experts()));
  detail::PairwiseSum<Sum> parts = sums_of_experts(rows, workspace);
  for (Index first = 0; first < rows; first += detail::serial_terms) {
    Sum* const load = parts.part();
    std::fill_n(load, num_experts(), Sum(0));
    for (Index row = first; row < (std::min)(first + detail::serial_terms, rows); ++row) {
      rank(workspace.noisy_logits.data() + row * num_experts(), ranked(workspace.top_k),
           workspace.ranking.data());
      add_chances(workspace, row, load);
    }
    parts.next();
  }
  parts.finish();
  routing.load.assign(workspace.sums.begin(), workspace.sums.begin() + num_experts());
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::route_by_policies(const detail::PolicyCall<Scalar>& call,
                                                 Routing<Scalar>& routing,
                                                 GateWorkspace<Scalar>& workspace) const {
  detail::PolicyMemory<Scalar>& memory = workspace.policies;
  memory.correction.clear();
  for (Index expert = 0; correction_ && expert < num_experts(); ++expert) {
    Scalar value;
    correction_->bank().read_row(0, expert, 0, {&value, 1});
    memory.correction.push_back(static_cast<Sum>(value));
  }
  detail::decide(call, memory, routing, workspace.counts);
  detail::sum_for_losses(call, memory);
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::backward(const GateDecision<Scalar>& decision,
                                        std::span<const Scalar> d_weights, const Scalar& d_loss,
                                        Gate& gradients, MatrixRef<Scalar> dz, bool add,
                                        GateGradientWorkspace<Scalar>& workspace) const {
  const MatrixView<Scalar>& z = decision.z;
  const Routing<Scalar>& routing = decision.routing;
  const bool is_noisy = decision.workspace.is_noisy;
  const auto experts = static_cast<std::size_t>(num_experts());
  const Sum scale = static_cast<Sum>(d_loss) * static_cast<Sum>(loss_coefficient_);
  workspace.importance.assign(experts, Sum(0));
  workspace.load.assign(experts, Sum(0));
  add_cv_squared_gradient<Sum>(routing.importance, scale, workspace.importance);
  add_cv_squared_gradient<Sum>(routing.load, scale, workspace.load);
  const Index size = z.rows() * num_experts();
  Scalar* const logits = detail::reserve(workspace.logits, size);
  Scalar* const noise_logits = is_noisy ? detail::reserve(workspace.noise_logits, size) : nullptr;
  const GateWorkspace<Scalar>& decided = decision.workspace;
  const std::vector<Scalar>& selected_by = is_noisy ? decided.noisy_logits : decided.logits;
  const detail::PolicyCall<Scalar> call =
      policy_call(selected_by.data(), z.rows(), decided.top_k, decided.policies.experts());
  if (decided.is_composed) {
    detail::begin_gradients<Scalar>(options_, decided.counts, decided.loss_rows, static_cast<Sum>(d_loss),
                                    workspace.policies);
  }
  for (Index row = 0; row < z.rows(); ++row) {
    if (decision.is_constant(row)) {
      std::fill_n(logits + row * num_experts(), num_experts(), Scalar(0));
      if (is_noisy) std::fill_n(noise_logits + row * num_experts(), num_experts(), Scalar(0));
      continue;
    }
    if (decided.is_composed) {
      workspace.noisy_logits.assign(experts, Sum(0));
      detail::add_row_gradient<Scalar>(call, decided.policies, row, d_weights, workspace.importance,
                                       static_cast<Sum>(d_loss), workspace.policies,
                                       workspace.noisy_logits.data());
    } else {
      weights_to_logits(routing, d_weights, row, workspace);
    }
    if (is_noisy) noisy_to_logits(decision.workspace, row, logits, noise_logits, workspace);
    else store(workspace.noisy_logits, logits + row * num_experts());
  }
  const auto through = [&](const Linear<Scalar>& linear, const Scalar* d_output, Linear<Scalar>& gradient,
                           bool adds) {
    linear.backward(z, {d_output, z.rows(), num_experts(), num_experts()}, gradient, adds, dz.data(),
                    dz.outerStride(), workspace.scratch);
  };
  through(logits_, logits, gradients.logits_, add);
  if (is_noisy) through(noise_, noise_logits, gradients.noise_, true);
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::set(Linear<Scalar>& linear, const ConstMatrixRef<Scalar>& weight,
                                   std::string_view name) {
  detail::require_shape(weight, gate_features(), num_experts(), name);
  linear.set_weight(weight.transpose());
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::compute_logits(const MatrixView<Scalar>& z, const Noise<Scalar>& noise,
                                              GateWorkspace<Scalar>& workspace) const {
  using std::exp;
  using std::log1p;
  const auto size = static_cast<std::size_t>(z.rows() * num_experts());
  workspace.is_noisy = static_cast<bool>(noise);
  workspace.logits.resize(size);
  logits_.apply(z, workspace.logits.data(), num_experts());
  if (!workspace.is_noisy) return;
  workspace.noise.resize(size);
  workspace.noise_logits.resize(size);
  workspace.noisy_logits.resize(size);
  workspace.noise_deviations.resize(size);
  noise.fill(z.rows(), num_experts(), workspace.noise.data());
  noise_.apply(z, workspace.noise_logits.data(), num_experts());
  for (std::size_t i = 0; i < size; ++i) {
    // softplus without overflow: max(s, 0) + log(1 + exp(−|s|))
    const auto s = static_cast<Sum>(workspace.noise_logits[i]);
    const Sum positive = s > Sum(0) ? s : Sum(0);
    const Sum negative = s > Sum(0) ? Sum(-s) : s;
    const Sum deviation = positive + log1p(exp(negative)) + static_cast<Sum>(noise_epsilon_);
    const Sum noisy =
        static_cast<Sum>(workspace.logits[i]) + static_cast<Sum>(workspace.noise[i]) * deviation;
    workspace.noise_deviations[i] = static_cast<Scalar>(deviation);
    workspace.noisy_logits[i] = static_cast<Scalar>(noisy);
  }
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::weights_to_logits(const Routing<Scalar>& routing,
                                                 std::span<const Scalar> d_weights, Index row,
                                                 GateGradientWorkspace<Scalar>& workspace) const {
  workspace.noisy_logits.assign(static_cast<std::size_t>(num_experts()), Sum(0));
  if (routing.top_k == 1) return;
  const std::span<const Index> experts = routing.row_experts(row);
  const std::span<const Scalar> weights = routing.row_weights(row);
  const std::span<const Scalar> gradients =
      d_weights.subspan(static_cast<std::size_t>(row) * experts.size(), experts.size());
  const auto gradient = [&](std::size_t i) -> Sum {
    return static_cast<Sum>(gradients[i]) + workspace.importance[static_cast<std::size_t>(experts[i])];
  };
  Sum mean(0);
  for (std::size_t i = 0; i < experts.size(); ++i) mean += static_cast<Sum>(weights[i]) * gradient(i);
  for (std::size_t i = 0; i < experts.size(); ++i) {
    workspace.noisy_logits[static_cast<std::size_t>(experts[i])] =
        static_cast<Sum>(weights[i]) * (gradient(i) - mean);
  }
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::noisy_to_logits(const GateWorkspace<Scalar>& decision, Index row,
                                               Scalar* logits, Scalar* noise_logits,
                                               GateGradientWorkspace<Scalar>& workspace) const {
  const Index begin = row * num_experts();
  std::vector<Sum>& d_noisy = workspace.noisy_logits;
  std::vector<Sum>& d_deviations = workspace.deviations;
  std::vector<Sum>& d_logits = workspace.row_logits;
  d_deviations.assign(static_cast<std::size_t>(num_experts()), Sum(0));
  d_logits.assign(static_cast<std::size_t>(num_experts()), Sum(0));
  if (decision.estimates_load) {
    const Scalar* const noisy = decision.noisy_logits.data() + begin;
    workspace.ranking.resize(static_cast<std::size_t>(ranked(decision.top_k)));
    rank(noisy, ranked(decision.top_k), workspace.ranking.data());
    for (Index j = 0; j < num_experts(); ++j) {
      const auto e = static_cast<std::size_t>(j);
      const Index beaten = threshold(noisy, workspace.ranking.data(), decision.top_k, j);
      const Sum distance = distance_to(noisy[beaten], decision, begin + j);
      const Sum density = detail::normal_density(distance);
      if (density == Sum(0)) continue;  // and so is its product with a distance that may be infinite
      const auto deviation = static_cast<Sum>(decision.noise_deviations[static_cast<std::size_t>(begin + j)]);
      const Sum d_distance = workspace.load[e] * density / deviation;
      d_logits[e] += d_distance;
      d_noisy[static_cast<std::size_t>(beaten)] -= d_distance;
      d_deviations[e] -= d_distance * distance;
    }
  }
  for (Index j = 0; j < num_experts(); ++j) {
    const auto e = static_cast<std::size_t>(j);
    const auto i = static_cast<std::size_t>(begin + j);
    d_logits[e] += d_noisy[e];
    const Sum d_deviation = d_deviations[e] + d_noisy[e] * static_cast<Sum>(decision.noise[i]);
    noise_logits[i] =
        static_cast<Scalar>(Sum(d_deviation * detail::sigmoid(static_cast<Sum>(decision.noise_logits[i]))));
  }
  store(d_logits, logits + begin);
}

template <class Scalar, int NumExperts>
void Gate<Scalar, NumExperts>::require_finite(const Scalar* logits, Index rows) const {
  for (Index row = 0; row < rows; ++row) {
    for (Index j = 0; j < num_experts(); ++j) {
      const Scalar& logit = logits[row * num_experts() + j];
      if (detail::is_finite(logit)) continue;
      throw std::domain_error(detail::message("gate: expected finite logits, got one that is not in row ",
                                              row, " for expert ", j));
    }
  }
}

#define MEO_INSTANCES(instance, Scalar) instance class Gate<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

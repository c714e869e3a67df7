#pragma once

/// The gate: logits ℓ = z W_g, in training ℓ̃ = ℓ + n ⊙ σ with σ = softplus(z W_n) + ε, the K largest of a
/// row, and a softmax over those K (Shazeer et al. 2017, arXiv 1701.06538, equations 3 to 5).
///
/// Letters: R gated rows, D_g gate features, N num_experts, K top_k.

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>
#include <vector>

#include <meo/errors.hpp>
#include <meo/experts/linear.hpp>
#include <meo/routing/balance_loss.hpp>
#include <meo/routing/noise.hpp>
#include <meo/routing/routing.hpp>
#include <meo/types.hpp>

namespace meo {

namespace detail {

/// Φ(x), the standard normal distribution function.
template <class Scalar>
Scalar normal_cdf(const Scalar& x) {
  using std::erfc;
  return Scalar(0.5) * erfc(-x * Scalar(0.70710678118654752440L));
}

/// φ(x) = Φ'(x).
template <class Scalar>
Scalar normal_density(const Scalar& x) {
  using std::exp;
  return Scalar(0.39894228040143267794L) * exp(Scalar(-0.5) * x * x);
}

/// 1 / (1 + exp(−x)), the derivative of softplus, without overflow.
template <class Scalar>
Scalar sigmoid(const Scalar& x) {
  using std::exp;
  if (x < Scalar(0)) {
    const Scalar e = exp(x);
    return e / (Scalar(1) + e);
  }
  return Scalar(1) / (Scalar(1) + exp(-x));
}

}  // namespace detail

/// Buffers of Gate::route; they grow where they must and are kept.
template <class Scalar>
struct GateWorkspace {
  bool is_noisy = false;                 ///< whether the last call had noise
  std::vector<Scalar> logits;            ///< R × N, before the noise
  std::vector<Scalar> noise;             ///< R × N, training only, as all that follow: the draws n
  std::vector<Scalar> noise_logits;      ///< R × N, z W_n
  std::vector<Scalar> noisy_logits;      ///< R × N
  std::vector<Scalar> noise_deviations;  ///< R × N, σ
  std::vector<Index> ranking;            ///< the K + 1 first experts of a row
};

/// Buffers of Gate::backward; they grow where they must and are kept.
template <class Scalar>
struct GateGradientWorkspace {
  std::vector<Scalar> importance;              ///< N: gradients of what they are named after, from here on
  std::vector<Scalar> load;                    ///< N
  detail::AlignedVector<Scalar> logits;        ///< R × N
  detail::AlignedVector<Scalar> noise_logits;  ///< R × N
  std::vector<Scalar> noisy_logits;            ///< N, of one row
  std::vector<Scalar> deviations;              ///< N, of one row
  std::vector<Index> ranking;
};

template <class Scalar, int NumExperts = Eigen::Dynamic>
class Gate {
 public:
  /// Zero W_g and W_n, with which every row selects the experts 0 … K − 1. Throws std::invalid_argument for
  /// sizes that are not positive or a top_k above num_experts.
  Gate(Index gate_features, Index num_experts, Index top_k, Scalar loss_coefficient, Scalar noise_epsilon)
      : logits_(gate_features, num_experts, false),
        noise_(gate_features, num_experts, false),
        top_k_(top_k),
        loss_coefficient_(loss_coefficient),
        noise_epsilon_(noise_epsilon) {
    detail::require(NumExperts == Eigen::Dynamic || num_experts == NumExperts, "num_experts: expected ",
                    NumExperts, " as the type says, got ", num_experts);
    detail::require(top_k >= 1 && top_k <= num_experts, "top_k: expected 1 to num_experts = ", num_experts,
                    ", got ", top_k);
  }

  Index gate_features() const { return logits_.in_features(); }
  Index top_k() const { return top_k_; }
  Index num_experts() const {
    if constexpr (NumExperts == Eigen::Dynamic) return logits_.out_features();
    else return NumExperts;
  }

  /// Whether it was moved from; see Linear::empty.
  bool empty() const { return logits_.empty() || noise_.empty(); }

  /// W_g and W_n, gate_features × num_experts; setters throw std::invalid_argument for another shape.
  Matrix<Scalar> weight() const { return logits_.weight().transpose(); }
  Matrix<Scalar> noise_weight() const { return noise_.weight().transpose(); }
  void set_weight(const ConstMatrixRef<Scalar>& weight) { set(logits_, weight, "gate weight"); }
  void set_noise_weight(const ConstMatrixRef<Scalar>& weight) { set(noise_, weight, "noise weight"); }

  /// W_g uniform in ±spread/√gate_features, W_n zero.
  template <class Generator>
  void initialize(Generator& rng, double spread = 1) {
    logits_.initialize(rng, spread);
    noise_.set_weight(Matrix<Scalar>::Zero(num_experts(), gate_features()));
  }

  /// Routes the rows of z (R × gate_features), with noise where there is any. Throws std::invalid_argument
  /// for another width of z or shape of the noise, std::domain_error naming the first row whose logits are
  /// not finite. Allocates only where routing or workspace have to grow.
  void route(const MatrixView<Scalar>& z, const Noise<Scalar>& noise, Routing<Scalar>& routing,
             GateWorkspace<Scalar>& workspace) const {
    detail::require(z.cols() == gate_features(), "gate input: expected ", gate_features(), " features, got ",
                    z.cols());
    const bool training = static_cast<bool>(noise);
    compute_logits(z, noise, workspace);
    const Scalar* logits = training ? workspace.noisy_logits.data() : workspace.logits.data();
    require_finite(logits, z.rows());

    const auto experts = static_cast<std::size_t>(num_experts());
    const auto pairs = static_cast<std::size_t>(z.rows() * top_k_);
    routing.rows = z.rows();
    routing.num_experts = num_experts();
    routing.top_k = top_k_;
    routing.experts.resize(pairs);
    routing.weights.resize(pairs);
    routing.importance.assign(experts, Scalar(0));
    routing.load.assign(experts, Scalar(0));
    workspace.ranking.resize(static_cast<std::size_t>(ranked()));
    for (Index row = 0; row < z.rows(); ++row) {
      rank(logits + row * num_experts(), workspace.ranking.data());
      select(logits + row * num_experts(), workspace.ranking.data(), row, routing);
      if (training && top_k_ < num_experts()) estimate_load(workspace, row, routing);
      else count_load(workspace, routing);
    }
    routing.loss =
        loss_coefficient_ * (cv_squared<Scalar>(routing.importance) + cv_squared<Scalar>(routing.load));
  }

  /// Gradients of a decision that route made of z, of which `routing` and `decision` are left: through the
  /// weights, whose gradients are d_weights (R × K, in the routing's order), and through the balance loss,
  /// whose gradient is d_loss; with noise also through τ and σ. Not through the selection itself. Adds those
  /// of W_g and W_n to `gradients`, a gate of the same shape, and writes dz, R × gate_features at dz_stride,
  /// or adds to it with `add`. Allocates only where buffers have to grow.
  void backward(const MatrixView<Scalar>& z, const Routing<Scalar>& routing,
                const GateWorkspace<Scalar>& decision, std::span<const Scalar> d_weights,
                const Scalar& d_loss, Gate& gradients, bool add, Scalar* dz, Index dz_stride,
                GateGradientWorkspace<Scalar>& workspace, detail::AlignedVector<Scalar>& scratch) const {
    const auto experts = static_cast<std::size_t>(num_experts());
    const Scalar scale = d_loss * loss_coefficient_;
    workspace.importance.assign(experts, Scalar(0));
    workspace.load.assign(experts, Scalar(0));
    add_cv_squared_gradient<Scalar>(routing.importance, scale, workspace.importance);
    add_cv_squared_gradient<Scalar>(routing.load, scale, workspace.load);
    const Index size = z.rows() * num_experts();
    Scalar* const logits = detail::reserve(workspace.logits, size);
    Scalar* const noise_logits = decision.is_noisy ? detail::reserve(workspace.noise_logits, size) : nullptr;
    for (Index row = 0; row < z.rows(); ++row) {
      weights_to_logits(routing, d_weights, row, workspace);
      if (decision.is_noisy) noisy_to_logits(decision, row, logits, noise_logits, workspace);
      else std::copy_n(workspace.noisy_logits.data(), num_experts(), logits + row * num_experts());
    }
    logits_.backward(z, {logits, z.rows(), num_experts(), num_experts()}, gradients.logits_, add, dz,
                     dz_stride, scratch);
    if (!decision.is_noisy) return;
    noise_.backward(z, {noise_logits, z.rows(), num_experts(), num_experts()}, gradients.noise_, true, dz,
                    dz_stride, scratch);
  }

  /// W_g and W_n as they are packed; see ExpertBank::values.
  std::span<Scalar> weight_values() { return logits_.values(); }
  std::span<const Scalar> weight_values() const { return logits_.values(); }
  std::span<Scalar> noise_weight_values() { return noise_.values(); }
  std::span<const Scalar> noise_weight_values() const { return noise_.values(); }

 private:
  void set(Linear<Scalar>& linear, const ConstMatrixRef<Scalar>& weight, std::string_view name) {
    detail::require_shape(weight, gate_features(), num_experts(), name);
    linear.set_weight(weight.transpose());
  }

  void compute_logits(const MatrixView<Scalar>& z, const Noise<Scalar>& noise,
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
      const Scalar& s = workspace.noise_logits[i];
      const Scalar positive = s > Scalar(0) ? s : Scalar(0);
      const Scalar negative = s > Scalar(0) ? -s : s;
      const Scalar deviation = positive + log1p(exp(negative)) + noise_epsilon_;
      workspace.noise_deviations[i] = deviation;
      workspace.noisy_logits[i] = workspace.logits[i] + workspace.noise[i] * deviation;
    }
  }

  /// Of one row, from the gradients of weights, d_weights and those of the importance, to those of the logits
  /// that were selected by, into workspace.noisy_logits.
  void weights_to_logits(const Routing<Scalar>& routing, std::span<const Scalar> d_weights, Index row,
                         GateGradientWorkspace<Scalar>& workspace) const {
    const std::span<const Index> experts = routing.row_experts(row);
    const std::span<const Scalar> weights = routing.row_weights(row);
    const std::span<const Scalar> gradients =
        d_weights.subspan(static_cast<std::size_t>(row) * experts.size(), experts.size());
    const auto gradient = [&](std::size_t i) {
      return gradients[i] + workspace.importance[static_cast<std::size_t>(experts[i])];
    };
    Scalar mean(0);
    for (std::size_t i = 0; i < experts.size(); ++i) mean += weights[i] * gradient(i);
    workspace.noisy_logits.assign(static_cast<std::size_t>(num_experts()), Scalar(0));
    for (std::size_t i = 0; i < experts.size(); ++i)
      workspace.noisy_logits[static_cast<std::size_t>(experts[i])] = weights[i] * (gradient(i) - mean);
  }

  /// Of one row, from the gradients of the noisy logits and of the load to those of z W_g and z W_n.
  void noisy_to_logits(const GateWorkspace<Scalar>& decision, Index row, Scalar* logits, Scalar* noise_logits,
                       GateGradientWorkspace<Scalar>& workspace) const {
    const Index begin = row * num_experts();
    Scalar* const d_logits = logits + begin;
    std::vector<Scalar>& d_deviations = workspace.deviations;
    d_deviations.assign(static_cast<std::size_t>(num_experts()), Scalar(0));
    std::fill_n(d_logits, num_experts(), Scalar(0));
    if (top_k_ < num_experts()) {
      const Scalar* const noisy = decision.noisy_logits.data() + begin;
      workspace.ranking.resize(static_cast<std::size_t>(ranked()));
      rank(noisy, workspace.ranking.data());
      for (Index j = 0; j < num_experts(); ++j) {
        const auto e = static_cast<std::size_t>(j);
        const auto i = static_cast<std::size_t>(begin + j);
        const Index beaten = threshold(noisy, workspace.ranking.data(), j);
        const Scalar& deviation = decision.noise_deviations[i];
        const Scalar distance = (decision.logits[i] - noisy[beaten]) / deviation;
        const Scalar d_distance = workspace.load[e] * detail::normal_density(distance) / deviation;
        d_logits[j] += d_distance;
        workspace.noisy_logits[static_cast<std::size_t>(beaten)] -= d_distance;
        d_deviations[e] -= d_distance * distance;
      }
    }
    for (Index j = 0; j < num_experts(); ++j) {
      const auto e = static_cast<std::size_t>(j);
      const auto i = static_cast<std::size_t>(begin + j);
      d_logits[j] += workspace.noisy_logits[e];
      noise_logits[i] = (d_deviations[e] + workspace.noisy_logits[e] * decision.noise[i]) *
                        detail::sigmoid(decision.noise_logits[i]);
    }
  }

  void require_finite(const Scalar* logits, Index rows) const {
    for (Index row = 0; row < rows; ++row) {
      for (Index j = 0; j < num_experts(); ++j) {
        const Scalar& logit = logits[row * num_experts() + j];
        if (logit - logit == Scalar(0))
          continue;  // NaN for infinities and NaN; needs no more of Scalar than -
        throw std::domain_error(detail::message("gate: expected finite logits, got one that is not in row ",
                                                row, " for expert ", j));
      }
    }
  }

  /// The load estimate looks one place beyond the selection.
  Index ranked() const { return std::min(top_k_ + 1, num_experts()); }

  /// The first experts of a row by descending logit, ties by ascending expert.
  void rank(const Scalar* logits, Index* ranking) const {
    Index count = 0;
    for (Index j = 0; j < num_experts(); ++j) {
      if (count == ranked() && !(logits[j] > logits[ranking[count - 1]])) continue;
      if (count < ranked()) ++count;
      Index place = count - 1;
      for (; place > 0 && logits[j] > logits[ranking[place - 1]]; --place)
        ranking[place] = ranking[place - 1];
      ranking[place] = j;
    }
  }

  void select(const Scalar* logits, const Index* ranking, Index row, Routing<Scalar>& routing) const {
    using std::exp;
    Index* const experts = routing.experts.data() + row * top_k_;
    Scalar* const weights = routing.weights.data() + row * top_k_;
    Scalar sum(0);
    for (Index i = 0; i < top_k_; ++i) {
      experts[i] = ranking[i];
      weights[i] = exp(logits[ranking[i]] - logits[ranking[0]]);
      sum += weights[i];
    }
    for (Index i = 0; i < top_k_; ++i) {
      weights[i] = weights[i] / sum;
      routing.importance[static_cast<std::size_t>(experts[i])] += weights[i];
    }
  }

  void count_load(const GateWorkspace<Scalar>& workspace, Routing<Scalar>& routing) const {
    for (std::size_t i = 0; i < static_cast<std::size_t>(top_k_); ++i) {
      routing.load[static_cast<std::size_t>(workspace.ranking[i])] += Scalar(1);
    }
  }

  /// The expert whose noisy logit j has to beat to be selected, τ_j: the first that is rejected if j is above
  /// it, else the last that is selected.
  Index threshold(const Scalar* noisy, const Index* ranking, Index j) const {
    return noisy[j] > noisy[ranking[top_k_]] ? ranking[top_k_] : ranking[top_k_ - 1];
  }

  /// load_j += Φ((ℓ_j − τ_j) / σ_j): the chance that a new draw of j's noise alone would select j.
  void estimate_load(const GateWorkspace<Scalar>& workspace, Index row, Routing<Scalar>& routing) const {
    const Index begin = row * num_experts();
    const Scalar* const logits = workspace.logits.data() + begin;
    const Scalar* const noisy = workspace.noisy_logits.data() + begin;
    const Scalar* const deviations = workspace.noise_deviations.data() + begin;
    for (Index j = 0; j < num_experts(); ++j) {
      const Scalar& beaten = noisy[threshold(noisy, workspace.ranking.data(), j)];
      routing.load[static_cast<std::size_t>(j)] +=
          detail::normal_cdf<Scalar>((logits[j] - beaten) / deviations[j]);
    }
  }

  Linear<Scalar> logits_;
  Linear<Scalar> noise_;
  Index top_k_;
  Scalar loss_coefficient_;
  Scalar noise_epsilon_;
};

}  // namespace meo

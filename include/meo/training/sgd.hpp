#pragma once

/// Stochastic gradient descent with momentum, with the semantics of PyTorch's torch.optim.SGD:
///
///     d = g + λ p,   v ← μ v + d,   p ← p − η v, or p − η (d + μ v) with Nesterov's momentum.
///
/// v begins as 0. Steps without momentum, p ← p − η d, leave it as it is.

#include <utility>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/parallel.hpp>
#include <meo/scalar_options.hpp>
#include <meo/sums.hpp>
#include <meo/training/parameters.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// PyTorch's, without dampening.
struct SgdOptions {
  double learning_rate = 1e-3;  ///< η
  double momentum = 0;          ///< μ
  double weight_decay = 0;      ///< λ, of all parameters; see parameters.hpp for how to leave some out
  bool nesterov = false;        ///< whether the step looks ahead by the momentum
};

/// Gradient descent with momentum; velocities are kept in the parameters' scalar.
template <class Scalar>
class Sgd {
 public:
  /// For parameters of these names and sizes, of which it keeps no view. Throws std::invalid_argument for
  /// options that are negative or not finite, in Scalar as well.
  Sgd(const Parameters<Scalar>& parameters, const SgdOptions& options);

  /// Of the next step.
  const SgdOptions& options() const { return options_; }
  /// As a schedule of learning rates does between steps. Throws as the constructor does, and then changes
  /// nothing.
  void set_options(const SgdOptions& options);

  /// Updates the parameters in place. Throws std::invalid_argument for ranges other than the constructor's,
  /// and then changes nothing.
  void step(const Parameters<Scalar>& parameters, const Parameters<Scalar>& gradients);

  /// What a checkpoint has to keep, beside the parameters: v, under the parameters' names, and the number of
  /// steps.
  Parameters<Scalar> velocities();
  Index steps() const { return steps_; }
  /// Throws std::invalid_argument for a negative number.
  void set_steps(Index steps) {
    detail::require(steps >= 0, "steps: expected at least 0, got ", steps);
    steps_ = steps;
  }

 private:
  struct Velocity {
    std::string name;
    std::vector<Scalar> values;
  };

  SgdOptions options_;
  std::vector<Velocity> velocities_;
  Index steps_ = 0;
};

template <class Scalar>
Sgd<Scalar>::Sgd(const Parameters<Scalar>& parameters, const SgdOptions& options) {
  set_options(options);
  for (const auto& range : parameters)
    velocities_.push_back({range.name, std::vector<Scalar>(range.values.size(), Scalar(0))});
}

template <class Scalar>
void Sgd<Scalar>::set_options(const SgdOptions& options) {
  detail::require_not_negative<detail::Sum<Scalar>>(options.learning_rate, "learning_rate");
  detail::require_not_negative<detail::Sum<Scalar>>(options.momentum, "momentum");
  detail::require_not_negative<detail::Sum<Scalar>>(options.weight_decay, "weight_decay");
  detail::require(!options.nesterov || options.momentum > 0, "momentum: expected some with nesterov, got 0");
  options_ = options;
}

template <class Scalar>
void Sgd<Scalar>::step(const Parameters<Scalar>& parameters, const Parameters<Scalar>& gradients) {
  detail::require_same_ranges(parameters, velocities(), "parameters");
  detail::require_same_ranges(gradients, parameters, "gradients");
  using Sum = detail::Sum<Scalar>;
  const auto rate = static_cast<Sum>(options_.learning_rate), momentum = static_cast<Sum>(options_.momentum),
             decay = static_cast<Sum>(options_.weight_decay);
  const bool has_momentum = options_.momentum > 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    Scalar* const p = parameters[i].values.data();
    const Scalar* const g = gradients[i].values.data();
    Scalar* const v = velocities_[i].values.data();
    const auto size = static_cast<Index>(parameters[i].values.size());
    detail::parallel_ranges(size, detail::max_threads(), [&](Index begin, Index end, Index) {
      for (Index j = begin; j < end; ++j) {
        const Sum d = static_cast<Sum>(g[j]) + decay * static_cast<Sum>(p[j]);
        Sum step = d;
        if (has_momentum) {
          const Sum velocity = momentum * static_cast<Sum>(v[j]) + d;
          v[j] = static_cast<Scalar>(velocity);
          step = options_.nesterov ? Sum(d + momentum * velocity) : velocity;
        }
        p[j] = static_cast<Scalar>(Sum(static_cast<Sum>(p[j]) - rate * step));
      }
    });
  }
  ++steps_;
}

template <class Scalar>
Parameters<Scalar> Sgd<Scalar>::velocities() {
  Parameters<Scalar> all;
  for (auto& velocity : velocities_) all.push_back({velocity.name, velocity.values});
  return all;
}

#define MEO_INSTANCES(instance, Scalar) instance class Sgd<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

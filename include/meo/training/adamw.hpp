#pragma once

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101), with the semantics of
/// PyTorch's torch.optim.AdamW: at step t
///
///     p ← (1 − ηλ) p,   m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,
///     p ← p − η m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε).

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/finite.hpp>
#include <meo/parallel.hpp>
#include <meo/scalar_options.hpp>
#include <meo/sums.hpp>
#include <meo/training/parameters.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// PyTorch's, with its default values.
struct AdamWOptions {
  double learning_rate = 1e-3;  ///< η
  double beta1 = 0.9;           ///< β₁, of m
  double beta2 = 0.999;         ///< β₂, of v
  double epsilon = 1e-8;        ///< ε, added to √v
  double weight_decay = 1e-2;   ///< λ, of all parameters; see parameters.hpp for how to leave some out
};

/// Moments are kept in the parameters' scalar, as PyTorch keeps them. A v of 16 bits does not change where
/// 1 − β₂ is less than half a unit in its last place: bfloat16 wants a β₂ of at most 0.99.
template <class Scalar>
class AdamW {
 public:
  /// For parameters of these names and sizes, of which it keeps no view. Throws std::invalid_argument for
  /// options out of range, in Scalar as well: there a beta may round to 1, and an epsilon to 0.
  AdamW(const Parameters<Scalar>& parameters, const AdamWOptions& options);

  /// Of the next step.
  const AdamWOptions& options() const { return options_; }
  /// As a schedule of learning rates does between steps. Throws as the constructor does, and then changes
  /// nothing.
  void set_options(const AdamWOptions& options);

  /// Updates the parameters in place. Throws std::invalid_argument for ranges other than the constructor's,
  /// and then changes nothing.
  void step(const Parameters<Scalar>& parameters, const Parameters<Scalar>& gradients);

  /// What a checkpoint has to keep, beside the parameters: m and v, under the parameters' names, and the
  /// number of steps.
  Parameters<Scalar> first_moments() { return ranges(&Moments::first); }
  Parameters<Scalar> second_moments() { return ranges(&Moments::second); }
  Index steps() const { return steps_; }
  /// Throws std::invalid_argument for a negative number.
  void set_steps(Index steps) {
    detail::require(steps >= 0, "steps: expected at least 0, got ", steps);
    steps_ = steps;
  }

 private:
  struct Moments {
    std::string name;
    std::vector<Scalar> first;
    std::vector<Scalar> second;
  };

  static void require_beta(double beta, std::string_view name);

  Parameters<Scalar> ranges(std::vector<Scalar> Moments::*moment);

  AdamWOptions options_;
  std::vector<Moments> moments_;
  Index steps_ = 0;
};

template <class Scalar>
AdamW<Scalar>::AdamW(const Parameters<Scalar>& parameters, const AdamWOptions& options) {
  set_options(options);
  for (const auto& range : parameters) {
    const std::vector<Scalar> zero(range.values.size(), Scalar(0));
    moments_.push_back({range.name, zero, zero});
  }
}

template <class Scalar>
void AdamW<Scalar>::set_options(const AdamWOptions& options) {
  using Sum = detail::Sum<Scalar>;
  detail::require_not_negative<Sum>(options.learning_rate, "learning_rate");
  require_beta(options.beta1, "beta1");
  require_beta(options.beta2, "beta2");
  detail::require_positive<Sum>(options.epsilon, "epsilon");
  detail::require_not_negative<Sum>(options.weight_decay, "weight_decay");
  detail::require_fits<Sum>(options.learning_rate * options.weight_decay, "learning_rate * weight_decay");
  detail::require_fits<Sum>(options.learning_rate / (1 - options.beta1),
                            "learning_rate / (1 - beta1), the rate of the first step");
  options_ = options;
}

template <class Scalar>
void AdamW<Scalar>::step(const Parameters<Scalar>& parameters, const Parameters<Scalar>& gradients) {
  detail::require_same_ranges(parameters, first_moments(), "parameters");
  detail::require_same_ranges(gradients, parameters, "gradients");
  ++steps_;
  const auto t = static_cast<double>(steps_);
  using Sum = detail::Sum<Scalar>;
  const auto keep = static_cast<Sum>(1 - options_.learning_rate * options_.weight_decay),
             rate = static_cast<Sum>(options_.learning_rate / (1 - std::pow(options_.beta1, t))),
             root_correction = static_cast<Sum>(std::sqrt(1 - std::pow(options_.beta2, t))),
             beta1 = static_cast<Sum>(options_.beta1), beta2 = static_cast<Sum>(options_.beta2),
             rest1 = static_cast<Sum>(1 - options_.beta1), rest2 = static_cast<Sum>(1 - options_.beta2),
             epsilon = static_cast<Sum>(options_.epsilon);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    Scalar* const p = parameters[i].values.data();
    const Scalar* const g = gradients[i].values.data();
    Scalar* const m = moments_[i].first.data();
    Scalar* const v = moments_[i].second.data();
    const auto size = static_cast<Index>(parameters[i].values.size());
    detail::parallel_ranges(size, detail::max_threads(), [&](Index begin, Index end, Index) {
      using std::sqrt;
      for (Index j = begin; j < end; ++j) {
        const auto gradient = static_cast<Sum>(g[j]);
        const Sum first = beta1 * static_cast<Sum>(m[j]) + rest1 * gradient;
        const Sum second = beta2 * static_cast<Sum>(v[j]) + rest2 * gradient * gradient;
        m[j] = static_cast<Scalar>(first);
        v[j] = static_cast<Scalar>(second);
        p[j] = static_cast<Scalar>(
            Sum(keep * static_cast<Sum>(p[j]) - rate * first / (sqrt(second) / root_correction + epsilon)));
      }
    });
  }
}

template <class Scalar>
void AdamW<Scalar>::require_beta(double beta, std::string_view name) {
  using Sum = detail::Sum<Scalar>;
  detail::require(detail::is_finite(beta) && beta >= 0 && beta < 1, name,
                  ": expected at least 0 and below 1, got ", beta);
  detail::require(static_cast<Sum>(beta) < Sum(1), name,
                  ": expected a number that the scalar does not round to 1, got ", beta);
}

template <class Scalar>
Parameters<Scalar> AdamW<Scalar>::ranges(std::vector<Scalar> Moments::*moment) {
  Parameters<Scalar> all;
  for (auto& moments : moments_) all.push_back({moments.name, moments.*moment});
  return all;
}

#define MEO_INSTANCES(instance, Scalar) instance class AdamW<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

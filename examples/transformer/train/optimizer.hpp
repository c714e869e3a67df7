#pragma once

/// AdamW as BERT is trained with it: neither biases nor layer norms decay, and what is frozen stays.

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meo/training/adamw.hpp>
#include <meo/training/gradient_norm.hpp>
#include <meo/training/parameters.hpp>

#include "../model/model.hpp"
#include "../model/require.hpp"

namespace transformer {

struct OptimizerOptions {
  double weight_decay = 0.01;
  double clip = 1;             ///< greatest norm of all gradients together
  bool only_mixtures = false;  ///< all else is frozen, but for the classifier, which no checkpoint has
};

/// Which of a model's parameters are trained, by the names that it visits them by.
class Trained {
 public:
  /// Throws std::invalid_argument where mixtures alone are to be trained and there are none.
  template <class Scalar>
  Trained(const Model<Scalar>& model, bool only_mixtures) : all_(!only_mixtures) {
    if (all_) return;
    model.visit_projections([&](const std::string& name, const auto& projection) {
      if (!projection.is_dense()) starts_.push_back(name + ".");
    });
    require(!starts_.empty(), "freeze: expected a model with mixtures to train, got a dense one");
  }

  bool operator()(std::string_view name) const {
    return all_ || name.starts_with("classifier") || name.ends_with("task_embeddings.weight") ||
           std::any_of(starts_.begin(), starts_.end(),
                       [&](const std::string& start) { return name.starts_with(start); });
  }

  template <class Scalar>
  meo::Parameters<Scalar> of(Model<Scalar>& model) const {
    auto parameters = meo::parameters(model);
    std::erase_if(parameters, [&](const auto& range) { return !(*this)(range.name); });
    return parameters;
  }

 private:
  bool all_;
  std::vector<std::string> starts_;
};

/// Multiplies what decays by a factor. In meo::parameters biases are in one range with weights, so they are
/// put by.
template <class Scalar>
void decay_weights(Model<Scalar>& model, const Trained& trained, Scalar factor) {
  const auto scale = [&](auto values) {
    for (Scalar& value : values) value *= factor;
  };
  const auto scale_bank = [&](auto& bank) {
    std::vector<meo::Vector<Scalar>> biases;
    for (meo::Index e = 0; bank.has_bias() && e < bank.num_experts(); ++e) biases.push_back(bank.bias(e));
    scale(bank.values());
    for (std::size_t e = 0; e < biases.size(); ++e) bank.set_bias(static_cast<meo::Index>(e), biases[e]);
  };
  model.visit([&](std::string_view name, auto&& part) {
    if (!trained(name)) return;
    if constexpr (requires { part.is_vector; }) {
      if (!part.is_vector) scale(part.values());  // else a layer norm's
    } else if constexpr (requires { part.num_experts(); }) {
      scale_bank(part);
    } else if constexpr (requires { part.linear.bank(); }) {
      scale_bank(part.linear.bank());
    } else if constexpr (requires { part.bank(); }) {
      scale_bank(part.bank());
    } else {
      scale(part.values());  // of a gate, which has no bias
    }
  });
}

template <class Scalar>
class Optimizer {
 public:
  Optimizer(Model<Scalar>& model, const OptimizerOptions& options)
      : options_(options),
        trained_(model, options.only_mixtures),
        adam_(trained_.of(model), {.weight_decay = 0}) {}

  meo::Index steps() const { return adam_.steps(); }
  void set_steps(meo::Index steps) { adam_.set_steps(steps); }

  /// Clips the gradients and makes a step. Returns their norm before.
  Scalar step(Model<Scalar>& model, Model<Scalar>& gradients, double learning_rate) {
    const auto to_train = trained_.of(model), their_gradients = trained_.of(gradients);
    const Scalar norm = meo::clip_gradient_norm(their_gradients, static_cast<Scalar>(options_.clip));
    if (const double decay = learning_rate * options_.weight_decay; decay > 0)
      decay_weights(model, trained_, static_cast<Scalar>(1 - decay));
    meo::AdamWOptions adam = adam_.options();
    adam.learning_rate = learning_rate;
    adam_.set_options(adam);
    adam_.step(to_train, their_gradients);
    return norm;
  }

  /// Between the moments and models that hold them, whose other parameters stay.
  void copy_moments_to(Model<Scalar>& first, Model<Scalar>& second) {
    meo::copy_values(adam_.first_moments(), trained_.of(first));
    meo::copy_values(adam_.second_moments(), trained_.of(second));
  }
  void copy_moments_from(Model<Scalar>& first, Model<Scalar>& second) {
    meo::copy_values(trained_.of(first), adam_.first_moments());
    meo::copy_values(trained_.of(second), adam_.second_moments());
  }

 private:
  OptimizerOptions options_;
  Trained trained_;
  meo::AdamW<Scalar> adam_;
};

}  // namespace transformer

#pragma once

/// Gradients of a layer or block, whatever its router and experts, against central differences of its own
/// forward.

#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include <meo/layers/context.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/routing/routing.hpp>
#include <meo/training/parameters.hpp>
#include <meo/types.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace meo::test {

template <class Model>
concept IsBlock = requires(Model& model) {
  model.up();
};

inline double loss_of(const Routing<double>& routing) { return routing.loss; }
inline double loss_of(double loss) { return loss; }

/// What every router of a layer or block selects.
template <class Layer>
std::vector<Index> selections(const Layer&, const Context<double>& context) {
  return context.routing.experts;
}
template <class Block>
std::vector<Index> selections(const Block& block, const FeedForwardContext<double>& context) {
  std::vector<Index> all;
  block.visit_routings(context, [&](const char*, const Routing<double>& routing) {
    all.insert(all.end(), routing.experts.begin(), routing.experts.end());
  });
  return all;
}

/// Differences of Σ dy y + d_loss loss in every value of x and of the gates, and in some of all others, for
/// a random x of so many features.
template <class Model>
void check_gradients(Model& model, Index features, Index outputs, const Inputs<double>& inputs,
                     Generator& rng) {
  constexpr double d_loss = 0.75, step = 1e-5;
  const Index tokens = inputs.sequences->tokens();
  Matrix<double> x = random_normal<double>(rng, tokens, features), y(tokens, outputs), dx(tokens, features);
  const Matrix<double> dy = random_matrix<double>(rng, tokens, outputs);
  std::conditional_t<IsBlock<Model>, FeedForwardContext<double>, Context<double>> context;
  const auto value = [&] {
    const double loss = loss_of(model.forward(x, inputs, y, context));
    return y.cwiseProduct(dy).sum() + d_loss * loss;
  };
  Model gradients(model.options());
  value();
  model.backward(x, inputs, context, dy, gradients, dx, d_loss);
  const std::vector<Index> selected = selections(model, context);
  int compared = 0, skipped = 0;
  const auto check = [&](double& at, double gradient, const std::string& name) {
    const double before = at;
    at = before + step;
    const double up = value();
    bool is_smooth = selections(model, context) == selected;
    at = before - step;
    const double down = value();
    is_smooth = is_smooth && selections(model, context) == selected;
    at = before;
    ++(is_smooth ? compared : skipped);
    if (!is_smooth) return;
    INFO(name);
    CHECK(std::abs((up - down) / (2 * step) - gradient) < 1e-7);
  };
  for (Index i = 0; i < x.size(); ++i) check(x.data()[i], dx.data()[i], "x");
  const auto values = parameters(model), expected = parameters(gradients);
  for (std::size_t r = 0; r < values.size(); ++r) {
    const bool all = values[r].name.ends_with("gate");
    for (std::size_t i = 0; i < values[r].values.size(); i += all ? 1 : 7)
      check(values[r].values[i], expected[r].values[i], values[r].name);
  }
  CHECK(skipped * 10 < compared);
}

}  // namespace meo::test

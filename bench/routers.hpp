#pragma once

/// Routers of other models by themselves.

#include <cmath>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <meo/routing/gate.hpp>
#include <meo/routing/routing_options.hpp>

#include "baselines.hpp"

namespace bench {

struct NamedRouter {
  std::string name;
  meo::RoutingOptions options;
  bool selects_all = false;  ///< K = N
};

/// For any number of experts that 8 divides.
inline const std::vector<NamedRouter>& routers() {
  using meo::GroupScore;
  using meo::SelectionMethod;
  using enum meo::ScoreFunction;
  static const std::vector<NamedRouter> all{
      {"mixtral", {}},
      {"gpt_oss", {.scores = {.bias = true}}},
      {"olmoe", {.scores = {.function = softmax}}},
      {"qwen", {.scores = {.function = softmax, .normalize = true}}},
      {"deepseek_v2", {.scores = {.function = softmax}, .selection = {.groups = 8, .top_groups = 4}}},
      {"deepseek_v3",
       {.scores = {.function = sigmoid, .normalize = true, .scale = 2.5},
        .selection =
            {.groups = 8, .top_groups = 4, .group_score = GroupScore::two_largest, .correction_bias = true}}},
      {"switch",
       {.scores = {.function = softmax},
        .selection = {.capacity_factor = 1.25},
        .losses = {.share_coefficient = 0.01, .z_coefficient = 0.001}}},
      {"expert_choice",
       {.scores = {.function = softmax},
        .selection = {.method = SelectionMethod::expert_choice, .capacity_factor = 1}}},
      {"smear", {}, true},
      {"condconv", {.scores = {.function = sigmoid}}, true},
  };
  return all;
}

/// Throws std::invalid_argument for a name that none has.
inline const meo::RoutingOptions& router_named(const std::string& name) {
  for (const NamedRouter& router : routers()) {
    if (router.name == name) return router.options;
  }
  throw std::invalid_argument("router: none is " + name);
}

/// Requires a routing's weights to be those of its selection, by plain Eigen in double, to what rounding in
/// Scalar may cause: logits are of about unit size.
template <class Scalar>
void verify_router(const std::string& name, const Matrix<Scalar>& z, const meo::Gate<Scalar>& gate,
                   const meo::Routing<Scalar>& routing) {
  const meo::ScoreOptions& scores = gate.options().scores;
  Matrix<double> logits = z.template cast<double>() * gate.weight().template cast<double>();
  if (scores.bias) logits.rowwise() += gate.bias().template cast<double>().transpose();
  Matrix<double> p = logits.array().exp();
  const bool is_sigmoid = scores.function == meo::ScoreFunction::sigmoid;
  if (is_sigmoid) p = p.array() / (1 + p.array());
  const bool is_normalized = scores.normalize || scores.function == meo::ScoreFunction::softmax_selected;
  for (Index row = 0; row < routing.rows; ++row) {
    const auto experts = routing.row_experts(row);
    double sum = is_sigmoid ? 1 : p.row(row).sum();
    if (is_normalized) sum = 0;
    for (std::size_t i = 0; is_normalized && i < experts.size(); ++i) sum += p(row, experts[i]);
    for (std::size_t i = 0; i < experts.size(); ++i) {
      const double expected = p(row, experts[i]) / sum * scores.scale;
      const double error = std::abs(static_cast<double>(routing.row_weights(row)[i]) - expected);
      if (error <= 1e-4 * expected) continue;
      std::cerr << "meo_bench: " << name << " is wrong: the weight of row " << row << ", expert "
                << experts[i] << ", is off by " << error << '\n';
      std::exit(1);
    }
  }
}

/// A router over the rows of z, which outlives what is returned.
template <class Scalar>
std::function<void()> prepare_router(const std::string& name, const NamedRouter& router,
                                     const Matrix<Scalar>& z, Index num_experts, Index top_k) {
  struct State {
    meo::Gate<Scalar> gate;
    meo::Routing<Scalar> routing;
    meo::GateWorkspace<Scalar> workspace;
  };
  const Index k = router.selects_all ? num_experts : top_k;
  const auto state =
      std::make_shared<State>(State{meo::Gate<Scalar>(z.cols(), num_experts, k, router.options), {}, {}});
  std::mt19937_64 rng(1);
  state->gate.initialize(rng, 3);
  const auto run = [state, &z] { state->gate.route(z, {}, state->routing, state->workspace); };
  run();
  verify_router(name, z, state->gate, state->routing);
  return run;
}

}  // namespace bench

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <meo/training/adamw.hpp>
#include <meo/training/gradient_norm.hpp>
#include <meo/training/sgd.hpp>

#include "support/catch.hpp"
#include "support/error_message.hpp"

namespace {
namespace optimizers_test {

using namespace meo;
using test::error_lacks;

/// Two ranges with their gradients.
struct Problem {
  std::vector<double> a{1, -2}, b{0.5}, da{0.25, 4}, db{-1};

  Parameters<double> parameters() { return {{"a", a}, {"b", b}}; }
  Parameters<double> gradients() { return {{"a", da}, {"b", db}}; }
};

TEST_CASE("SGD steps along the gradient", "[sgd]") {
  Problem p;
  Sgd<double> sgd(p.parameters(), {.learning_rate = 0.5});
  sgd.step(p.parameters(), p.gradients());
  CHECK(p.a == std::vector<double>{1 - 0.125, -4});
  CHECK(p.b == std::vector<double>{1});
  CHECK(p.da == std::vector<double>{0.25, 4});
}

TEST_CASE("SGD's velocity begins with the first gradient, and decay is part of it", "[sgd]") {
  // In binary fractions, so that every result is exact.
  Problem p;
  Sgd<double> sgd(p.parameters(), {.learning_rate = 0.5, .momentum = 0.5, .weight_decay = 0.25});
  // b: d = -1 + 0.125 = -0.875 = v, b = 0.9375; then d = -1 + 0.234375, v = -0.4375 + d.
  sgd.step(p.parameters(), p.gradients());
  CHECK(p.b[0] == 0.9375);
  sgd.step(p.parameters(), p.gradients());
  CHECK(p.b[0] == 0.9375 + 0.5 * (0.4375 + 0.765625));

  Problem q;
  Sgd<double> nesterov(q.parameters(), {.learning_rate = 0.5, .momentum = 0.5, .nesterov = true});
  nesterov.step(q.parameters(), q.gradients());
  CHECK(q.b[0] == 0.5 + 0.5 * (1 + 0.5));
  nesterov.step(q.parameters(), q.gradients());
  CHECK(q.b[0] == 1.25 + 0.5 * (1 + 0.5 * 1.5));
}

TEST_CASE(
    "SGD's velocity begins with the first gradient after momentum is switched on, and waits while it is off",
    "[sgd]") {
  std::vector<double> p{0}, g{1};
  const Parameters<double> parameters{{"p", p}}, gradients{{"p", g}};
  const SgdOptions without{.learning_rate = 1}, with{.learning_rate = 1, .momentum = 0.5};
  Sgd<double> sgd(parameters, without);
  const auto step = [&](const SgdOptions& options) {
    sgd.set_options(options);
    sgd.step(parameters, gradients);
    return p[0];
  };
  CHECK(step(without) == -1);
  CHECK(step(with) == -2);  // v = 1
  CHECK(step(with) == -3.5);
  CHECK(step(without) == -4.5);
  CHECK(step(with) == -6.25);  // from v = 1.5
}

TEST_CASE("AdamW's first step has the size of the learning rate, and decay is apart", "[adamw]") {
  Problem p;
  const AdamWOptions options{.learning_rate = 0.1, .epsilon = 1e-3, .weight_decay = 0.5};
  AdamW<double> adamw(p.parameters(), options);
  adamw.step(p.parameters(), p.gradients());
  // With t = 1, m / (1 - β₁) = g and v / (1 - β₂) = g².
  CHECK(p.a[0] == Approx(0.95 * 1 - 0.1 * 0.25 / (0.25 + 1e-3)).epsilon(1e-14));
  CHECK(p.a[1] == Approx(0.95 * -2 - 0.1 * 4 / (4 + 1e-3)).epsilon(1e-14));
  CHECK(p.b[0] == Approx(0.95 * 0.5 + 0.1 * 1 / (1 + 1e-3)).epsilon(1e-14));
}

TEST_CASE("AdamW corrects the bias of its moments at every step", "[adamw]") {
  Problem p;
  const AdamWOptions options{
      .learning_rate = 0.1, .beta1 = 0.75, .beta2 = 0.5, .epsilon = 1e-3, .weight_decay = 0};
  AdamW<double> adamw(p.parameters(), options);
  double expected = 0.5, m = 0, v = 0;
  for (int t = 1; t <= 5; ++t) {
    p.db[0] = t % 2 == 0 ? 0.25 * t : -1;
    m = 0.75 * m + 0.25 * p.db[0];
    v = 0.5 * v + 0.5 * p.db[0] * p.db[0];
    expected -= 0.1 * (m / (1 - std::pow(0.75, t))) / (std::sqrt(v / (1 - std::pow(0.5, t))) + 1e-3);
    adamw.step(p.parameters(), p.gradients());
    CHECK(p.b[0] == Approx(expected).epsilon(1e-13));
  }
  CHECK(adamw.steps() == 5);
}

/// Two steps equal one, a copy of the state, and another. state(optimizer): all that it keeps.
template <class Optimizer, class Options, class State>
void check_resumption(const Options& options, State&& state) {
  Problem p;
  Optimizer optimizer(p.parameters(), options);
  optimizer.step(p.parameters(), p.gradients());
  Problem resumed = p;
  Optimizer fresh(resumed.parameters(), options);
  const auto from = state(optimizer), to = state(fresh);
  for (std::size_t i = 0; i < from.size(); ++i) copy_values(from[i], to[i]);
  fresh.set_steps(optimizer.steps());
  optimizer.step(p.parameters(), p.gradients());
  fresh.step(resumed.parameters(), resumed.gradients());
  CHECK(p.a == resumed.a);
  CHECK(p.b == resumed.b);
}

TEST_CASE("optimisers go on from their saved state", "[sgd][adamw]") {
  using State = std::vector<Parameters<double>>;
  check_resumption<Sgd<double>>(SgdOptions{.learning_rate = 0.1, .momentum = 0.9},
                                [](auto& sgd) { return State{sgd.velocities()}; });
  check_resumption<AdamW<double>>(AdamWOptions{}, [](auto& adamw) {
    return State{adamw.first_moments(), adamw.second_moments()};
  });
}

TEST_CASE("optimisers keep zeros with zero gradients", "[sgd][adamw]") {
  std::vector<float> p{0, 0}, g{0, 0};
  const Parameters<float> parameters{{"p", p}}, gradients{{"p", g}};
  Sgd<float> sgd(parameters, {.momentum = 0.9, .weight_decay = 0.1});
  AdamW<float> adamw(parameters, {});
  for (int t = 0; t < 3; ++t) {
    sgd.step(parameters, gradients);
    adamw.step(parameters, gradients);
  }
  CHECK(p == std::vector<float>{0, 0});
}

TEST_CASE("optimisers refuse other ranges and change nothing", "[sgd][adamw]") {
  const auto check = [](auto make) {
    Problem p;
    auto optimizer = make(p.parameters());
    const auto lacks = [&](Parameters<double> parameters, Parameters<double> gradients,
                           std::initializer_list<std::string> parts) {
      return error_lacks<std::invalid_argument>([&] { optimizer.step(parameters, gradients); }, parts);
    };
    CHECK(lacks({{"a", p.a}}, p.gradients(), {"parameters", "2 ranges", "got 1"}) == "");
    CHECK(lacks(p.parameters(), {{"a", p.da}}, {"gradients", "2 ranges", "got 1"}) == "");
    CHECK(lacks(p.parameters(), {{"a", p.da}, {"c", p.db}}, {"gradients", "expected b", "got c"}) == "");
    CHECK(lacks(p.parameters(), {{"a", p.da}, {"b", p.da}}, {"gradients", "b with 1", "got b with 2"}) == "");
    CHECK(p.a == Problem().a);
    CHECK(optimizer.steps() == 0);
  };
  check([](const auto& parameters) { return Sgd<double>(parameters, {}); });
  check([](const auto& parameters) { return AdamW<double>(parameters, {}); });
}

TEST_CASE("optimisers check their options", "[sgd][adamw]") {
  using Invalid = std::invalid_argument;
  CHECK(error_lacks<Invalid>([] { Sgd<float> s({}, {.learning_rate = -1}); }, {"learning_rate", "-1"}) == "");
  CHECK(error_lacks<Invalid>([] { Sgd<float> s({}, {.momentum = -1}); }, {"momentum", "-1"}) == "");
  CHECK(error_lacks<Invalid>([] { Sgd<float> s({}, {.weight_decay = -1}); }, {"weight_decay", "-1"}) == "");
  CHECK(error_lacks<Invalid>([] { Sgd<float> s({}, {.nesterov = true}); }, {"momentum", "nesterov"}) == "");
  CHECK(error_lacks<Invalid>([] { AdamW<float> a({}, {.learning_rate = -1}); }, {"learning_rate"}) == "");
  CHECK(error_lacks<Invalid>([] { AdamW<float> a({}, {.beta1 = 1}); }, {"beta1", "got 1"}) == "");
  CHECK(error_lacks<Invalid>([] { AdamW<float> a({}, {.beta2 = -1}); }, {"beta2", "got -1"}) == "");
  CHECK(error_lacks<Invalid>([] { AdamW<float> a({}, {.epsilon = 0}); }, {"epsilon", "got 0"}) == "");
  CHECK(error_lacks<Invalid>([] { AdamW<float> a({}, {.weight_decay = -1}); }, {"weight_decay"}) == "");
}

TEST_CASE("optimisers refuse options that are not finite or that the scalar rounds away, and keep their own",
          "[sgd][adamw]") {
  using Invalid = std::invalid_argument;
  constexpr double inf = std::numeric_limits<double>::infinity();
  std::vector<float> p{0}, g{0};
  const Parameters<float> parameters{{"p", p}}, gradients{{"p", g}};
  const auto lacks = [&](auto optimizer, auto options, std::initializer_list<std::string> parts) {
    const std::string error = error_lacks<Invalid>([&] { optimizer.set_options(options); }, parts);
    if (error != "") return error;
    optimizer.step(parameters, gradients);
    return std::string(p[0] == 0 ? "" : "zeros with zero gradients have changed");
  };
  const Sgd<float> sgd(parameters, {.momentum = 0.5});
  for (const double bad : {inf, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(lacks(sgd, SgdOptions{.learning_rate = bad}, {"learning_rate: expected a finite number"}) == "");
    CHECK(lacks(sgd, SgdOptions{.momentum = bad}, {"momentum: expected a finite number"}) == "");
    CHECK(lacks(sgd, SgdOptions{.weight_decay = bad}, {"weight_decay: expected a finite number"}) == "");
  }
  CHECK(lacks(sgd, SgdOptions{.learning_rate = 1e39}, {"learning_rate", "scalar holds, got 1e+39"}) == "");
  CHECK(lacks(sgd, SgdOptions{.momentum = 1e39}, {"momentum", "scalar holds, got 1e+39"}) == "");
  CHECK(lacks(sgd, SgdOptions{.weight_decay = 1e39}, {"weight_decay", "scalar holds, got 1e+39"}) == "");

  const AdamW<float> adamw(parameters, {});
  for (const double bad : {inf, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(lacks(adamw, AdamWOptions{.learning_rate = bad}, {"learning_rate: expected a finite"}) == "");
    CHECK(lacks(adamw, AdamWOptions{.beta1 = bad}, {"beta1: expected at least 0 and below 1"}) == "");
    CHECK(lacks(adamw, AdamWOptions{.beta2 = bad}, {"beta2: expected at least 0 and below 1"}) == "");
    CHECK(lacks(adamw, AdamWOptions{.epsilon = bad}, {"epsilon: expected a finite number above 0"}) == "");
    CHECK(lacks(adamw, AdamWOptions{.weight_decay = bad}, {"weight_decay: expected a finite"}) == "");
  }
  CHECK(lacks(adamw, AdamWOptions{.learning_rate = 1e39}, {"learning_rate", "got 1e+39"}) == "");
  CHECK(lacks(adamw, AdamWOptions{.beta1 = 1 - 1e-9}, {"beta1", "does not round to 1", "got 1"}) == "");
  CHECK(lacks(adamw, AdamWOptions{.beta2 = 1 - 1e-9}, {"beta2", "does not round to 1", "got 1"}) == "");
  CHECK(lacks(adamw, AdamWOptions{.epsilon = 1e-50}, {"epsilon", "does not round to 0", "1e-50"}) == "");
  CHECK(lacks(adamw, AdamWOptions{.epsilon = 1e39}, {"epsilon", "scalar holds, got 1e+39"}) == "");
  CHECK(lacks(adamw, AdamWOptions{.weight_decay = 1e39}, {"weight_decay", "got 1e+39"}) == "");
  // Each fits, but not what a step makes of both.
  CHECK(lacks(adamw, AdamWOptions{.learning_rate = 1e20, .weight_decay = 1e20},
              {"learning_rate * weight_decay", "got 1e+40"}) == "");
  CHECK(lacks(adamw, AdamWOptions{.learning_rate = 1e35, .beta1 = 1 - 1e-6, .weight_decay = 0},
              {"learning_rate / (1 - beta1)", "got 1e+41"}) == "");
  CHECK(AdamW<double>({}, {.beta2 = 1 - 1e-9, .epsilon = 1e-50}).options().epsilon == 1e-50);
}

TEST_CASE("optimisers refuse a negative number of steps", "[sgd][adamw]") {
  const auto lacks = [](auto optimizer) {
    optimizer.set_steps(3);
    const std::string error = error_lacks<std::invalid_argument>([&] { optimizer.set_steps(-1); },
                                                                 {"steps: expected at least 0, got -1"});
    if (error != "") return error;
    return std::string(optimizer.steps() == 3 ? "" : "steps have changed");
  };
  CHECK(lacks(Sgd<float>({}, {})) == "");
  CHECK(lacks(AdamW<float>({}, {})) == "");
}

TEST_CASE("the norm of all gradients is clipped as one", "[gradient_norm]") {
  std::vector<double> a{3, 0}, b{-4};
  const Parameters<double> gradients{{"a", a}, {"b", b}};
  CHECK(gradient_norm(gradients) == 5);
  CHECK(clip_gradient_norm(gradients, 6.0) == 5);
  CHECK(a == std::vector<double>{3, 0});
  CHECK(clip_gradient_norm(gradients, 2.0) == 5);
  CHECK(a[0] == Approx(3 * 2 / (5 + 1e-6)).epsilon(1e-14));
  CHECK(b[0] == Approx(-4 * 2 / (5 + 1e-6)).epsilon(1e-14));
  CHECK(error_lacks<std::invalid_argument>([&] { clip_gradient_norm(gradients, 0.0); },
                                           {"max_norm", "got 0"}) == "");
  b[0] = std::numeric_limits<double>::quiet_NaN();
  clip_gradient_norm(gradients, 2.0);
  CHECK(std::isnan(a[0]));
}

}  // namespace optimizers_test
}  // namespace

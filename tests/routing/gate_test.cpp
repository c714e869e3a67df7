#include <cmath>
#include <limits>
#include <numbers>
#include <stdexcept>
#include <vector>

#include <meo/routing/gate.hpp>

#include "reference/library.hpp"
#include "reference/reference.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/random.hpp"

namespace {
namespace gate_test {

using namespace meo;
using namespace meo::test;

template <class S, int N>
Routing<S> route(const Gate<S, N>& gate, const Matrix<S>& z, const Noise<S>& noise = {}) {
  Routing<S> routing;
  GateWorkspace<S> workspace;
  gate.route(MatrixView<S>(z), noise, routing, workspace);
  return routing;
}

/// A gate that hands its input through: the rows of z are the logits.
template <class S>
Gate<S> identity_gate(Index num_experts, Index top_k) {
  Gate<S> gate(num_experts, num_experts, top_k);
  gate.set_weight(Matrix<S>::Identity(num_experts, num_experts));
  return gate;
}

Matrix<double> row(std::initializer_list<double> values) {
  Matrix<double> result(1, Index(values.size()));
  std::copy(values.begin(), values.end(), result.data());
  return result;
}

TEMPLATE_TEST_CASE("a gate computes what the reference does", "[gate]", (Gate<float>), (Gate<double>),
                   (Gate<float, 6>), (Gate<double, 6>), (Gate<long double>)) {
  using S = std::decay_t<decltype(std::declval<TestType>().weight()(0, 0))>;
  Generator rng(91);
  for (const bool noisy : {false, true}) {
    for (Index k = 1; k <= 6; ++k) {
      for (const Index rows : {0, 1, 7, 30}) {
        reference::Layer<S> layer;
        layer.top_k = k;
        layer.experts.resize(6);
        layer.loss_coefficient = 0.125;
        layer.noise_epsilon = 0.25;
        layer.gate_weight = random_matrix<S>(rng, 5, 6);
        layer.noise_weight = random_matrix<S>(rng, 5, 6);
        TestType gate(5, 6, k, {.loss_coefficient = 0.125, .noise_epsilon = 0.25});
        gate.set_weight(layer.gate_weight);
        gate.set_noise_weight(layer.noise_weight);

        reference::Gating<S> expected;
        Matrix<S> z, noise;
        do {
          z = random_matrix<S>(rng, rows, 5);
          noise = noisy ? random_normal<S>(rng, rows, 6) : Matrix<S>();
          expected = reference::gate(layer, Bounded<S>::exact(z), noise);
        } while (!expected.decided);
        reference::check_routing(route(gate, z, noisy ? Noise<S>(noise) : Noise<S>()), expected);
      }
    }
  }
}

TEST_CASE("a gate keeps the largest logits, in order, ties by index", "[gate]") {
  const auto selected = [](Index k, const Matrix<double>& logits) {
    return route(identity_gate<double>(logits.cols(), k), logits).experts;
  };
  CHECK(selected(1, row({1, 5, 2, 4})) == std::vector<Index>{1});
  CHECK(selected(3, row({1, 5, 2, 4})) == std::vector<Index>{1, 3, 2});
  CHECK(selected(4, row({1, 5, 2, 4})) == std::vector<Index>{1, 3, 2, 0});
  CHECK(selected(2, row({3, 3, 3, 3})) == std::vector<Index>{0, 1});
  CHECK(selected(2, row({1, 3, 3, 3})) == std::vector<Index>{1, 2});
  CHECK(selected(3, row({3, 1, 3, 1})) == std::vector<Index>{0, 2, 1});
  CHECK(selected(2, row({-1, -5, -1, -0.5})) == std::vector<Index>{3, 0});
  CHECK(selected(2, row({-0.0, 0.0, -0.0})) == std::vector<Index>{0, 1});
  CHECK(selected(2, row({1e300, -1e300, 1e308})) == std::vector<Index>{2, 0});
}

TEST_CASE("a gate's weights are a softmax over the selected logits alone", "[gate]") {
  const auto routing = route(identity_gate<double>(3, 2), row({std::log(3.0), 100, 100 + std::log(3.0)}));
  CHECK(routing.weights[0] == Approx(0.75));
  CHECK(routing.weights[1] == Approx(0.25));
  CHECK(route(identity_gate<float>(3, 3), Matrix<float>(Matrix<float>::Constant(1, 3, 3e38f))).weights ==
        std::vector<float>(3, 1.f / 3.f));
}

TEST_CASE("without noise the load counts selections", "[gate]") {
  Matrix<double> z(3, 3);
  z << 3, 2, 1,  //
      1, 2, 3,   //
      3, 1, 2;
  const auto routing = route(identity_gate<double>(3, 2), z);
  CHECK(routing.load == std::vector<double>{2, 2, 2});
  CHECK(route(identity_gate<double>(3, 1), z).load == std::vector<double>{2, 0, 1});
}

TEST_CASE("with noise the load is the chance of being selected again", "[gate]") {
  // σ = softplus(0) + 0.01 throughout; the noise lifts expert 2 from last to first.
  const double sigma = std::log(2.0) + 0.01;
  const auto phi = [](double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; };
  Matrix<double> noise = Matrix<double>::Zero(1, 3);
  noise(0, 2) = 4 / sigma;
  const auto routing = route(identity_gate<double>(3, 1), row({2, 1, 0}), Noise<double>(noise));
  CHECK(routing.experts == std::vector<Index>{2});
  CHECK(routing.load[0] == Approx(phi((2 - 4) / sigma)));  // has to beat the selected one
  CHECK(routing.load[1] == Approx(phi((1 - 4) / sigma)));
  CHECK(routing.load[2] == Approx(phi((0 - 2) / sigma)));  // has to stay above the first rejected one
}

TEST_CASE("where places K and K + 1 tie, an expert has to beat the last that is selected", "[gate]") {
  constexpr double coefficient = 0.5, epsilon = 0.3;
  const Gate<double> zero(1, 3, 1, {.loss_coefficient = coefficient, .noise_epsilon = epsilon});
  Gate<double> gate = zero, gradients = zero;
  gate.set_weight((Matrix<double>(1, 3) << 0.5, 0.5, -0.25).finished());
  const Matrix<double> z = Matrix<double>::Ones(1, 1);
  const Matrix<double> noise = (Matrix<double>(1, 3) << 1, 1, -2).finished();
  Routing<double> routing;
  GateWorkspace<double> decision;
  gate.route(z, Noise<double>(noise), routing, decision);
  REQUIRE(decision.noisy_logits[0] == decision.noisy_logits[1]);
  REQUIRE(routing.experts == std::vector<Index>{0});

  // All three have to beat expert 0, the last selected: a gradient of each distance goes to it as well.
  const double sigma = std::log(2.0) + epsilon, beaten = 0.5 + sigma;
  std::vector<double> of_load(3), term(3);
  add_cv_squared_gradient<double>(routing.load, coefficient, of_load);
  for (std::size_t j = 0; j < 3; ++j) {
    const double distance = ((j < 2 ? 0.5 : -0.25) - beaten) / sigma;
    term[j] = of_load[j] * std::exp(-distance * distance / 2) / std::sqrt(2 * std::numbers::pi) / sigma;
  }
  GateGradientWorkspace<double> workspace;
  const std::vector<double> d_weights{0};
  Matrix<double> dz(1, 1);
  gate.backward({z, routing, decision}, d_weights, 1, gradients, dz, false, workspace);
  const Matrix<double> d = gradients.weight();
  CHECK(std::abs(term[2]) > 0.01);
  CHECK(d(0, 0) == Approx(-term[1] - term[2]).epsilon(1e-12));
  CHECK(d(0, 1) == Approx(term[1]).epsilon(1e-12));
  CHECK(d(0, 2) == Approx(term[2]).epsilon(1e-12));
}

TEST_CASE("with noise and all experts selected the load is a count", "[gate]") {
  const Matrix<double> noise = Matrix<double>::Random(2, 3);
  const auto routing =
      route(identity_gate<double>(3, 3), Matrix<double>(Matrix<double>::Random(2, 3)), Noise<double>(noise));
  CHECK(routing.load == std::vector<double>{2, 2, 2});
}

TEST_CASE("large noise weights do not overflow", "[gate]") {
  Gate<float> gate = identity_gate<float>(2, 1);
  gate.set_noise_weight(Matrix<float>::Identity(2, 2) * 1000);
  const Matrix<float> z = Matrix<float>::Constant(1, 2, -1), up = Matrix<float>::Constant(1, 2, 1);
  const Matrix<float> noise = Matrix<float>::Constant(1, 2, 0.5f);
  CHECK(std::isfinite(route(gate, z, Noise<float>(noise)).loss));
  CHECK(std::isfinite(route(gate, up, Noise<float>(noise)).loss));
}

TEST_CASE("a new gate selects the first experts with equal weights", "[gate]") {
  const Gate<double> gate(3, 4, 2);
  const auto routing = route(gate, Matrix<double>(Matrix<double>::Random(2, 3)));
  CHECK(routing.experts == std::vector<Index>{0, 1, 0, 1});
  CHECK(routing.weights == std::vector<double>(4, 0.5));
}

TEST_CASE("a gate refuses sizes and inputs that do not fit", "[gate]") {
  using Invalid = std::invalid_argument;
  const auto make = [](Index features, Index experts, Index k) {
    static_cast<void>(Gate<float>(features, experts, k));
  };
  CHECK(error_lacks<Invalid>([&] { make(0, 2, 1); }, {"at least 1", "got 0"}) == "");
  CHECK(error_lacks<Invalid>([&] { make(2, 0, 1); }, {"at least 1", "got 0"}) == "");
  CHECK(error_lacks<Invalid>([&] { make(2, 3, 4); }, {"top_k", "num_experts = 3", "got 4"}) == "");
  CHECK(error_lacks<Invalid>([&] { make(2, 3, 0); }, {"top_k", "num_experts = 3", "got 0"}) == "");
  CHECK(error_lacks<Invalid>([] { static_cast<void>(Gate<float, 4>(2, 3, 1)); },
                             {"num_experts", "expected 4", "got 3"}) == "");
  const Gate<float> gate(2, 3, 1);
  const Matrix<float> z = Matrix<float>::Zero(2, 3);
  CHECK(error_lacks<Invalid>([&] { route(gate, z); }, {"gate input", "expected 2", "got 3"}) == "");
}

TEST_CASE("a gate names the first row of logits that are not finite", "[gate]") {
  Matrix<double> z = Matrix<double>::Zero(4, 2);
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity(), 1e308}) {
    z(2, 1) = z(3, 0) = bad;
    Gate<double> gate = identity_gate<double>(2, 1);
    gate.set_weight(Matrix<double>::Identity(2, 2) * 10);
    CHECK(error_lacks<std::domain_error>([&] { route(gate, z); }, {"finite", "row 2"}) == "");
  }
}

}  // namespace gate_test
}  // namespace

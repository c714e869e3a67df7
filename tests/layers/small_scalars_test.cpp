// Scalars of 16 bits: sums are formed in float and rounded where they are stored. All data is positive, so
// that sums of magnitudes are the sums themselves, and n roundings to 16 bits on the way to a result leave it
// within γ_n of itself; a sum formed in 16 bits would stop growing far below.

#include <bit>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <meo/experts/activation.hpp>
#include <meo/experts/any_activation.hpp>
#include <meo/experts/evaluate.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/training/adamw.hpp>
#include <meo/training/gradient_norm.hpp>
#include <meo/training/sgd.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace small_scalars_test {

using namespace meo;
using namespace meo::test;

/// γ of n roundings to S, of 11 or 8 bits, and m to float.
template <class S>
double roundings(Index n, Index m) {
  const double nu = static_cast<double>(n) * (std::is_same_v<S, Eigen::half> ? 0x1p-11 : 0x1p-8);
  const double of_s = nu / (1 - nu), of_float = static_cast<double>(gamma<float>(m));
  return of_s + of_float + of_s * of_float;
}

/// Uniform in [0, 1), as S rounds it.
template <class S>
Matrix<S> random_positive(Generator& rng, Index rows, Index cols) {
  Matrix<S> matrix(rows, cols);
  for (Index i = 0; i < matrix.size(); ++i) matrix.data()[i] = static_cast<S>(uniform<float>(rng));
  return matrix;
}

template <class S>
Matrix<double> wide(const Matrix<S>& matrix) {
  return matrix.template cast<double>();
}

template <class S>
std::string beyond(const Matrix<S>& actual, const Matrix<double>& expected, double relative) {
  return disagreement(wide(actual), expected, Matrix<double>(relative * expected.cwiseAbs()));
}

template <class To, class From>
Routing<To> routing_of(const Routing<From>& from) {
  Routing<To> to;
  to.rows = from.rows;
  to.num_experts = from.num_experts;
  to.top_k = from.top_k;
  to.experts = from.experts;
  for (const From& weight : from.weights) to.weights.push_back(static_cast<To>(weight));
  return to;
}

/// Experts alone, forward and backward, of `lengths` tokens.
template <template <class, int, class...> class Layer, class S>
void check_experts(Index in, Index out, const std::vector<Index>& lengths) {
  constexpr Index experts = 3, top_k = 2;
  INFO(in << " -> " << out << " features");
  Generator rng(23);
  LayerOptions options{.in_features = in, .out_features = out, .num_experts = experts, .top_k = top_k};
  options.merge_order = MergeOrder::merge_first;
  Layer<S, Eigen::Dynamic> layer(options), gradients(options);
  Layer<double, Eigen::Dynamic> exact(options), exact_gradients(options);
  for (Index e = 0; e < experts; ++e) {
    layer.set_weight(e, random_positive<S>(rng, out, in));
    layer.set_bias(e, random_positive<S>(rng, out, 1).col(0));
    exact.set_weight(e, wide(layer.weight(e)));
    exact.set_bias(e, layer.bias(e).template cast<double>());
  }
  const Sequences sequences = Sequences::from_lengths(lengths);
  const Index tokens = sequences.tokens();
  Routing<S> routing;
  routing.rows = sequences.size();
  routing.num_experts = experts;
  routing.top_k = top_k;
  for (Index b = 0; b < sequences.size(); ++b) {
    for (const Index e : {b % experts, (b + 1) % experts}) {
      routing.experts.push_back(e);
      routing.weights.push_back(static_cast<S>(0.25 + 0.5 * uniform<double>(rng)));
    }
  }
  const Routing<double> exact_routing = routing_of<double>(routing);
  const Matrix<S> x = random_positive<S>(rng, tokens, in), dy = random_positive<S>(rng, tokens, out);
  Matrix<S> y(tokens, out), dx(tokens, in);
  Matrix<double> exact_y(tokens, out), exact_dx(tokens, in);
  Context<S> context;
  Context<double> exact_context;
  std::vector<S> d_weights(routing.weights.size(), S(0));
  std::vector<double> exact_d_weights(routing.weights.size());
  const Inputs<S> inputs{.sequences = &sequences};
  const Inputs<double> exact_inputs{.sequences = &sequences};
  layer.forward_routed(x, inputs, routing, y, context);
  exact.forward_routed(wide(x), exact_inputs, exact_routing, exact_y, exact_context);
  layer.backward_routed(x, inputs, routing, context, dy, gradients, dx, d_weights);
  exact.backward_routed(wide(x), exact_inputs, exact_routing, exact_context, wide(dy), exact_gradients,
                        exact_dx, exact_d_weights);

  // What is merged, or an expert's output, and each of K sums of them.
  CHECK(beyond(y, exact_y, roundings<S>(1 + top_k, in + top_k + 2)) == "");
  // The same, and MoE's weights times its rows.
  CHECK(beyond(dx, exact_dx, roundings<S>(2 + top_k, out + top_k + 2)) == "");
  // A row times its weight, a part of the tokens, parts pairwise, and what the experts' sums go through.
  const Index parts = detail::num_parts(tokens, detail::serial_tokens<S>());
  const Index of_tokens = 2 + detail::pairwise_depth(2 * parts) + sequences.size();
  for (Index e = 0; e < experts; ++e) {
    const double relative = roundings<S>(of_tokens, tokens + sequences.size());
    CHECK(beyond(gradients.weight(e), exact_gradients.weight(e), relative) == "");
    CHECK(beyond(Matrix<S>(gradients.bias(e)), Matrix<double>(exact_gradients.bias(e)), relative) == "");
  }
  const Eigen::Map<const Matrix<S>> products(d_weights.data(), 1, Index(d_weights.size()));
  const Eigen::Map<const Matrix<double>> exact_products(exact_d_weights.data(), 1, products.size());
  CHECK(beyond(Matrix<S>(products), Matrix<double>(exact_products),
               roundings<S>(of_tokens + 2, tokens + (in + 1) * out)) == "");
}

TEMPLATE_TEST_CASE("sums of 16 bits are formed in float", "[layer]", Eigen::half, Eigen::bfloat16) {
  // Small enough that no half overflows; more inputs, outputs and tokens than a block has of each.
  check_experts<MoeLayer, TestType>(3000, 2, {3, 1});
  check_experts<MeoLayer, TestType>(3000, 2, {3, 1});
  check_experts<MoeLayer, TestType>(5, 400, {3, 1, 2});
  check_experts<MeoLayer, TestType>(5, 400, {3, 1, 2});
  check_experts<MoeLayer, TestType>(3, 4, {2600, 2000});
  check_experts<MeoLayer, TestType>(3, 4, {4500, 100});
}

TEMPLATE_TEST_CASE("a gate of 16 bits counts and weighs as one of double does", "[gate]", Eigen::half,
                   Eigen::bfloat16) {
  using S = TestType;
  constexpr Index rows = 100'000, features = 5, experts = 3;
  Generator rng(29);
  const RoutingOptions options{.loss_coefficient = 0.25, .noise_epsilon = 0.125};
  Gate<S> gate(features, experts, experts, options), gradients = gate;
  Gate<double> exact(features, experts, experts, options), exact_gradients = exact;
  gate.set_weight(random_positive<S>(rng, features, experts));
  exact.set_weight(wide(gate.weight()));
  const Matrix<S> z = random_positive<S>(rng, rows, features);
  const Matrix<double> exact_z = wide(z);
  Routing<S> routing;
  Routing<double> exact_routing;
  GateWorkspace<S> decision;
  GateWorkspace<double> exact_decision;
  gate.route(z, {}, routing, decision);
  exact.route(exact_z, {}, exact_routing, exact_decision);
  const Matrix<double> gates = wide(routing.dense()), exact_gates = exact_routing.dense();
  const Matrix<double> logits = exact_z * exact.weight();
  // Each logit is rounded once, by at most delta, which changes a weight by a factor exp(2 delta) at most.
  const double delta = roundings<S>(1, features) * logits.maxCoeff();
  const double of_weight = std::expm1(2 * delta) + roundings<S>(1, 2 * function_roundings + experts + 1);
  CHECK(disagreement(gates, exact_gates, Matrix<double>(of_weight * exact_gates)) == "");
  for (std::size_t e = 0; e < experts; ++e) {
    CHECK(routing.load[e] == rows);
    const double sum = gates.col(Index(e)).sum();  // of the weights as they were rounded
    CHECK(std::abs(routing.importance[e] - sum) <= double(gamma<float>(detail::serial_terms + 12)) * sum);
  }

  // Backward of the same decision; of the loss alone: a sum over so many rows is more than a half holds.
  exact_routing = routing_of<double>(routing);
  exact_routing.importance.assign(routing.importance.begin(), routing.importance.end());
  exact_routing.load.assign(routing.load.begin(), routing.load.end());
  const Matrix<S> d_weights = random_positive<S>(rng, rows, experts);
  std::vector<S> in_order(routing.weights.size());
  std::vector<double> exact_in_order(routing.weights.size());
  for (std::size_t i = 0; i < in_order.size(); ++i) {
    in_order[i] = d_weights.data()[i];
    exact_in_order[i] = static_cast<double>(in_order[i]);
  }
  Matrix<S> dz(rows, features);
  Matrix<double> exact_dz(rows, features);
  GateGradientWorkspace<S> workspace;
  GateGradientWorkspace<double> exact_workspace;
  gate.backward({z, routing, decision}, in_order, S(1), gradients, dz, false, workspace);
  exact.backward({exact_z, exact_routing, exact_decision}, exact_in_order, 1.0, exact_gradients, exact_dz,
                 false, exact_workspace);
  Index wrong = 0;
  for (std::size_t i = 0; i < in_order.size(); ++i) {
    // w (d − mean), |d| ≤ 1 and the loss's part beside it.
    const double expected = exact_workspace.logits[i], weight = 1 + std::abs(exact_workspace.importance[0]);
    const double bound = roundings<S>(1, 0) * std::abs(expected) + 2 * double(gamma<float>(20)) * weight;
    if (!(std::abs(static_cast<double>(workspace.logits[i]) - expected) <= bound)) ++wrong;
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("activations of 16 bits are rounded once", "[activation]", Eigen::half, Eigen::bfloat16) {
  using S = TestType;
  const auto check = [](const auto& activation) {
    Index wrong = 0;
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
      const S x = Eigen::numext::bit_cast<S>(static_cast<std::uint16_t>(bits));
      if (!detail::is_finite(x) || std::abs(static_cast<double>(x)) > 30) continue;
      const auto w = static_cast<double>(x);
      const auto is_wrong = [&](const S& actual, double expected) {
        const double smallest = std::is_same_v<S, Eigen::half> ? 0x1p-24 : 0x1p-133;
        const double bound = roundings<S>(1, 0) * std::abs(expected) + smallest +
                             double(gamma<float>(2 * function_roundings)) * (1 + std::abs(w));
        return !(std::abs(static_cast<double>(actual) - expected) <= bound);
      };
      if (is_wrong(detail::evaluate(activation, x), activation(w))) ++wrong;
      if (is_wrong(detail::evaluate_derivative(activation, x), activation.derivative(w))) ++wrong;
    }
    CHECK(wrong == 0);
  };
  check(Relu{});
  check(Gelu{});
  check(GeluTanh{});
  check(Silu{});
  check(Identity{});
}

/// A step of training, with every part of a layer in it.
template <template <class, int, class...> class Layer, class S>
void check_training(AnyActivation activation, bool shared_gate) {
  std::mt19937_64 rng(31);
  FeedForward<Layer<S, Eigen::Dynamic>, AnyActivation> block(
      small_block(Level::token, 5, 6, true, shared_gate), activation);
  block.initialize(rng);
  auto gradients = block;
  set_zero(parameters(gradients));
  const Matrix<S> x = random_positive<S>(rng, 9, 5);
  Matrix<S> y(9, 5), dx(9, 5);
  FeedForwardContext<S> context;
  Inputs<S> inputs;
  inputs.noise = Noise<S>(rng);
  block.forward(x, inputs, y, context);
  block.backward(x, inputs, context, y, gradients, dx);
  for (Index i = 0; i < y.size(); ++i)
    CHECK((detail::is_finite(y.data()[i]) && detail::is_finite(dx.data()[i])));
  CHECK(gradient_norm(parameters(gradients)) > S(0));
  Sgd<S>(parameters(block), {.momentum = 0.5}).step(parameters(block), parameters(gradients));
  AdamW<S>(parameters(block), {}).step(parameters(block), parameters(gradients));
  for (const auto& range : parameters(block)) {
    for (const S& value : range.values) CHECK(detail::is_finite(value));
  }
}

TEMPLATE_TEST_CASE("blocks of 16 bits are trained", "[feed_forward]", Eigen::half, Eigen::bfloat16) {
  using Kind = AnyActivation::Kind;
  check_training<MeoLayer, TestType>(Kind::gelu, true);
  check_training<MeoLayer, TestType>(Kind::gelu_tanh, false);
  check_training<MoeLayer, TestType>(Kind::silu, true);
  check_training<MoeLayer, TestType>(Kind::relu, false);
}

TEMPLATE_TEST_CASE("optimisers of 16 bits round a step once", "[optimizer]", Eigen::half, Eigen::bfloat16) {
  using S = TestType;
  std::vector<S> p{S(1), S(-0.5)}, g{S(0.125), S(0.001)};
  std::vector<double> exact_p{1, -0.5}, exact_g{0.125, static_cast<double>(g[1])};
  AdamW<S> adamw(Parameters<S>{{"p", p}}, {.learning_rate = 0.01});
  AdamW<double> exact(Parameters<double>{{"p", exact_p}}, {.learning_rate = 0.01});
  adamw.step({{"p", p}}, {{"p", g}});
  exact.step({{"p", exact_p}}, {{"p", exact_g}});
  for (std::size_t i = 0; i < p.size(); ++i) {
    CHECK(std::abs(static_cast<double>(p[i]) - exact_p[i]) <= roundings<S>(1, 20) * std::abs(exact_p[i]));
  }
}

}  // namespace small_scalars_test
}  // namespace

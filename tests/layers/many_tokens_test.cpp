// Sums over a million tokens stay within the bound of sums of parts that are added pairwise; one after
// another, floats would be off by a percent.

#include <cmath>
#include <vector>

#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/routing/gate.hpp>
#include <meo/training/gradient_norm.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace many_tokens_test {

using namespace meo;
using namespace meo::test;

constexpr Index tokens = 1'000'000;

/// Additions on the way from a term to the sum of a million, in parts of so many.
constexpr Index additions(Index part) {
  return part + detail::pairwise_depth(detail::num_parts(tokens, part)) + 2;
}

static_assert(additions(detail::serial_terms) < 150);
static_assert(detail::serial_tokens<float>() <= 512 && detail::serial_tokens<double>() <= 512);
static_assert(detail::Blocks{}.serial_merges + detail::max_gradient_merges <= 512);

template <class S>
bool is_within(S actual, Wide<S> expected, Wide<S> bound) {
  const Wide<S> error = std::abs(Wide<S>(actual) - expected);
  UNSCOPED_INFO("error " << error << ", bound " << bound << ", expected " << expected);
  return error <= bound;
}

template <class S>
LayerOptions two_experts() {
  return {.in_features = 2,
          .out_features = 1,
          .num_experts = 2,
          .top_k = 2,
          .routing = {.level = Level::sequence}};
}

TEMPLATE_TEST_CASE("the gate's mean of a million tokens", "[layer]", float, double) {
  using S = TestType;
  const MeoLayer<S> layer(two_experts<S>());
  for (const Index count : {Index{10'000}, tokens}) {
    const Matrix<S> x = Matrix<S>::Constant(count, 2, S(0.1));
    Workspace<S> workspace;
    layer.route(x, {}, workspace);
    CHECK(is_within<S>(memory_of(workspace).router.gate_input[1], Wide<S>(S(0.1)),
                       gamma<S>(additions(detail::serial_terms) + 1) * Wide<S>(0.1)));
  }
}

TEMPLATE_TEST_CASE("importance and load of a million rows", "[gate]", float, double) {
  using S = TestType;
  Gate<S> gate(1, 3, 2);
  Matrix<S> weight(1, 3);
  weight << S(0.3), S(-0.2), S(0.1);
  gate.set_weight(weight);
  const S one = 1;
  const MatrixView<S> z(&one, tokens, 1, 0);  // one row again and again
  Routing<S> routing;
  GateWorkspace<S> workspace;
  const Matrix<S> noise = Matrix<S>::Constant(1, 3, S(0.25));
  for (const bool noisy : {false, true}) {
    const MatrixView<S> draws(noise.data(), tokens, 3, 0);
    gate.route(z, noisy ? Noise<S>(draws) : Noise<S>(), routing, workspace);
    const Wide<S> bound = gamma<S>(additions(detail::serial_terms));
    for (const std::size_t i : {0U, 1U}) {
      const auto e = static_cast<std::size_t>(routing.experts[i]);
      const Wide<S> expected = Wide<S>(routing.weights[i]) * tokens;
      CHECK(is_within<S>(routing.importance[e], expected, bound * expected));
    }
    Routing<S> once;
    gate.route({&one, 1, 1, 0}, noisy ? Noise<S>(noise) : Noise<S>(), once, workspace);
    for (std::size_t e = 0; e < 3; ++e) {
      const Wide<S> expected = Wide<S>(once.load[e]) * tokens;
      CHECK(is_within<S>(routing.load[e], expected, bound * expected));
    }
  }
}

TEST_CASE("load counts beyond 2^24 rows", "[gate]") {
  constexpr Index rows = (Index{1} << 24) + 2;
  const Gate<float> gate(1, 1, 1);
  const float one = 1;
  Routing<float> routing;
  GateWorkspace<float> workspace;
  gate.route({&one, rows, 1, 0}, {}, routing, workspace);
  CHECK(routing.load[0] == static_cast<float>(rows));
  CHECK(routing.load[0] > 0x1p24F);
  CHECK(routing.importance[0] == static_cast<float>(rows));
}

/// Gradients of weights and biases, whose terms are all dy, x being 1 or dy itself.
template <class S, class Layer>
void check_gradients(const std::vector<Index>& lengths, Index part) {
  INFO(lengths.size() << " sequences");
  const S value = S(0.1);
  const Layer layer(two_experts<S>());
  const Sequences sequences = Sequences::from_lengths(lengths);
  const Inputs<S> inputs{.sequences = &sequences};
  Matrix<S> x = Matrix<S>::Constant(tokens, 2, S(1));
  x.col(1).setConstant(value);
  const Matrix<S> dy = Matrix<S>::Constant(tokens, 1, value);
  Matrix<S> y(tokens, 1), dx(tokens, 2);
  Context<S> context;
  Layer gradients(layer.options());
  layer.forward(x, inputs, y, context);
  layer.backward(x, inputs, context, dy, gradients, dx);
  const Wide<S> weight = 0.5, sum = weight * Wide<S>(value) * tokens;  // of experts of equal weight
  const Wide<S> bound = gamma<S>(additions(part) + 4);
  for (const Index e : {0, 1}) {
    CHECK(is_within<S>(gradients.bias(e)(0), sum, bound * sum));
    CHECK(is_within<S>(gradients.weight(e)(0, 0), sum, bound * sum));
    CHECK(is_within<S>(gradients.weight(e)(0, 1), sum * Wide<S>(value), bound * sum * Wide<S>(value)));
  }
}

TEMPLATE_TEST_CASE("gradients of weights and biases of a million tokens", "[layer]", float, double) {
  using S = TestType;
  const Index part = detail::serial_tokens<S>();
  check_gradients<S, MoeLayer<S>>({tokens}, part);
  check_gradients<S, MeoLayer<S>>({tokens}, part);
  // In as many sequences: the merges' sums are formed in parts of one more group at most.
  const Index merges = detail::Blocks{}.serial_merges + detail::max_gradient_merges;
  check_gradients<S, MeoLayer<S>>(std::vector<Index>(tokens, 1), merges);
  check_gradients<S, MeoLayer<S>>(std::vector<Index>(1000, 1000), part + merges);
}

TEMPLATE_TEST_CASE("the gradient of one gate weight over a million tokens", "[layer]", float, double) {
  using S = TestType;
  LayerOptions options = two_experts<S>();
  MoeLayer<S> moe(options), moe_gradients(options);
  MeoLayer<S> meo(options), meo_gradients(options);
  Matrix<S> weight(1, 2);
  weight << S(0.3), S(0.7);
  moe.set_weight(1, weight);
  meo.set_weight(1, weight);
  const Matrix<S> x = Matrix<S>::Constant(tokens, 2, S(0.1)), dy = Matrix<S>::Constant(tokens, 1, S(0.3));
  Matrix<S> y(tokens, 1), dx(tokens, 2);
  Context<S> context;
  // dg of expert 1: Σ dy ⟨x, W⟩
  const Wide<S> product = Wide<S>(S(0.3)) * Wide<S>(S(0.1)) * (Wide<S>(S(0.3)) + Wide<S>(S(0.7)));
  const Wide<S> expected = product * tokens;
  const auto check = [&](const auto& layer, auto& gradients, Index part) {
    layer.forward(x, {}, y, context);
    layer.backward(x, {}, context, dy, gradients, dx);
    CHECK(is_within<S>(gradient_memory_of(context).weights[1], expected,
                       gamma<S>(additions(part) + 8) * expected));
  };
  check(moe, moe_gradients, detail::serial_terms);
  check(meo, meo_gradients, detail::serial_tokens<S>());
}

TEMPLATE_TEST_CASE("the gradient of one task's description over a million sequences", "[layer]", float,
                   double) {
  using S = TestType;
  LayerOptions options = two_experts<S>();
  options.routing.level = Level::task;
  options.routing.task_features = 1;
  options.routing.reduce_factor = 1;
  MoeLayer<S> layer(options), gradients(options);
  layer.task_projection().set_weight(Matrix<S>::Constant(1, 1, S(1)));
  Matrix<S> gate(1, 2), weight(1, 2);
  gate << S(0), S(0.1);
  weight << S(0.3), S(0.7);
  layer.gate().set_weight(gate);
  layer.set_weight(1, weight);
  const std::vector<Index> lengths(tokens, 1), tasks(tokens, 0);
  const Sequences sequences = Sequences::from_lengths(lengths);
  const Matrix<S> embedding = Matrix<S>::Constant(1, 1, S(1));
  const Inputs<S> inputs{.sequences = &sequences, .task_embeddings = embedding, .task_of_sequence = tasks};
  const Matrix<S> x = Matrix<S>::Constant(tokens, 2, S(0.1)), dy = Matrix<S>::Constant(tokens, 1, S(0.3));
  Matrix<S> y(tokens, 1), dx(tokens, 2);
  Context<S> context;
  layer.forward(x, inputs, y, context);
  layer.backward(x, inputs, context, dy, gradients, dx, S(0));
  const Wide<S> each = gradient_memory_of(context).router.gate_input[0], expected = each * tokens;
  CHECK(each != 0);
  CHECK(is_within<S>(context.task_embeddings_gradient()(0, 0), expected,
                     gamma<S>(additions(detail::serial_terms) + 2) * std::abs(expected)));
}

TEMPLATE_TEST_CASE("the norm of a million gradients", "[gradient_norm]", float, double) {
  using S = TestType;
  std::vector<S> values(tokens, S(0.1));
  const Wide<S> expected = Wide<S>(S(0.1)) * 1000;
  CHECK(is_within<S>(
      gradient_norm<S>({{"values", values}}), expected,
      (std::is_same_v<S, float> ? gamma<S>(3) : gamma<S>(additions(detail::serial_terms))) * expected));
}

}  // namespace many_tokens_test
}  // namespace

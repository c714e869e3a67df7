// Layers and blocks of a scalar of automatic differentiation: the derivatives that forward carries along are
// those that backward of a layer of doubles gives.

#include <random>
#include <vector>

#include <meo/autodiff.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace autodiff_test {

using namespace meo;
using namespace meo::test;

constexpr Index tokens = 5, features = 3;
using Dual = Eigen::AutoDiffScalar<Eigen::Matrix<double, tokens * features, 1>>;

/// Roundings granted to a derivative, in units of the largest: a few hundred operations lie on any way to
/// one.
constexpr Index most_roundings = 1000;

Matrix<Dual> constants(const Matrix<double>& values) { return values.cast<Dual>(); }

/// The derivatives by each of its elements are carried along.
Matrix<Dual> variables(const Matrix<double>& values) {
  Matrix<Dual> duals = constants(values);
  for (Index i = 0; i < values.size(); ++i)
    duals.data()[i].derivatives() = Eigen::Matrix<double, tokens * features, 1>::Unit(i);
  return duals;
}

Matrix<double> values_of(const Matrix<Dual>& duals) {
  return duals.unaryExpr([](const Dual& dual) { return dual.value(); });
}

template <class Layer, class Dualised>
void copy_layer(const Layer& from, Dualised& to) {
  for (Index e = 0; e < from.num_experts(); ++e) {
    to.set_weight(e, constants(from.weight(e)));
    to.set_bias(e, constants(from.bias(e)).col(0));
  }
  if (from.options().has_router) {
    to.gate().set_weight(constants(from.gate().weight()));
    to.gate().set_noise_weight(constants(from.gate().noise_weight()));
  }
  if constexpr (test::is_meo<Layer>) {
    if (from.options().routing.level != Level::token) return;
    to.token_attention().down().set_weight(constants(from.token_attention().down().weight()));
    to.token_attention().down().set_bias(constants(from.token_attention().down().bias()).col(0));
    to.token_attention().up().set_weight(constants(from.token_attention().up().weight()));
    to.token_attention().up().set_bias(constants(from.token_attention().up().bias()).col(0));
  }
}

template <class Layer, class Activation, class DualLayer>
void copy_layer(const FeedForward<Layer, Activation>& from, FeedForward<DualLayer, Activation>& to) {
  copy_layer(from.up(), to.up());
  copy_layer(from.gate_up(), to.gate_up());
  copy_layer(from.down(), to.down());
}

/// With the loss Σ y · cotangent + balance loss.
template <template <class> class Context, class Layer, class DualLayer, class LossOf>
void check(Layer layer, DualLayer dual, Index gated_rows, Index out, const LossOf& loss_of) {
  Generator rng(37);
  std::mt19937_64 start(38);
  layer.initialize(start);
  if constexpr (requires { layer.gate(); })
    layer.gate().set_noise_weight(random_matrix<double>(rng, features, 4));
  copy_layer(layer, dual);
  const Sequences sequences = Sequences::from_lengths({3, 2});
  const Matrix<double> x = random_matrix<double>(rng, tokens, features);
  const Matrix<double> noise = random_normal<double>(rng, gated_rows, 4);
  const Matrix<double> cotangent = random_matrix<double>(rng, tokens, out);
  Inputs<double> inputs{.sequences = &sequences, .noise = Noise<double>(noise)};
  Matrix<double> y(tokens, out), dx(tokens, features);
  Context<double> context;
  Layer gradients = layer;
  layer.forward(x, inputs, y, context);
  layer.backward(x, inputs, context, cotangent, gradients, dx);

  const Matrix<Dual> dual_x = variables(x), dual_noise = constants(noise), dual_dy = constants(cotangent);
  Inputs<Dual> dual_inputs{.sequences = &sequences, .noise = Noise<Dual>(dual_noise)};
  Matrix<Dual> dual_y(tokens, out), dual_dx(tokens, features);
  Context<Dual> dual_context;
  DualLayer dual_gradients = dual;
  dual.forward(dual_x, dual_inputs, dual_y, dual_context);
  Dual loss = loss_of(dual_context);
  for (Index i = 0; i < dual_y.size(); ++i) loss += dual_y.data()[i] * cotangent.data()[i];

  const double tolerance = static_cast<double>(gamma<double>(most_roundings));
  CHECK(disagreement_in_max_norm(values_of(dual_y), y, tolerance) == "");
  const Matrix<double> derivatives =
      Eigen::Map<const Matrix<double>>(loss.derivatives().data(), tokens, features);
  CHECK(disagreement_in_max_norm(derivatives, dx, tolerance) == "");

  dual.backward(dual_x, dual_inputs, dual_context, dual_dy, dual_gradients, dual_dx);
  CHECK(disagreement_in_max_norm(values_of(dual_dx), dx, tolerance) == "");
}

TEMPLATE_TEST_CASE("a layer's derivatives are backward's", "[layer][autodiff]",
                   (std::pair<MoeLayer<double>, MoeLayer<Dual>>),
                   (std::pair<MeoLayer<double>, MeoLayer<Dual>>)) {
  using Layer = typename TestType::first_type;
  using DualLayer = typename TestType::second_type;
  for (const Level level : {Level::token, Level::sequence}) {
    const LayerOptions options = small_layer(level, features, 4);
    const Layer layer(options);
    check<Context>(layer, DualLayer(options), layer.gated_rows(tokens, 2), 4,
                   [](const auto& context) { return context.routing.loss; });
  }
}

TEMPLATE_TEST_CASE("a block's derivatives are backward's", "[feed_forward][autodiff]", Relu, Gelu, GeluTanh,
                   Silu, Identity) {
  const FeedForwardOptions options = small_block(Level::sequence, features, 4, true, true);
  check<FeedForwardContext>(FeedForward<MeoLayer<double>, TestType>(options),
                            FeedForward<MeoLayer<Dual>, TestType>(options), 2, features,
                            [](const auto& context) { return context.up.routing.loss; });
}

}  // namespace autodiff_test
}  // namespace

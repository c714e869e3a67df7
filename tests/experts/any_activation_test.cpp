#include <string_view>
#include <type_traits>

#include <meo/experts/activate.hpp>
#include <meo/experts/any_activation.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace any_activation_test {

using namespace meo;
using namespace meo::test;
using Kind = AnyActivation::Kind;

// The number of features is no multiple of a packet.
constexpr FeedForwardOptions options{.features = 5, .hidden_features = 7, .num_experts = 3, .top_k = 2};

/// y, dx and the gradient of up's experts of a block that is always the same but for its activation.
template <class Activation>
Matrix<float> results(Activation activation, bool gated) {
  FeedForwardOptions all = options;
  all.gated = gated;
  FeedForward<MeoLayer<float>, Activation> block(all, activation), gradients(all, activation);
  Generator rng(7);
  block.initialize(rng);
  const Matrix<float> x = random_normal<float>(rng, 6, 5), dy = random_normal<float>(rng, 6, 5);
  Matrix<float> y(6, 5), dx(6, 5);
  FeedForwardContext<float> context;
  block.forward(x, {}, y, context);
  block.backward(x, {}, context, dy, gradients, dx);
  Matrix<float> both(19, 5);
  both << y, dx, gradients.up().weight(0);
  return both;
}

template <class Activation>
void check(std::string_view name, Kind kind) {
  const auto any = AnyActivation::from_name(name);
  REQUIRE(any.has_value());
  CHECK(any->kind() == kind);
  INFO(name);
  for (const double x : {-3.5, -0.25, 0.0, 1.75}) {
    CHECK((*any)(x) == Activation()(x));
    CHECK(any->derivative(x) == Activation().derivative(x));
  }
  any->visit([](const auto& f) { CHECK(std::is_same_v<std::decay_t<decltype(f)>, Activation>); });
  for (const bool gated : {false, true})
    CHECK(bit_difference(results(*any, gated), results(Activation(), gated)) == "");
}

// So that it is chosen once for an array, and not for every value.
static_assert(detail::ChosenActivation<AnyActivation> && !detail::ChosenActivation<Gelu>);

TEST_CASE("an activation chosen at run time has the bits of the one it stands for", "[activation]") {
  check<Relu>("relu", Kind::relu);
  check<Gelu>("gelu", Kind::gelu);
  check<GeluTanh>("gelu_tanh", Kind::gelu_tanh);
  check<Silu>("silu", Kind::silu);
  check<Identity>("identity", Kind::identity);
  CHECK(!AnyActivation::from_name("GELU"));
  CHECK(!AnyActivation::from_name(""));
}

}  // namespace any_activation_test
}  // namespace

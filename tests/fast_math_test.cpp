// With -ffast-math a compiler takes it that there are no NaN and no infinities; that input is finite is
// checked all the same. A program of its own, all of which is compiled with that flag.

#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include <meo/finite.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/training/adamw.hpp>
#include <meo/training/gradient_norm.hpp>
#include <meo/training/sgd.hpp>

#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/options.hpp"

#if !defined(__FAST_MATH__)
#error "this test is about -ffast-math"
#endif

namespace {

using namespace meo;
using namespace meo::test;

template <class S>
std::vector<S> not_finite() {
  using Limits = std::numeric_limits<S>;
  return {Limits::quiet_NaN(), -Limits::quiet_NaN(), Limits::signaling_NaN(), Limits::infinity(),
          -Limits::infinity()};
}

TEMPLATE_TEST_CASE("finite numbers are told from others", "[finite]", float, double, long double, Eigen::half,
                   Eigen::bfloat16) {
  using S = TestType;
  using Limits = std::numeric_limits<S>;
  for (const S& value : not_finite<S>()) CHECK(!detail::is_finite(value));
  const std::vector<S> finite{
      S(0), -S(0), S(1), S(-2.5), (Limits::max)(), Limits::lowest(), (Limits::min)(), Limits::denorm_min()};
  for (const S& value : finite) CHECK(detail::is_finite(value));
}

TEST_CASE("every float is told", "[finite]") {
  std::uint32_t wrong = 0;
  for (std::uint32_t high = 0; high < 0x10000; ++high) {
    for (const std::uint32_t low : {0U, 1U, 0xffffU}) {
      const std::uint32_t bits = high << 16 | low;
      const bool expected = (bits >> 23 & 0xff) != 0xff;
      if (detail::is_finite(std::bit_cast<float>(bits)) != expected) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("a gate refuses logits that are not finite", "[gate]", MoeLayer<float>, MeoLayer<float>,
                   MeoLayer<Eigen::bfloat16>) {
  using S = typename TestType::Scalar;
  std::mt19937_64 rng(3);
  for (const Level level : {Level::token, Level::sequence}) {
    TestType layer(small_layer(level, 7, 5));
    layer.initialize(rng);
    for (const S& value : not_finite<S>()) {
      Matrix<S> x = Eigen::MatrixXd::Random(9, 7).cast<S>();
      x(4, 3) = value;
      CHECK_THROWS_AS(layer.forward(x), std::domain_error);
    }
  }
}

TEST_CASE("a routing of weights that are not finite is refused", "[layer]") {
  MeoLayer<float> layer(small_layer(Level::sequence, 7, 5));
  const Matrix<float> x = Matrix<float>::Ones(3, 7);
  Workspace<float> workspace;
  Routing<float> routing = layer.route(x, {}, workspace);
  Matrix<float> y(3, 5);
  for (const float value : not_finite<float>()) {
    routing.weights[1] = value;
    CHECK(error_lacks<std::invalid_argument>([&] { layer.forward_routed(x, {}, routing, y, workspace); },
                                             {"expected finite weights"}) == "");
  }
}

TEST_CASE("options that are not finite are refused", "[layer][optimizer]") {
  std::vector<double> values(3);
  const Parameters<double> parameters{{"values", values}};
  const auto refuses = [&](auto member, auto options, auto make) {
    for (const double value : not_finite<double>()) {
      options.*member = value;
      CHECK_THROWS_AS(make(options), std::invalid_argument);
    }
  };
  const auto layer = [](const RoutingOptions& routing) {
    LayerOptions options = small_layer(Level::sequence, 3, 3);
    options.routing = routing;
    MoeLayer<float>{options};
  };
  refuses(&RoutingOptions::loss_coefficient, RoutingOptions{}, layer);
  refuses(&RoutingOptions::noise_epsilon, RoutingOptions{}, layer);
  const auto sgd = [&](const SgdOptions& options) { Sgd<double>(parameters, options); };
  refuses(&SgdOptions::learning_rate, SgdOptions{}, sgd);
  refuses(&SgdOptions::momentum, SgdOptions{}, sgd);
  refuses(&SgdOptions::weight_decay, SgdOptions{}, sgd);
  const auto adamw = [&](const AdamWOptions& options) { AdamW<double>(parameters, options); };
  refuses(&AdamWOptions::learning_rate, AdamWOptions{}, adamw);
  refuses(&AdamWOptions::beta1, AdamWOptions{}, adamw);
  refuses(&AdamWOptions::beta2, AdamWOptions{}, adamw);
  refuses(&AdamWOptions::epsilon, AdamWOptions{}, adamw);
  refuses(&AdamWOptions::weight_decay, AdamWOptions{}, adamw);
}

TEST_CASE("gradients that are not finite become so as a whole", "[gradient_norm]") {
  std::vector<float> values(3);
  const Parameters<float> parameters{{"values", values}};
  for (const float value : not_finite<float>()) {
    values = {1, value, 0.5F};
    CHECK(!detail::is_finite(clip_gradient_norm(parameters, 10.0F)));
    CHECK(!detail::is_finite(values[1]));
  }
}

}  // namespace

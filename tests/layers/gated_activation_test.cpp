// Activations of two inputs, by themselves and in every form of a block.

#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <meo/experts/activate.hpp>
#include <meo/experts/gated_activation.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/merged_feed_forward.hpp>
#include <meo/layers/moe_layer.hpp>

#include "layers/differences.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace gated_activation_test {

using namespace meo;
using namespace meo::test;

using Moe = MoeLayer<double>;
using Meo = MeoLayer<double>;

/// A user's, on no packets.
struct Product {
  template <class S>
  S operator()(const S& activated, const S& linear) const {
    return activated * activated * linear;
  }
  template <class S>
  GatedDerivative<S> derivative(const S& activated, const S& linear) const {
    return {S(2) * activated * linear, activated * activated};
  }
};

template <class S>
constexpr bool is_on_packets = detail::PacketGatedActivation<GptOssSwiglu, S>;
static_assert(is_on_packets<float> && is_on_packets<double> && !is_on_packets<long double>);
static_assert(!detail::PacketGatedActivation<Product, float> && !detail::GatedActivation<Gelu, float>);

TEMPLATE_TEST_CASE("gpt-oss' activation and its derivatives are their formulas, and NaN stays NaN",
                   "[activation]", float, double, long double, Eigen::half) {
  using S = TestType;
  const GptOssSwiglu f;
  constexpr bool is_half = std::is_same_v<S, Eigen::half>;
  constexpr long double epsilon =
      is_half ? 0x1p-10L : static_cast<long double>(Eigen::NumTraits<S>::epsilon());
  constexpr long double smallest = is_half ? 0x1p-24L : 0;
  for (const double g : {-40.0, -9.0, -1.5, -0.25, 0.0, 0.75, 3.0, 6.875, 7.0, 7.125, 1000.0}) {
    for (const double u : {-50.0, -7.125, -7.0, -6.875, -1.0, 0.0, 0.5, 6.875, 7.0, 7.125, 60.0}) {
      CAPTURE(g, u);
      const long double a = g > 7 ? 7 : g, held = u > 7 ? 7 : u < -7 ? -7 : u;
      const long double z = 1.702 * a, sigma = 1 / (1 + std::exp(-z));
      // A rounding of z counts |z| times in σ; else there are a dozen.
      const long double roundings = epsilon * (12 + 2 * std::abs(z));
      const auto is_near = [&](S actual, long double expected, long double magnitude) {
        return std::abs(static_cast<long double>(actual) - expected) <= roundings * magnitude + smallest;
      };
      const long double value = a * sigma * (held + 1);
      CHECK(is_near(f(S(g), S(u)), value, std::abs(value)));
      const auto slopes = f.derivative(S(g), S(u));
      const long double of_activated = g > 7 ? 0 : sigma * (1 + z * (1 - sigma)) * (held + 1);
      const long double terms = g > 7 ? 0 : sigma * (1 + std::abs(z)) * std::abs(held + 1);
      CHECK(is_near(slopes.activated, of_activated, terms));
      const long double of_linear = std::abs(u) > 7 ? 0 : a * sigma;
      CHECK(is_near(slopes.linear, of_linear, std::abs(of_linear)));
    }
  }
  const S nan = Eigen::NumTraits<S>::quiet_NaN();
  for (const auto& [g, u] : {std::pair{nan, S(1)}, {S(1), nan}, {nan, nan}}) {
    CHECK((f(g, u) != f(g, u)));
    CHECK((f.derivative(g, u).activated != f.derivative(g, u).activated));
  }
}

TEMPLATE_TEST_CASE("one of an array is that of each pair of values, to the bit, wherever it stands",
                   "[activation]", float, double, long double) {
  using S = TestType;
  const auto check = [](const auto& f) {
    constexpr Index size = detail::PacketOf<S>::size, most = 2 * size + 1;
    Generator rng(511);
    const Matrix<S> g = S(20) * random_matrix<S>(rng, 1, size + most),
                    u = S(20) * random_matrix<S>(rng, 1, g.cols()), d = random_matrix<S>(rng, 1, g.cols());
    for (Index begin = 0; begin < size; ++begin) {
      for (Index count = 0; count <= most; ++count) {
        CAPTURE(begin, count);
        Matrix<S> y = g, in_place = u, gradient = d, d_linear = u;
        Matrix<S> expected_y = y, expected_in_place = in_place, expected_gradient = d, expected_linear = u;
        for (Index i = begin; i < begin + count; ++i) {
          const auto slopes = f.derivative(g(i), u(i));
          expected_y(i) = expected_in_place(i) = f(g(i), u(i));
          expected_gradient(i) = d(i) * slopes.activated;
          expected_linear(i) = d(i) * slopes.linear;
        }
        detail::activate(f, y.data() + begin, u.data() + begin, count, y.data() + begin);
        detail::activate(f, g.data() + begin, in_place.data() + begin, count, in_place.data() + begin);
        detail::activate_backward(f, g.data() + begin, u.data() + begin, count, gradient.data() + begin,
                                  d_linear.data() + begin);
        REQUIRE(bit_difference(y, expected_y) == "");
        REQUIRE(bit_difference(in_place, expected_in_place) == "");
        REQUIRE(bit_difference(gradient, expected_gradient) == "");
        REQUIRE(bit_difference(d_linear, expected_linear) == "");
      }
    }
  };
  check(GptOssSwiglu());
  check(Product());
}

TEMPLATE_TEST_CASE("a block applies it between its projections, and its gradients are differences",
                   "[feed_forward][activation]", Moe, Meo) {
  using Block = FeedForward<TestType, GptOssSwiglu>;
  // Small enough that some values are held.
  const GptOssSwiglu f{.alpha = 1.5, .limit = 0.5};
  Generator rng(512);
  const Sequences batch = Sequences::from_lengths({4, 1, 0, 3});
  const Inputs<double> inputs{.sequences = &batch};
  for (const bool shared_gate : {false, true}) {
    INFO("shared gate " << shared_gate);
    Block block(small_block(Level::sequence, 5, 6, true, shared_gate), f);
    block.initialize(rng);
    const Matrix<double> x = random_normal<double>(rng, 8, 5);
    FeedForwardWorkspace<double> workspace;
    Matrix<double> y(8, 5), expected = Matrix<double>::Zero(8, 5);
    block.forward(x, inputs, y, workspace);
    Index held = 0;
    const auto hidden = [&](const Matrix<double>& g, const Matrix<double>& u) {
      held += (g.array() > f.limit).count() + (u.array().abs() > f.limit).count();
      return Matrix<double>(g.binaryExpr(u, [&](double a, double b) { return f(a, b); }));
    };
    // An expert's own rows, or those of merged ones: Σ g_i (x W_iᵀ + b_i).
    const auto mixed = [&](const TestType& layer, const Matrix<double>& from, const Matrix<double>& gates) {
      Matrix<double> to = Matrix<double>::Zero(from.rows(), layer.out_features());
      for (Index e = 0; e < 4; ++e) {
        const Matrix<double> of_expert =
            (from * layer.weight(e).transpose()).rowwise() + layer.bias(e).transpose();
        for (Index b = 0; b < 4; ++b)
          to.middleRows(batch.begin(b), batch.length(b)) +=
              gates(b, e) * of_expert.middleRows(batch.begin(b), batch.length(b));
      }
      return to;
    };
    const Matrix<double> gates = workspace.up.routing.dense();
    const Matrix<double> gates_up = shared_gate ? gates : workspace.gate_up.routing.dense(),
                         gates_down = shared_gate ? gates : workspace.down.routing.dense();
    if (shared_gate && !is_meo<TestType>) {
      for (Index e = 0; e < 4; ++e) {
        Matrix<double> one = Matrix<double>::Zero(4, 4);
        one.col(e).setOnes();
        const Matrix<double> of_expert =
            mixed(block.down(), hidden(mixed(block.up(), x, one), mixed(block.gate_up(), x, one)), one);
        for (Index b = 0; b < 4; ++b)
          expected.middleRows(batch.begin(b), batch.length(b)) +=
              gates(b, e) * of_expert.middleRows(batch.begin(b), batch.length(b));
      }
    } else {
      expected = mixed(block.down(), hidden(mixed(block.up(), x, gates), mixed(block.gate_up(), x, gates_up)),
                       gates_down);
    }
    CHECK(held > 0);
    CHECK(disagreement_in_max_norm(y, expected, 1e-14) == "");
    check_gradients(block, 5, 5, inputs, rng);
    if (shared_gate && !is_meo<TestType>) continue;
    const MergedFeedForward<double, GptOssSwiglu> kept(block, workspace);
    CHECK(disagreement_in_max_norm(kept.forward(x, batch), expected, 1e-14) == "");
  }
}

TEST_CASE("a block that is not gated has no such activation", "[feed_forward][activation]") {
  CHECK(error_lacks<std::invalid_argument>(
            [] { FeedForward<Moe, Product> block(small_block(Level::token, 2, 3, false, true)); },
            {"gated: expected true", "two inputs, got false"}) == "");
  CHECK_NOTHROW(FeedForward<Moe, Product>(small_block(Level::token, 2, 3, true, true)));
}

}  // namespace gated_activation_test
}  // namespace

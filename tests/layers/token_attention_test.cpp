#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include <meo/layers/meo_layer.hpp>
#include <meo/layers/token_attention.hpp>

#include "reference/random_layer.hpp"
#include "reference/reference.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/random.hpp"

namespace {
namespace token_attention_test {

using namespace meo;
using namespace meo::test;

TEMPLATE_TEST_CASE("token attention adds U relu(V x + v) + u", "[token_attention]", float, double) {
  using S = TestType;
  Generator rng(61);
  for (const Index features : {1, 7, 20}) {
    for (const Index reduced : {1, 3, 17}) {
      reference::Layer<S> layer;
      layer.attention_down = reference::random_affine<S>(rng, features, reduced);
      layer.attention_up = reference::random_affine<S>(rng, reduced, features);
      TokenAttention<S> attention(features, reduced);
      attention.down().set_weight(layer.attention_down.weight);
      attention.down().set_bias(layer.attention_down.bias);
      attention.up().set_weight(layer.attention_up.weight);
      attention.up().set_bias(layer.attention_up.bias);

      const Matrix<S> around_x = random_matrix<S>(rng, 9, features + 2);
      const auto x = around_x.block(1, 1, 7, features);
      const S nan = std::numeric_limits<S>::quiet_NaN();
      std::vector<S> scratch(std::size_t(7 * reduced), nan);
      Matrix<S> attended = Matrix<S>::Constant(7, features, nan);
      attention.apply(x, scratch.data(), attended.data());
      CHECK(disagreement(attended, reference::token_attention(layer, Bounded<S>::exact(x))) == "");
    }
  }
}

TEST_CASE("token attention of many tokens has the bits of each alone", "[token_attention]") {
  constexpr Index features = 20, reduced = 3;
  Generator rng(63);
  std::mt19937_64 generator(2);
  TokenAttention<float> attention(features, reduced);
  attention.initialize(generator);
  attention.up().set_weight(random_matrix<float>(rng, features, reduced));
  for (const Index tokens : {0, 1, 63, 64, 65, 150}) {
    INFO(tokens << " tokens");
    const Matrix<float> x = random_matrix<float>(rng, tokens, features);
    Matrix<float> rows(tokens, reduced), attended(tokens, features), row(1, reduced), alone(1, features);
    attention.apply(x, rows.data(), attended.data());
    for (Index t = 0; t < tokens; ++t) {
      attention.apply(x.row(t), row.data(), alone.data());
      CHECK(rows.row(t) == row.row(0));
      CHECK(attended.row(t) == alone.row(0));
    }
  }
}

TEST_CASE("token attention starts as none", "[token_attention]") {
  Generator rng(62);
  TokenAttention<float> attention(6, 2);
  const Matrix<float> x = random_matrix<float>(rng, 5, 6);
  Matrix<float> scratch(5, 2), attended(5, 6);
  std::mt19937_64 generator(1);
  attention.initialize(generator);
  CHECK(attention.down().weight().cwiseAbs().maxCoeff() > 0);
  attention.apply(x, scratch.data(), attended.data());
  CHECK(attended == x);

  attention.up().set_weight(Matrix<float>::Ones(6, 2));
  attention.apply(x, scratch.data(), attended.data());
  CHECK(attended != x);
  attention.reset();
  attention.apply(x, scratch.data(), attended.data());
  CHECK(attended == x);
}

TEST_CASE("token attention of no features or no rows is refused", "[token_attention]") {
  using Invalid = std::invalid_argument;
  CHECK(error_lacks<Invalid>([] { TokenAttention<float>(0, 2); },
                             {"in_features: expected at least 1, got 0"}) == "");
  CHECK(error_lacks<Invalid>([] { TokenAttention<float>(6, 0); },
                             {"out_features: expected at least 1, got 0"}) == "");
}

TEST_CASE("token attention has a row for every reduce_factor features, and at least one",
          "[token_attention]") {
  const auto rows = [](Index features, Index reduce_factor) {
    LayerOptions options;
    options.in_features = features;
    options.out_features = 2;
    options.num_experts = 1;
    options.routing.level = Level::token;
    options.routing.reduce_factor = reduce_factor;
    const MeoLayer<float> layer(options);
    CHECK(layer.token_attention().down().in_features() == features);
    CHECK(layer.token_attention().up().in_features() == layer.token_attention().down().out_features());
    CHECK(layer.token_attention().up().out_features() == features);
    return layer.token_attention().down().out_features();
  };
  CHECK(LayerOptions().routing.reduce_factor == 64);
  CHECK(rows(5, 64) == 1);
  CHECK(rows(63, 64) == 1);
  CHECK(rows(64, 64) == 1);
  CHECK(rows(127, 64) == 1);
  CHECK(rows(128, 64) == 2);
  CHECK(rows(7, 2) == 3);
}

TEST_CASE("what token attention writes must be apart from what it reads", "[token_attention]") {
  std::mt19937_64 rng(63);
  TokenAttention<float> attention(4, 2), gradients(4, 2);
  attention.initialize(rng);
  Matrix<float> x = Matrix<float>::Ones(3, 4), rows(3, 2), dy = Matrix<float>::Ones(3, 4), d_rows(3, 2),
                attended(3, 4);
  const Matrix<float> before = x;
  const auto refused = [](auto&& f, const std::string& message) {
    return error_lacks<std::invalid_argument>(f, {message});
  };
  AlignedVector<float> scratch;
  attention.apply(x, rows.data(), attended.data());
  const auto backward = [&](TokenAttention<float>& to, Matrix<float>& dx) {
    attention.backward(x, rows.data(), dy, d_rows.data(), to, dx.data(), 4, scratch);
  };
  CHECK(refused([&] { attention.apply(x, rows.data(), x.data()); },
                "attended: expected memory that does not overlap x") == "");
  CHECK(refused([&] { attention.apply(x, x.data(), attended.data()); }, "not overlap x") == "");
  CHECK(refused([&] { backward(gradients, x); }, "dx: expected memory that does not overlap x") == "");
  CHECK(refused([&] { backward(gradients, dy); }, "dx: expected memory that does not overlap d_attended") ==
        "");
  CHECK(refused([&] { backward(attention, attended); }, "gradients: expected another block") == "");
  CHECK(x == before);
  CHECK(gradients.up().bias() == Vector<float>::Zero(4));
  CHECK(attention.up().bias() == Vector<float>::Zero(4));
}

}  // namespace token_attention_test
}  // namespace

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include <meo/experts/linear.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/panel.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace {
namespace linear_test {

using namespace meo;
using namespace meo::test;

template <class S>
Linear<S> random_linear(Generator& rng, Index in_features, Index out_features, bool bias) {
  Linear<S> linear(in_features, out_features, bias);
  linear.set_weight(random_normal<S>(rng, out_features, in_features));
  if (bias) linear.set_bias(random_normal<S>(rng, out_features, 1));
  return linear;
}

template <class S>
Bounded<S> expected_forward(const Linear<S>& linear, const Matrix<S>& x) {
  const Vector<S> bias = linear.has_bias() ? linear.bias() : Vector<S>();
  return affine<S>(Bounded<S>::exact(x), linear.weight().template cast<Wide<S>>(),
                   bias.template cast<Wide<S>>());
}

TEMPLATE_TEST_CASE("Linear is x Wᵀ + b within its rounding", "[linear]", float, double, long double) {
  using S = TestType;
  Generator rng(32);
  for (const bool bias : {false, true}) {
    for (const Index rows : {0, 1, 8, 29}) {
      for (const Index out_features : {1, 12, 33}) {
        const Linear<S> linear = random_linear<S>(rng, 17, out_features, bias);
        const Matrix<S> x = random_normal<S>(rng, rows, 17);
        CHECK(disagreement(linear.forward(x), expected_forward(linear, x)) == "");
      }
    }
  }
}

TEMPLATE_TEST_CASE("a Linear of small storage computes what the weight that it reads as computes", "[linear]",
                   Eigen::bfloat16, Eigen::half, std::int8_t) {
  Generator rng(37);
  for (const bool bias : {false, true}) {
    for (const Index in_features : {Index{17}, 2 * detail::Blocks{}.depth + 3}) {
      for (const Index out_features : {Index{1}, Index{5 * detail::Tile<float>::columns + 1}}) {
        const auto linear = random_linear<float>(rng, in_features, out_features, bias);
        Linear<float, TestType> small(in_features, out_features, bias);
        small.set_weight(linear.weight());
        if (bias) small.set_bias(linear.bias());
        Linear<float> same = linear;
        same.set_weight(small.weight());
        for (const Index rows : {1, 2, 29}) {
          INFO(in_features << " to " << out_features << " features, " << rows << " rows, bias " << bias);
          const Matrix<float> x = random_normal<float>(rng, rows, in_features);
          CHECK(bit_difference(small.forward(x), same.forward(x)) == "");
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("Linear takes any input expression", "[linear]", float, double) {
  using S = TestType;
  Generator rng(33);
  const Linear<S> linear = random_linear<S>(rng, 17, 12, true);
  const Matrix<S> larger = random_normal<S>(rng, 9, 40), x = larger.block(1, 2, 5, 17), y = linear.forward(x);
  using ColumnMajor = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>;
  CHECK(bit_difference(linear.forward(larger.block(1, 2, 5, 17)), y) == "");
  CHECK(bit_difference(linear.forward(ColumnMajor(x)), y) == "");
  CHECK(bit_difference(linear.forward(x + Matrix<S>::Zero(5, 17)), y) == "");
}

TEMPLATE_TEST_CASE("Linear writes into strided memory", "[linear]", float, double) {
  using S = TestType;
  Generator rng(34);
  const Linear<S> linear = random_linear<S>(rng, 17, 12, true);
  const Matrix<S> x = random_normal<S>(rng, 5, 17), before = random_normal<S>(rng, 5, 30);
  Matrix<S> y = before, expected = before;
  linear.apply(x, y.data() + 4, 30);
  expected.middleCols(4, 12) = linear.forward(x);
  CHECK(bit_difference(y, expected) == "");
}

TEST_CASE("a Linear tells its shape, starts at zero and copies", "[linear]") {
  Linear<float> linear(3, 2);
  CHECK(linear.in_features() == 3);
  CHECK(linear.out_features() == 2);
  CHECK(linear.has_bias());
  CHECK(linear.weight() == Matrix<float>::Zero(2, 3));
  CHECK(linear.bias() == Vector<float>::Zero(2));
  const Linear<float> copy = linear;
  linear.set_bias(Vector<float>::Ones(2));
  CHECK(copy.bias() == Vector<float>::Zero(2));
  CHECK(linear.bias() == Vector<float>::Ones(2));
}

TEST_CASE("a Linear initialises its weight and bias within ±1/√in_features", "[linear]") {
  Generator rng(35);
  Linear<double> linear(16, 50);
  linear.initialize(rng);
  CHECK(linear.weight().cwiseAbs().maxCoeff() <= 0.25);
  CHECK(linear.weight().cwiseAbs().maxCoeff() > 0.24);
  CHECK(linear.bias().cwiseAbs().maxCoeff() <= 0.25);
  CHECK(linear.bias().cwiseAbs().maxCoeff() > 0.2);
}

TEST_CASE("bad shapes of a Linear are named", "[linear]") {
  Linear<float> linear(3, 2), without_bias(3, 2, false);
  const auto refused = [](auto&& f, const std::string& message) {
    return error_lacks<std::invalid_argument>(f, {message});
  };
  CHECK(refused([] { Linear<float>(0, 2); }, "in_features: expected at least 1, got 0") == "");
  CHECK(refused([] { Linear<float>(3, -1); }, "out_features: expected at least 1, got -1") == "");
  CHECK(refused([&] { linear.set_weight(Matrix<float>::Ones(3, 2)); }, "expected 2 x 3, got 3 x 2") == "");
  CHECK(refused([&] { linear.set_bias(Vector<float>::Ones(3)); }, "expected 2 values, got 3") == "");
  CHECK(refused([&] { without_bias.set_bias(Vector<float>::Ones(2)); }, "got bias = false") == "");
  CHECK(refused([&] { static_cast<void>(linear.forward(Matrix<float>::Ones(5, 2))); },
                "x: expected 3 features, got 2") == "");
}

TEST_CASE("what a Linear writes must be apart from what it reads", "[linear]") {
  Generator rng(36);
  const Linear<float> linear = random_linear<float>(rng, 3, 2, true);
  Linear<float> gradients(3, 2), same = linear;
  // x (3 columns) and dy (2) in one matrix, with room for y (2) or dx (3) beside them.
  Matrix<float> wide = random_normal<float>(rng, 4, 8);
  const Matrix<float> before = wide;
  const MatrixView<float> x = wide.leftCols(3), dy = wide.middleCols(3, 2);
  AlignedVector<float> scratch;
  const auto refused = [&](auto&& f, const std::string& message) {
    const std::string error = error_lacks<std::invalid_argument>(f, {message});
    return error != "" ? error : bit_difference(wide, before);
  };
  const std::string y_on_x = "y: expected memory that does not overlap x";
  for (const Index first : {0, 2}) {
    CHECK(refused([&] { linear.apply(x, wide.data() + first, 8); }, y_on_x) == "");
  }
  const auto backward = [&](Linear<float>& to, Index first) {
    linear.backward(x, dy, to, false, wide.data() + first, 8, scratch);
  };
  CHECK(refused([&] { backward(gradients, 0); }, "dx: expected memory that does not overlap x") == "");
  CHECK(refused([&] { backward(gradients, 4); }, "dx: expected memory that does not overlap dy") == "");
  CHECK(refused([&] { same.backward(x, dy, same, false, wide.data() + 5, 8, scratch); },
                "gradients: expected another projection, got the one itself") == "");
  CHECK(gradients.weight() == Matrix<float>::Zero(2, 3));
  CHECK(same.weight() == linear.weight());

  linear.apply(x, wide.data() + 6, 8);
  CHECK(bit_difference(wide.rightCols(2), linear.forward(before.leftCols(3))) == "");
  CHECK_NOTHROW(backward(gradients, 5));
}

TEST_CASE("a Linear that was moved from says so", "[linear]") {
  Linear<float> linear(3, 2);
  const Linear<float> moved = std::move(linear);
  CHECK(linear.empty());
  CHECK_FALSE(moved.empty());
  CHECK(error_lacks<std::logic_error>([&] { linear.forward(Matrix<float>::Ones(1, 3)); },
                                      {"expected one to use, got one that was moved from"}) == "");
}

}  // namespace linear_test
}  // namespace

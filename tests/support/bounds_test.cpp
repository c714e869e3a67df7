#include "support/bounds.hpp"

#include <cmath>
#include <limits>
#include <string>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace bounds_test {

using namespace meo;
using namespace meo::test;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

Matrix<double> row(std::initializer_list<double> values) {
  Matrix<double> result(1, Index(values.size()));
  std::copy(values.begin(), values.end(), result.data());
  return result;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_CASE("disagreement is empty within the bounds and not beyond", "[bounds]") {
  CHECK(disagreement(row({1, -2}), row({1, -2}), row({0, 0})) == "");
  CHECK(disagreement(row({1, -2}), row({1.5, -2.5}), row({0.5, 0.5})) == "");
  CHECK(disagreement(row({1, -2}), row({1.5, -2.5}), row({0.5, 0.4})) != "");
  CHECK(disagreement(row({1, -2}), row({1.5, -2.5}), row({0.4, 0.5})) != "");
  CHECK(disagreement(row({-2}), row({-1}), row({0.5})) != "");
  CHECK(disagreement(row({-1}), row({-2}), row({0.5})) != "");
  CHECK(disagreement(row({1}), row({-1}), row({0.5})) != "");
  CHECK(disagreement(Matrix<double>(0, 3), Matrix<double>(0, 3), Matrix<double>(0, 3)) == "");
}

TEST_CASE("disagreement accepts nothing that is not a number", "[bounds]") {
  CHECK(disagreement(row({1, nan}), row({1, 1}), row({9, 9})) != "");
  CHECK(disagreement(row({1, infinity}), row({1, 1}), row({9, 9})) != "");
  CHECK(disagreement(row({1, 1}), row({1, nan}), row({9, 9})) != "");
  CHECK(disagreement(row({1, 1}), row({1, 1}), row({9, nan})) != "");
  CHECK(disagreement(row({1, 1}), row({1, 1}), row({9, infinity})) != "");
  CHECK(disagreement(row({1, 1}), row({1, 1}), row({9, -1})) != "");
}

TEST_CASE("disagreement compares shapes", "[bounds]") {
  CHECK(contains(disagreement(row({1, 1}), row({1}), row({1})), "shape 1 x 2, expected 1 x 1"));
  CHECK(disagreement(row({1}), row({1, 1}), row({1, 1})) != "");
  CHECK(disagreement(row({1, 1}), row({1, 1}), row({1})) != "");
  CHECK(disagreement(Matrix<double>(row({1, 1}).transpose()), row({1, 1}), row({1, 1})) != "");
  CHECK(disagreement(Matrix<double>(0, 3), Matrix<double>(0, 2), Matrix<double>(0, 2)) != "");
}

TEST_CASE("disagreement names the worst element", "[bounds]") {
  Matrix<double> actual = Matrix<double>::Zero(2, 3), expected = actual, bound = actual;
  bound.setConstant(0.25);
  actual(0, 1) = 1;
  actual(1, 2) = 2;
  const std::string report = disagreement(actual, expected, bound);
  CHECK(contains(report, "2 of 6 elements"));
  CHECK(contains(report, "worst (1, 2): got 2, expected 0, error 2, bound 0.25, error/bound 8"));
  actual(0, 0) = nan;
  CHECK(contains(disagreement(actual, expected, bound), "3 of 6 elements"));
  CHECK(contains(disagreement(actual, expected, bound), "worst (0, 0): got nan"));
}

TEST_CASE("a comparison has the largest share of a bound, also within all of them", "[bounds]") {
  const auto within = compare(row({1, 4, -2, 5}), row({1, 2, -1, 5}), row({0, 8, 2, 1}));
  CHECK(within.worst == 0.5);
  CHECK(within.col == 2);
  CHECK(within.beyond == 0);
  const auto beyond = compare(row({1, 4, 3}), row({1, 1, 1}), row({0, 1, 1}));
  CHECK(beyond.worst == 3);
  CHECK(beyond.col == 1);
  CHECK(beyond.beyond == 2);
  CHECK(share_of_bound(1.0, 1.0, 0.0) == 0);
  CHECK(compare(row({2, 2}), row({1, 1}), row({0.5, 0})).worst == infinity);
  CHECK(compare(row({1, nan}), row({1, 1}), row({1, 1})).worst == infinity);
  CHECK(compare(row({1, 1}), row({1, 1}), row({1, -1})).beyond == 1);
  CHECK(compare(Matrix<double>(0, 3), Matrix<double>(0, 3), Matrix<double>(0, 3)).worst == 0);
}

TEST_CASE("disagreement in max-norm scales with the largest element", "[bounds]") {
  CHECK(disagreement_in_max_norm(row({100, 1.5}), row({100, 1}), 0.0051) == "");
  CHECK(disagreement_in_max_norm(row({100, 1.5}), row({100, 1}), 0.0049) != "");
  CHECK(disagreement_in_max_norm(row({0, 0}), row({0, 0}), 0.1) == "");
  CHECK(disagreement_in_max_norm(row({0, 1e-300}), row({0, 0}), 0.1) != "");
  CHECK(disagreement_in_max_norm(Matrix<double>(0, 2), Matrix<double>(0, 2), 0.1) == "");
}

TEST_CASE("bit difference sees every bit", "[bounds]") {
  CHECK(bit_difference(row({1, -0.0, nan, infinity}), row({1, -0.0, nan, infinity})) == "");
  CHECK(contains(bit_difference(row({1, 1 + 0x1p-52}), row({1, 1})), "(0, 1)"));
  CHECK(bit_difference(row({0.0}), row({-0.0})) != "");
  CHECK(bit_difference(row({nan}), row({1})) != "");
  CHECK(bit_difference(row({1}), row({nan})) != "");
  CHECK(bit_difference(row({1, 2}), row({1})) != "");
  CHECK(bit_difference(row({1}), row({1, 2})) != "");
}

TEST_CASE("gamma counts roundings of the tested scalar", "[bounds]") {
  CHECK(gamma<float>(0) == 0);
  CHECK(gamma<float>(1) > 0x1p-24);
  CHECK(gamma<float>(1) < 0x1.00001p-24);
  CHECK(gamma<double>(10) > 10 * 0x1p-53L);
  CHECK(gamma<double>(10) < 10.01L * 0x1p-53L);
  CHECK(gamma<long double>(1) >= std::numeric_limits<long double>::epsilon());
}

// Float arithmetic really done, in orders that lose more and less: always within the bounds, and the bounds
// are not so wide that a slip of one term in a thousand would hide in them.
TEST_CASE("bounds hold for float arithmetic and do not hide wrong terms", "[bounds]") {
  Generator rng(1);
  for (int repeat = 0; repeat < 50; ++repeat) {
    const Index terms = 1 + Index(rng() % 50);
    const auto x = random_matrix<float>(rng, 3, terms), weight = random_matrix<float>(rng, 4, terms);
    const auto bias = random_vector<float>(rng, 4);
    const Bounded<float> expected =
        affine<float>(Bounded<float>::exact(x), weight.cast<double>(), bias.cast<double>());

    Matrix<float> forwards(3, 4), backwards(3, 4);
    for (Index t = 0; t < 3; ++t) {
      for (Index f = 0; f < 4; ++f) {
        float up = bias[f], down = 0;
        for (Index d = 0; d < terms; ++d) up += x(t, d) * weight(f, d);
        for (Index d = terms; d-- > 0;) down = std::fma(x(t, d), weight(f, d), down);
        forwards(t, f) = up;
        backwards(t, f) = down + bias[f];
      }
    }
    CHECK(disagreement(forwards, expected) == "");
    CHECK(disagreement(backwards, expected) == "");
    CHECK(disagreement(Matrix<float>(x * weight.transpose()), expected) != "");

    const Bounded<float> mean = mean_of_rows(expected);
    CHECK(disagreement(Matrix<float>(forwards.colwise().sum() / 3), mean) == "");
    CHECK(disagreement(Matrix<float>(forwards.colwise().sum() / 4), mean) != "");

    const Bounded<float> product = multiply(expected, expected);
    CHECK(disagreement(Matrix<float>(forwards.cwiseProduct(backwards)), product) == "");
    const Bounded<float> sum = add(expected, product);
    CHECK(disagreement(Matrix<float>(backwards + forwards.cwiseProduct(forwards)), sum) == "");
    CHECK(disagreement(Matrix<float>(backwards * 1.01f + forwards.cwiseProduct(forwards)), sum) != "");
  }
}

TEST_CASE("bounds of a softmax cover errors of its logits", "[bounds]") {
  Generator rng(2);
  for (int repeat = 0; repeat < 200; ++repeat) {
    const Index k = 1 + Index(rng() % 6);
    Bounded<float> logits(1, k);
    logits.value = 4 * random_matrix<double>(rng, 1, k);
    logits.error.setConstant(1e-3);
    const Bounded<float> expected = softmax(logits);
    CHECK(std::abs(expected.value.sum() - 1) < 1e-14);
    const Matrix<float> shifted = (logits.value + 1e-3 * random_matrix<double>(rng, 1, k)).cast<float>();
    Matrix<float> weights = (shifted.array() - shifted.maxCoeff()).exp().matrix();
    weights /= weights.sum();
    CHECK(disagreement(weights, expected) == "");
    if (k == 1) CHECK(expected.error.maxCoeff() < 1e-5);

    // Errors that all point the wrong way reach at least a tenth of the bound: it is not vacuous.
    if (k == 2) {
      Matrix<double> worst = logits.value;
      worst(0, 0) += 1e-3;
      worst(0, 1) -= 1e-3;
      worst = worst.array().exp().matrix();
      worst /= worst.sum();
      CHECK((worst - expected.value).cwiseAbs().maxCoeff() > 0.1 * expected.error.maxCoeff());
    }
  }
}

TEST_CASE("the bound of an applied function covers its slope", "[bounds]") {
  Bounded<float> x(1, 2);
  x.value << -1, 2;
  x.error << 0.25, 0.5;
  const Bounded<float> y = apply(
      x, [](double v) { return std::max(v, 0.0); }, 1.0, 0);
  CHECK(y.value == row({0, 2}));
  CHECK(y.error == row({0.25, 0.5}));
}

}  // namespace bounds_test
}  // namespace

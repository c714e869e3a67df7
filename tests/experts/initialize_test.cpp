#include <cmath>
#include <random>

#include <meo/experts/initialize.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace initialize_test {

using namespace meo;
using namespace meo::test;

TEMPLATE_TEST_CASE("initialisation draws expert by expert: the weight row by row, then the bias",
                   "[initialize]", float, double, long double) {
  using S = TestType;
  for (const bool has_bias : {false, true}) {
    ExpertBank<S> bank(3, 7, 5, has_bias);
    Generator rng(30), same(30);
    detail::initialize_uniform(bank, rng);
    std::uniform_real_distribution<double> uniform(-1 / std::sqrt(7.0), 1 / std::sqrt(7.0));
    for (Index e = 0; e < 3; ++e) {
      Matrix<S> weight(5, 7);
      for (Index out = 0; out < 5; ++out) {
        for (Index in = 0; in < 7; ++in) weight(out, in) = S(uniform(same));
      }
      CHECK(bank.weight(e) == weight);
      Vector<S> bias(5);
      for (Index out = 0; has_bias && out < 5; ++out) bias(out) = S(uniform(same));
      if (has_bias) CHECK(bank.bias(e) == bias);
    }
    CHECK(rng == same);
  }
}

TEST_CASE("initial values fill ±1/√in_features evenly", "[initialize]") {
  ExpertBank<double> bank(1, 100, 200, true);
  Generator rng(31);
  detail::initialize_uniform(bank, rng);
  const Matrix<double> weight = bank.weight(0);
  CHECK(weight.cwiseAbs().maxCoeff() <= 0.1);
  CHECK(weight.maxCoeff() > 0.099);
  CHECK(weight.minCoeff() < -0.099);
  CHECK(std::abs(weight.mean()) < 0.002);                                       // 5 σ of the mean of 20,000
  CHECK(std::abs(weight.squaredNorm() / 20'000 - 0.01 / 3) < 5 * 0.003 / 141);  // 5 σ of their mean square
  CHECK(bank.bias(0).cwiseAbs().maxCoeff() <= 0.1);
  CHECK(bank.bias(0).cwiseAbs().maxCoeff() > 0.09);
}

}  // namespace initialize_test
}  // namespace

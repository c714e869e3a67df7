#include <span>
#include <vector>

#include <meo/routing/balance_loss.hpp>

#include "reference/reference.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

using namespace meo;
using namespace meo::test;

template <class S>
S cv(std::vector<S> values) {
  return cv_squared<S>(std::span<const S>(values));
}

TEST_CASE("cv² is the unbiased variance over the squared mean", "[balance_loss]") {
  CHECK(std::abs(cv<double>({1, 3}) - 2.0 / 4) < 1e-10);
  CHECK(std::abs(cv<double>({1, 2, 3, 6}) - (4 + 1 + 0 + 9) / 3.0 / 9) < 1e-10);
  CHECK(cv<double>({2, 2, 2}) == 0);
}

TEST_CASE("cv² of a single value is zero, and of zeros too", "[balance_loss]") {
  CHECK(cv<float>({3}) == 0);
  CHECK(cv<float>({0}) == 0);
  CHECK(cv<float>({0, 0, 0}) == 0);
}

TEMPLATE_TEST_CASE("cv² agrees with the reference", "[balance_loss]", float, double, long double) {
  using S = TestType;
  Generator rng(81);
  for (const Index n : {1, 2, 3, 8, 33}) {
    for (const S scale : {S(1e-6), S(1), S(1e3)}) {
      const Matrix<S> values = ((random_matrix<S>(rng, 1, n).array() + S(1)) * scale).matrix();
      const S actual = cv_squared<S>(std::span<const S>(values.data(), std::size_t(n)));
      const auto expected = reference::squared_coefficient_of_variation(Bounded<S>::exact(values));
      CHECK(disagreement(Matrix<S>::Constant(1, 1, actual), expected) == "");
    }
  }
}

}  // namespace

#include <span>
#include <vector>

#include <meo/routing/balance_loss.hpp>

#include "reference/reference.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace balance_loss_test {

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

TEST_CASE("cv²'s gradient is its derivative, added, and that of zeros or a single value zero",
          "[balance_loss]") {
  Generator rng(82);
  const auto gradient = [](const std::vector<double>& values, double held) {
    std::vector<double> sum(values.size(), held);
    add_cv_squared_gradient<double>(values, 0.5, sum);
    return sum;
  };
  CHECK(gradient({3}, 7) == std::vector<double>{7});
  CHECK(gradient({0, 0, 0}, 7) == std::vector<double>{7, 7, 7});
  for (const Index n : {2, 3, 8}) {
    // Squares of the smallest are near the 1e-10 beside the squared mean.
    for (const long double scale : {1e-5L, 1.L, 1e3L}) {
      const Matrix<double> values =
          ((random_matrix<double>(rng, 1, n).array() + 1.5) * static_cast<double>(scale)).matrix();
      Matrix<long double> derivative(1, n);
      for (Index j = 0; j < n; ++j) {
        const auto at = [&](long double step) {
          std::vector<long double> moved(values.data(), values.data() + n);
          moved[static_cast<std::size_t>(j)] += step;
          return cv(moved);
        };
        const long double step = scale / (1 << 17);
        derivative(0, j) = 7 / scale + (at(step) - at(-step)) / (4 * step);
      }
      const std::vector<double> actual =
          gradient({values.data(), values.data() + n}, static_cast<double>(7 / scale));
      CHECK(disagreement_in_max_norm(Eigen::Map<const Matrix<double>>(actual.data(), 1, n), derivative,
                                     1e-9L) == "");
    }
  }
}

}  // namespace balance_loss_test
}  // namespace

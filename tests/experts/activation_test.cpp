#include <cmath>
#include <limits>
#include <type_traits>

#include <meo/experts/activation.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {
namespace activation_test {

using namespace meo;
using namespace meo::test;

template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

/// x from −30 to 30 and some so small that squares vanish.
template <class S>
Matrix<S> arguments() {
  constexpr Index steps = 30 * 64;
  Matrix<S> x(2 * steps + 5, 1);
  for (Index i = -steps; i <= steps; ++i) x(i + steps) = S(i) / 64;
  x.col(0).tail(4) << S(1e-30L), S(-1e-30L), S(1e-9L), S(-1e-9L);
  return x;
}

TEMPLATE_TEST_CASE("Relu is max(x, 0)", "[activation]", float, double, long double) {
  using S = TestType;
  CHECK(Relu()(S(2.5)) == S(2.5));
  CHECK(Relu()(S(-2.5)) == 0);
  CHECK(Relu()(S(-0.0)) == 0);
  CHECK(Relu()(std::numeric_limits<S>::denorm_min()) == std::numeric_limits<S>::denorm_min());
  CHECK(Relu()(-std::numeric_limits<S>::denorm_min()) == 0);
  CHECK(Relu()(infinity<S>) == infinity<S>);
  CHECK(Relu()(-infinity<S>) == 0);
  CHECK(std::isnan(Relu()(nan<S>)));
}

TEMPLATE_TEST_CASE("Identity changes nothing", "[activation]", float, double, long double) {
  using S = TestType;
  const Matrix<S> x = arguments<S>();
  CHECK(bit_difference(Matrix<S>(x.unaryExpr(Identity())), x) == "");
  CHECK(std::signbit(Identity()(S(-0.0))));
  CHECK(Identity()(-infinity<S>) == -infinity<S>);
  CHECK(std::isnan(Identity()(nan<S>)));
}

TEMPLATE_TEST_CASE("derivatives are the differences of the values", "[activation]", float, double,
                   long double) {
  using S = TestType;
  using W = long double;
  constexpr W step = W(1) / (1 << 20);
  // A central difference is off by h²/6 times the third derivative, which is below 3, and by roundings of f
  // over h; terms of the derivatives are below 32.
  const W tolerance = 1e-10L + 64 * W(std::numeric_limits<S>::epsilon());
  const auto check = [&](auto f) {
    const Matrix<S> x = arguments<S>();
    Matrix<S> actual(x.rows(), 1);
    Matrix<W> expected(x.rows(), 1);
    for (Index i = 0; i < x.rows(); ++i) {
      const W at = std::is_same_v<decltype(f), Relu> && std::abs(x(i)) < S(step) ? W(-1) : W(x(i));
      actual(i) = f.derivative(S(at));
      expected(i) = (f(at + step) - f(at - step)) / (2 * step);
    }
    CHECK(disagreement(actual, expected, Matrix<W>::Constant(x.rows(), 1, tolerance)) == "");
  };
  check(Relu());
  check(Identity());
  check(Gelu());
  check(GeluTanh());
  check(Silu());
  CHECK(Relu().derivative(S(0)) == 0);
}

}  // namespace activation_test
}  // namespace

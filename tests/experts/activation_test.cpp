#include <cmath>
#include <limits>
#include <numbers>
#include <type_traits>

#include <meo/experts/activation.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {

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

/// Holds f(x) against the formula `exact` in the wide type, within γ of `roundings` times a magnitude of x
/// and f(x).
template <class S, class Activation, class Exact, class Magnitude>
void check_values(const Activation& f, const Exact& exact, Index roundings, const Magnitude& magnitude) {
  const Matrix<S> x = arguments<S>();
  const Matrix<Wide<S>> expected = x.template cast<Wide<S>>().unaryExpr(exact);
  Matrix<Wide<S>> bound(x.rows(), 1);
  for (Index i = 0; i < x.rows(); ++i) {
    bound(i) = gamma<S>(roundings) * std::abs(magnitude(Wide<S>(x(i)), expected(i)));
  }
  CHECK(disagreement(Matrix<S>(x.unaryExpr(f)), expected, bound) == "");
}

template <class W>
W of_result(W, W y) {
  return y;
}
template <class W>
W of_half_the_argument(W x, W) {
  return x / 2;
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

// 1 + erf cancels for negative x, so the error is one of x/2, not of the result. To it adds up: erf with the
// two roundings of its argument, which weigh less than one because |z erf'(z)| < 1/2; the sum, at most 2; the
// product, at most 2.
TEMPLATE_TEST_CASE("Gelu is x Φ(x)", "[activation]", float, double, long double) {
  using S = TestType;
  using W = Wide<S>;
  const auto exact = [](W x) { return x / 2 * std::erfc(-x / std::sqrt(W(2))); };
  check_values<S>(Gelu(), exact, function_roundings + 5, of_half_the_argument<W>);
}

// The same with seven roundings of the argument of tanh, |z tanh'(z)| < 1/2.
TEMPLATE_TEST_CASE("GeluTanh is x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))", "[activation]", float, double,
                   long double) {
  using S = TestType;
  using W = Wide<S>;
  const auto exact = [](W x) {  // tanh(z) = 2 / (1 + exp(−2z)) − 1
    const W z = std::sqrt(2 / std::numbers::pi_v<W>) * (x + W(0.044715L) * x * x * x);
    return x / (1 + std::exp(-2 * z));
  };
  check_values<S>(GeluTanh(), exact, function_roundings + 8, of_half_the_argument<W>);
}

// exp, the sum and the division.
TEMPLATE_TEST_CASE("Silu is x / (1 + exp(−x)), to the last units of the result", "[activation]", float,
                   double, long double) {
  using S = TestType;
  using W = Wide<S>;
  const auto exact = [](W x) { return x * std::exp(x) / (1 + std::exp(x)); };
  check_values<S>(Silu(), exact, function_roundings + 2, of_result<W>);
}

TEMPLATE_TEST_CASE("derivatives are the differences of the values", "[activation]", float, double,
                   long double) {
  using S = TestType;
  using W = long double;
  constexpr W step = W(1) / (1 << 20);
  // A central difference is off by h²/6 times the third derivative, which is below 3, and by roundings of f
  // over h; of 1 + erf and 1 − t² the derivatives lose a few digits.
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

TEMPLATE_TEST_CASE("far from zero the smooth activations are x and 0, without overflow between",
                   "[activation]", float, double, long double) {
  using S = TestType;
  const S huge = std::numeric_limits<S>::max();
  const auto check = [&](auto f) {
    CHECK(f(huge) == huge);
    CHECK(f(infinity<S>) == infinity<S>);
    CHECK(f(-huge) == 0);
    const S at_minus_infinity = f(-infinity<S>);  // NaN as in PyTorch (∞ · 0), or the limit
    CHECK((std::isnan(at_minus_infinity) || at_minus_infinity == 0));
    CHECK(std::isnan(f(nan<S>)));
  };
  check(Gelu());
  check(GeluTanh());
  check(Silu());
}

}  // namespace

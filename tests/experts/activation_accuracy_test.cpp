/// The errors of activations against the table in meo/experts/activation.hpp.

#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <meo/experts/activation.hpp>
#include <meo/kernels/vector_math.hpp>

#include "experts/activation_reference.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {
namespace activation_accuracy_test {

using namespace meo;
using namespace meo::test;

template <class S>
constexpr S infinity = std::numeric_limits<S>::infinity();
template <class S>
constexpr S nan = std::numeric_limits<S>::quiet_NaN();

/// The largest error and where it was met.
struct Largest {
  long double error = 0;
  long double x = 0;

  void see(long double actual, long double expected, long double unit, long double at) {
    const long double distance = std::fabs(actual - expected) / unit;
    if (distance <= error) return;
    error = distance;
    x = at;
  }
};

/// Holds the largest error against the table. It must come near what the table says, or that says nothing.
template <class S>
void check_documented(const std::string& header, const std::string& name, const Largest& largest) {
  const double documented = documented_error<S>(header, name);
  CAPTURE(name, largest.error, largest.x);
  CHECK(largest.error <= documented);
  CHECK(largest.error >= documented / 2);
}

template <class S, class Activation>
void check_errors(const std::string& name) {
  const Activation f;
  Largest value, slope;
  for (const S x : all_over<S>(detail::VectorConstants<S>::largest_silu)) {
    const ExactActivation expected = exact(f, x);
    value.see(f(x), expected.value, unit_in_last_place<S>(expected.value), x);
    slope.see(f.derivative(x), expected.slope, unit_in_last_place<S>(expected.slope_terms), x);
  }
  check_documented<S>("experts/activation.hpp", name, value);
  check_documented<S>("experts/activation.hpp", name + "'", slope);
}

TEMPLATE_TEST_CASE("activations are within the documented errors over the whole range", "[activation]", float,
                   double) {
  check_errors<TestType, Gelu>("Gelu");
  check_errors<TestType, GeluTanh>("GeluTanh");
  check_errors<TestType, Silu>("Silu");
}

TEMPLATE_TEST_CASE("exponentials are within the documented error over the whole range", "[vector_math]",
                   float, double) {
  using S = TestType;
  std::vector<S> x = all_over<S>(detail::VectorConstants<S>::largest_silu);
  for (S& value : x) value = -std::abs(value);
  x.push_back(-infinity<S>);
  std::vector<S> actual = x;
  detail::exponentials(actual.data(), static_cast<Index>(x.size()));
  Largest largest;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const long double expected = std::exp(static_cast<long double>(x[i]));
    largest.see(actual[i], expected, unit_in_last_place<S>(expected), x[i]);
  }
  check_documented<S>("kernels/vector_math.hpp", "exponentials", largest);

  S edges[] = {S(0), S(-0.0), nan<S>};
  detail::exponentials(edges, 3);
  CHECK(edges[0] == 1);
  CHECK(edges[1] == 1);
  CHECK(std::isnan(edges[2]));
}

// The argument of exp or erfc has up to six roundings, which count as often as the exponent is large: −log of
// the tail. Then come the function itself, at most two for the tail, two for the value, and for the slope
// four for each of its terms.
TEST_CASE("with other scalars activations are as exact as their exponent", "[activation]") {
  using S = long double;
  const auto check = [](const auto& f) {
    Largest value, slope;  // in units of what is granted
    for (S x = -150; x <= 150; x += 0.03125L) {
      const ExactActivation expected = exact(f, x);
      const S tail = x < 0 ? expected.slope_terms : 1;
      const S exponent = -std::log(std::clamp(tail, std::numeric_limits<S>::min(), S(1)));
      const auto roundings = function_roundings + 8 + 12 * Index(std::ceil(exponent));
      const S least = 200 * std::numeric_limits<S>::denorm_min();
      value.see(f(x), expected.value, gamma<S>(roundings) * std::fabs(expected.value) + least, x);
      slope.see(f.derivative(x), expected.slope, gamma<S>(roundings) * expected.slope_terms + least, x);
    }
    CAPTURE(value.x, slope.x);
    CHECK(value.error <= 1);
    CHECK(slope.error <= 1);
  };
  check(Gelu());
  check(GeluTanh());
  check(Silu());
}

/// All values of a 16-bit scalar. Float's own error is a thousandth of the last place here.
template <class S, class Activation>
void check_short(const Activation& f) {
  Largest value, slope;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const S x = Eigen::numext::bit_cast<S>(static_cast<std::uint16_t>(bits));
    if (!std::isfinite(static_cast<float>(x))) continue;
    const ExactActivation expected = exact(f, static_cast<float>(x));
    // Eigen's half rounds to nearest, its bfloat16 too; both from float.
    value.see(static_cast<float>(f(x)), expected.value, unit_in_last_place<S>(expected.value),
              static_cast<float>(x));
    slope.see(static_cast<float>(f.derivative(x)), expected.slope,
              unit_in_last_place<S>(expected.slope_terms), static_cast<float>(x));
  }
  CAPTURE(value.x, slope.x);
  CHECK(value.error <= 0.51L);
  CHECK(slope.error <= 0.51L);
}

TEMPLATE_TEST_CASE("16-bit scalars get the nearest value", "[activation]", Eigen::half, Eigen::bfloat16) {
  check_short<TestType>(Gelu());
  check_short<TestType>(GeluTanh());
  check_short<TestType>(Silu());
}

TEMPLATE_TEST_CASE("at the ends of the range smooth activations are x and -0, their slopes 1 and 0",
                   "[activation]", float, double, long double, Eigen::half, Eigen::bfloat16) {
  using S = TestType;
  using L = std::numeric_limits<S>;
  const S zero(0), one(1), half(0.5), far(std::is_same_v<S, long double> ? 20000 : 1000);
  const auto check = [&](const auto& f) {
    for (const S x : {L::max(), static_cast<S>(L::max() / S(4)), L::infinity(), far}) {
      CHECK(f(x) == x);
      CHECK(f.derivative(x) == one);
      CHECK(f(static_cast<S>(-x)) == zero);
      CHECK(std::signbit(static_cast<float>(f(static_cast<S>(-x)))));
      CHECK(f.derivative(static_cast<S>(-x)) == zero);
    }
    CHECK(f(zero) == zero);
    CHECK(!std::signbit(static_cast<float>(f(zero))));
    CHECK(std::signbit(static_cast<float>(f(static_cast<S>(-zero)))));
    CHECK(f.derivative(zero) == half);
    CHECK(f.derivative(static_cast<S>(-zero)) == half);
    for (const S x : {L::denorm_min(), L::min()}) {
      CHECK(f.derivative(x) == half);
      CHECK(f.derivative(static_cast<S>(-x)) == half);
    }
    CHECK(f(static_cast<S>(S(2) * L::denorm_min())) == L::denorm_min());
    CHECK(f(static_cast<S>(S(-2) * L::denorm_min())) == static_cast<S>(-L::denorm_min()));
    const S not_a_number = L::quiet_NaN();
    CHECK(f(not_a_number) != f(not_a_number));
    CHECK(f.derivative(not_a_number) != f.derivative(not_a_number));
  };
  check(Gelu());
  check(GeluTanh());
  check(Silu());
}

}  // namespace activation_accuracy_test
}  // namespace

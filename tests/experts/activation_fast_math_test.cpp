/// Activations compiled with -ffast-math, which may take apart every sum that counts in its order, and
/// flushes what lies below the normal numbers.

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <meo/experts/activate.hpp>

#include "experts/activation_reference.hpp"
#include "support/catch.hpp"

namespace {

using namespace meo;
using namespace meo::test;

template <class S, class Activation>
void check_errors(const std::string& name) {
  const Activation f;
  const std::vector<S> x = all_over<S>(detail::VectorConstants<S>::largest_silu);
  const auto count = static_cast<Index>(x.size());
  const S* const no_factor = nullptr;
  std::vector<S> value(x.size()), slope(x.size(), S(1));
  detail::activate(f, x.data(), no_factor, count, value.data());
  detail::activate_backward(f, x.data(), no_factor, count, slope.data(), static_cast<S*>(nullptr));
  const long double normal = 2 * std::numeric_limits<S>::min();
  long double value_error = 0, slope_error = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const ExactActivation expected = exact(f, x[i]);
    if (std::fabs(expected.value) < normal || std::fabs(x[i]) < normal) continue;
    value_error =
        std::max(value_error, std::fabs(value[i] - expected.value) / unit_in_last_place<S>(expected.value));
    slope_error = std::max(
        slope_error, std::fabs(slope[i] - expected.slope) / unit_in_last_place<S>(expected.slope_terms));
  }
  CAPTURE(name);
  // The reference cannot bring back what is lost of its exponents: a unit of double, at most.
  CHECK(value_error <= documented_error<S>("experts/activation.hpp", name) + 1);
  CHECK(slope_error <= documented_error<S>("experts/activation.hpp", name + "'") + 1);
}

TEMPLATE_TEST_CASE("with -ffast-math activations are within the documented errors", "[activation]", float,
                   double) {
  check_errors<TestType, Gelu>("Gelu");
  check_errors<TestType, GeluTanh>("GeluTanh");
  check_errors<TestType, Silu>("Silu");
}

}  // namespace

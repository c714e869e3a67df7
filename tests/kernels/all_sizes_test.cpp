// Every width of an expert up to 70 x 70, with every number of tokens up to 40 among them.

#include <meo/types.hpp>

#include "kernels/dispatched_problem.hpp"
#include "kernels/merged_problem.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/types.hpp"

namespace {
namespace all_sizes_test {

using namespace meo;
using namespace meo::test;

/// Calls check(T, D, F, has_bias) for all D and F.
template <class Check>
void for_all_sizes(const Check& check) {
  for (Index in = 1; in <= 70; ++in) {
    for (Index out = 1; out <= 70; ++out) {
      const Index tokens = 1 + (7 * in + 11 * out) % 40;
      INFO("T " << tokens << ", D " << in << ", F " << out);
      check(tokens, in, out, in % 2 == 0);
    }
  }
}

TEMPLATE_TEST_CASE("merged_product has the bits of the plain chains for all small sizes", "[merged_product]",
                   Types<float>, Types<double>, (Types<float, Eigen::bfloat16>), (Types<float, Eigen::half>),
                   (Types<float, std::int8_t>)) {
  Generator rng(41);
  for_all_sizes([&](Index tokens, Index in, Index out, bool has_bias) {
    const MergedProblem<typename TestType::Scalar, typename TestType::Storage> problem(
        rng, {3, 2, in, out, has_bias}, {tokens});
    CHECK(bit_difference(problem.computed(), problem.expected()) == "");
  });
}

TEMPLATE_TEST_CASE("dispatched_product has the bits of the plain chains for all small sizes",
                   "[dispatched_product]", Types<float>, Types<double>, (Types<float, Eigen::bfloat16>),
                   (Types<float, Eigen::half>), (Types<float, std::int8_t>)) {
  Generator rng(42);
  for_all_sizes([&](Index tokens, Index in, Index out, bool has_bias) {
    const DispatchedProblem<typename TestType::Scalar, typename TestType::Storage> problem(
        rng, tokens, in, out, has_bias, 2, 1 + out % 2);
    CHECK(bit_difference(problem.computed(), problem.expected()) == "");
  });
}

}  // namespace all_sizes_test
}  // namespace

#include "kernels/gradient_problem.hpp"

namespace {

TEMPLATE_TEST_CASE("gradients of experts, single and merged, are exact on integers", "[gradient]", float,
                   double, long double) {
  meo::test::check_gradient_kernels<TestType>();
}

TEMPLATE_TEST_CASE("gradients of experts larger than any block are exact on integers", "[gradient]", float) {
  meo::test::Generator rng(52);
  meo::test::check_merged_gradients<TestType>(rng, {5, 2, 9, 1}, 700, 300, 4, 2, true);
  meo::test::check_expert_gradients<TestType>(rng, 5, 9, 700, 300, true);
}

}  // namespace

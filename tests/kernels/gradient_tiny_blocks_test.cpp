// Compiled with MEO_TINY_BLOCKS: blocks of a few rows and panels, so that every edge between two of them is
// met.

#include "kernels/gradient_problem.hpp"

namespace {

TEMPLATE_TEST_CASE("gradients are exact on integers in the smallest blocks", "[gradient]", float, double) {
  meo::test::check_gradient_kernels<TestType>();
}

}  // namespace

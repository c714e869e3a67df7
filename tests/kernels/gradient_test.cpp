#include <vector>

#include "kernels/gradient_problem.hpp"
#include "support/block_sizes.hpp"

namespace {
namespace gradient_test {

TEMPLATE_TEST_CASE("gradients of experts, single and merged, are exact on integers", "[gradient]", float,
                   double, long double) {
  meo::test::check_gradient_kernels<TestType>();
}

TEMPLATE_TEST_CASE("gradients of experts larger than any block are exact on integers", "[gradient]", float) {
  meo::test::Generator rng(52);
  meo::test::check_merged_gradients<TestType>(rng, {5, 2, 9, 1}, 700, 300, 4, 2, true);
  meo::test::check_expert_gradients<TestType>(rng, 5, 9, 700, 300, true);
}

TEMPLATE_TEST_CASE("gradients of sizes beyond every block are exact on integers", "[gradient]", float,
                   double) {
  using S = TestType;
  meo::test::Generator rng(54);
  using namespace meo::test;
  check_merged_gradients<S>(rng, {2, 1}, 3, outputs_beyond_blocks<S>(), 3, 2, true);
  check_merged_gradients<S>(rng, {2, 1}, inputs_beyond_blocks<S>(), 3, 3, 2, true);
  check_merged_gradients<S>(rng, {2, 1}, 3, 5, experts_beyond_blocks(), experts_beyond_blocks() - 1, true);
  check_merged_gradients<S>(
      rng, std::vector<meo::Index>(static_cast<std::size_t>(gradient_merges_beyond_blocks()), 2), 3, 5, 7, 3,
      true);
  check_merged_gradients<S>(rng, {tokens_beyond_blocks<S>(), 1}, 3, 5, 3, 2, true);
  check_merged_gradients<S>(rng, {1, tokens_beyond_scratch<S>(), 2}, 2, 3, 3, 2, true);
  check_expert_gradients<S>(rng, 5, 3, 3, outputs_beyond_blocks<S>(), true);
  check_expert_gradients<S>(rng, 5, 3, inputs_beyond_blocks<S>(), 3, true);
  check_expert_gradients<S>(rng, 5, tokens_beyond_blocks<S>(), 3, 5, true);
}

}  // namespace gradient_test
}  // namespace

// Kernels in blocks of two merges and five rows of a panel, so that every edge between two of them is met.

#include "kernels/tiny_blocks.hpp"

#include <meo/kernels/blocks.hpp>
#include <meo/kernels/dense_product.hpp>
#include <meo/kernels/merged_product.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/gradient_blocking.hpp>

#include "kernels/chain.hpp"
#include "kernels/gradient_problem.hpp"
#include "kernels/guarded_matrix.hpp"
#include "kernels/merged_problem.hpp"
#include "kernels/random_experts.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {
namespace tiny_blocks_test {

using namespace meo;
using namespace meo::test;

TEMPLATE_TEST_CASE("tiny blocks are as small as they are meant to be", "[tiny_blocks]", float, double,
                   long double) {
  using S = TestType;
  constexpr detail::Blocks limits = tiny_blocks<S>();
  const detail::MergeBlocks blocks = detail::merge_blocks<S>(100, 100, 100, limits);
  CHECK(blocks.merges == 2);
  CHECK(blocks.inputs == (detail::line_size<S> > 5 ? 5 : 4));
  CHECK(blocks.tokens == 3);
  CHECK(blocks.group == 2);
  CHECK(detail::merge_blocks<S>(100, 2, 2, limits).panels == 1);
  CHECK(detail::merge_strip_rows<S>(1, limits) <= 10);
  CHECK(detail::group_strip_rows<S>(9, 2, limits) == 4);
  const detail::DenseBlocks dense = detail::dense_blocks<S>(100, 100, limits);
  CHECK(dense.depth == 5);
  CHECK(dense.rows == 3);
  CHECK(detail::outer_product_tokens<S>(limits) == 5);
  CHECK(detail::serial_tokens<S>(limits) == 5);
  CHECK(detail::gradient_inputs<S>(limits) == 2 * detail::Tile<S>::rows);
  const detail::PanelBank<S, const S> bank{nullptr, 4, 100, 100, true};
  const detail::TurnedBlocks turned = detail::turned_blocks(bank, 100, limits);
  CHECK(turned.panels == 2);
  CHECK(turned.input_panels == 2);
  CHECK(turned.merges == 2);
}

TEMPLATE_TEST_CASE("merged_product has the bits of the plain chains at every edge of its blocks",
                   "[tiny_blocks]", float, double, long double) {
  check_merged_products<TestType>(tiny_blocks<TestType>());
}

TEST_CASE("merged_product computes in another scalar than it stores, block by block", "[tiny_blocks]") {
  check_merged_products<double, float>(tiny_blocks<double>(), {2, 9});
  check_merged_products<float, std::int8_t>(tiny_blocks<float>(), {2, 9});
}

TEMPLATE_TEST_CASE("dense_product has the bits of the plain chains at every edge of its blocks",
                   "[tiny_blocks]", float, double, long double) {
  using S = TestType;
  constexpr Index columns = detail::Tile<S>::columns;
  Generator rng(19);
  for (const Index in_features : {1, 4, 5, 6, 10, 11, 23}) {
    for (const Index out_features : {Index{1}, columns, 5 * columns + 3}) {
      for (const bool has_bias : {false, true}) {
        const RandomExperts<S> experts(rng, 2, in_features, out_features, has_bias);
        for (const Index rows : {1, 2, 3, 4, 6, 7, 8, 14, 15, 24}) {
          INFO("T " << rows << ", D " << in_features << ", F " << out_features << ", bias " << has_bias);
          const Matrix<S> values = random_normal<S>(rng, rows, in_features);
          GuardedMatrix<S> x(values), y(rows, out_features);
          detail::dense_product<S>(experts.bank.panels(), 1, x.inputs(), rows, y.rows(), tiny_blocks<S>());
          const Matrix<S> starts = bias_rows(experts.biases[1], rows, out_features);
          CHECK(bit_difference(y.values(), chain_product(values, experts.weights[1], starts)) == "");
          CHECK(y.guards_intact());
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("gradients are exact on integers in the smallest blocks", "[tiny_blocks]", float, double) {
  check_gradient_kernels<TestType>(tiny_blocks<TestType>());
}

}  // namespace tiny_blocks_test
}  // namespace

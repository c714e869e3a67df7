#include <meo/kernels/dense_product.hpp>

#include "kernels/chain.hpp"
#include "kernels/guarded_matrix.hpp"
#include "kernels/random_experts.hpp"
#include "kernels/threads.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {
namespace dense_product_test {

using namespace meo;
using namespace meo::detail;
using namespace meo::test;

template <class S>
Bounded<S> bounded_product(const Matrix<S>& x, const Matrix<S>& weight, const Vector<S>& bias) {
  return affine<S>(Bounded<S>::exact(x), weight.template cast<Wide<S>>(), bias.template cast<Wide<S>>());
}

TEMPLATE_TEST_CASE("dense_product is x Wᵀ + b within its rounding, for all shapes around the tile",
                   "[dense_product]", float, double, long double) {
  using S = TestType;
  Generator rng(9);
  for (const bool has_bias : {false, true}) {
    for (const Index out_features :
         {1, Tile<S>::columns - 1, Tile<S>::columns, 2 * Tile<S>::columns + 1, 70}) {
      for (const Index in_features : {1, 2, 31, 64}) {
        const RandomExperts<S> experts(rng, 2, in_features, out_features, has_bias);
        for (Index rows = 0; rows <= 3 * Tile<S>::rows + 1; ++rows) {
          INFO("T " << rows << ", D " << in_features << ", F " << out_features << ", bias " << has_bias);
          const Matrix<S> values = random_normal<S>(rng, rows, in_features);
          GuardedMatrix<S> x(values), y(rows, out_features);
          dense_product<S>(experts.bank.panels(), 1, x.inputs(), rows, y.rows());
          CHECK(disagreement(y.values(), bounded_product(values, experts.weights[1], experts.biases[1])) ==
                "");
          CHECK(y.guards_intact());
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("dense_product has the bits of the plain chains with any number of threads",
                   "[dense_product]", float, double, long double) {
  using S = TestType;
  Generator rng(11);
  const Index rows = 2 * Tile<S>::rows + 1, in_features = 33, out_features = 5 * Tile<S>::columns + 3;
  const RandomExperts<S> experts(rng, 2, in_features, out_features, true);
  const Matrix<S> x = random_normal<S>(rng, rows, in_features);
  const Matrix<S> expected =
      chain_product(x, experts.weights[0], bias_rows(experts.biases[0], rows, out_features));
  with_threads([&](Index threads) {
    INFO(threads << " threads");
    GuardedMatrix<S> y(rows, out_features);
    dense_product<S>(experts.bank.panels(), 0, {x.data(), in_features}, rows, y.rows());
    CHECK(bit_difference(y.values(), expected) == "");
    CHECK(y.guards_intact());
  });
}

}  // namespace dense_product_test
}  // namespace

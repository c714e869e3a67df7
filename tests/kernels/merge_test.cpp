#include <array>
#include <utility>
#include <vector>

#include <meo/kernels/parts/merge.hpp>

#include "kernels/chain.hpp"
#include "kernels/guarded_matrix.hpp"
#include "kernels/random_experts.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/types.hpp"

namespace {
namespace merge_test {

using namespace meo;
using namespace meo::detail;
using namespace meo::test;

TEMPLATE_TEST_CASE("merge_rows sums any number of experts in their order, any rows of a panel, and no more",
                   "[merge]", (Types<float, float>), (Types<double, double>), (Types<double, float>),
                   (Types<long double, long double>), (Types<long double, float>),
                   (Types<float, Eigen::bfloat16>), (Types<float, Eigen::half>),
                   (Types<float, std::int8_t>)) {
  using S = typename TestType::Scalar;
  constexpr Index columns = Tile<S>::columns;
  Generator rng(2);
  const RandomExperts<S, typename TestType::Storage> experts(rng, 24, 9, 2 * columns - 1, false);
  const auto bank = experts.bank.panels();
  for (Index top_k = 1; top_k <= 20; ++top_k) {
    const Selections<S> selections = random_selections<S>(rng, 1, 24, top_k);
    std::vector<Index> selected;
    std::vector<S> weights;
    std::vector<Matrix<S>> terms;
    Bounded<S> bound(bank.out_features, bank.in_features);
    for (const auto& [expert, weight] : selections.ascending(0)) {
      selected.push_back(expert);
      weights.push_back(weight);
      terms.push_back(experts.weights[std::size_t(expert)]);
      const Matrix<Wide<S>> term = Wide<S>(weight) * terms.back().template cast<Wide<S>>();
      bound.value += term;
      bound.error += gamma<S>(top_k) * term.cwiseAbs();
    }
    const Matrix<S> expected = chain_merge(terms, weights);
    CHECK(disagreement(expected, bound) == "");

    for (Index p = 0; p < bank.num_panels(); ++p) {
      for (Index row = 0; row < bank.depth(); ++row) {
        for (Index rows = 1; row + rows <= bank.depth(); ++rows) {
          INFO("K " << top_k << ", panel " << p << ", rows " << row << " to " << row + rows - 1);
          const auto source = merge_source(bank, p, row);
          Matrix<S> panel = Matrix<S>::Zero(rows, columns);  // zero: padding stays zero
          panel.leftCols(bank.valid_columns(p)) =
              expected.block(p * columns, row, bank.valid_columns(p), rows).transpose();
          const Matrix<S> expected_values = panel.template reshaped<Eigen::RowMajor>(1, panel.size());

          GuardedMatrix<S> merged(1, rows * columns);
          const MergeTerms<S> all{selected.data(), weights.data(), top_k};
          merge_rows(source, all, top_k, rows * columns, merged.data());
          CHECK(merged.guards_intact());
          CHECK(bit_difference(merged.values(), expected_values) == "");

          // As each merge of a group whose others have weights of their own.
          const std::vector<S> other_weights(weights.rbegin(), weights.rend());
          for (std::size_t place = 0; place < merge_group<S>; ++place) {
            MergeGroup<S> group_terms;
            group_terms.fill({selected.data(), other_weights.data(), top_k});
            group_terms[place].weights = weights.data();
            GuardedMatrix<S> group(merge_group<S>, rows * columns);
            const bool is_first = (row + rows) % 2 == 0;
            merge_rows_of_group(source, group_terms, top_k, is_first, rows * columns, group.data(),
                                group.stride());
            CHECK(group.guards_intact());
            CHECK(bit_difference(Matrix<S>(group.values().row(Index(place))), expected_values) == "");
          }
        }
      }
    }
  }
}

}  // namespace merge_test
}  // namespace

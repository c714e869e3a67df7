#include <meo/kernels/dispatched_product.hpp>

#include "kernels/dispatched_problem.hpp"
#include "kernels/guarded_matrix.hpp"
#include "kernels/threads.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {
namespace dispatched_product_test {

using namespace meo;
using namespace meo::detail;
using namespace meo::test;

TEMPLATE_TEST_CASE("dispatched_product has the bits of the plain chains, for all shapes around the tile",
                   "[dispatched_product]", float, double, long double) {
  using S = TestType;
  constexpr Index columns = Tile<S>::columns;
  Generator rng(22);
  for (const bool has_bias : {false, true}) {
    for (const Index top_k : {1, 2, 5}) {
      for (const Index out_features : {Index{1}, columns - 1, columns, 2 * columns + 3}) {
        for (const Index in_features : {1, 2, 13}) {
          for (Index tokens = 0; tokens <= 3 * Tile<S>::rows + 1; ++tokens) {
            INFO("T " << tokens << ", K " << top_k << ", D " << in_features << ", F " << out_features
                      << ", bias " << has_bias);
            const DispatchedProblem<S> problem(rng, tokens, in_features, out_features, has_bias, 5, top_k);
            CHECK(bit_difference(problem.computed(), problem.expected()) == "");
          }
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("dispatched_product has the bits of the plain chains with more panels than go together",
                   "[dispatched_product]", float, double, long double) {
  using S = TestType;
  Generator rng(18);
  for (const Index panels : {4, 5, 8, 9}) {
    for (const Index tokens : {1, 3, 40}) {
      INFO(panels << " panels, T " << tokens);
      const DispatchedProblem<S> problem(rng, tokens, 23, panels * detail::Tile<S>::columns - 1, true, 5, 2);
      CHECK(bit_difference(problem.computed(), problem.expected()) == "");
    }
  }
}

TEMPLATE_TEST_CASE("dispatched_product is within the rounding of K products and a sum",
                   "[dispatched_product]", float, double, long double) {
  using S = TestType;
  Generator rng(23);
  const DispatchedProblem<S> problem(rng, 20, 300, 40, true, 6, 4);
  const Matrix<Wide<S>> x = problem.x.template cast<Wide<S>>();
  Bounded<S> expected(20, 40);
  for (Index t = 0; t < 20; ++t) {
    for (const auto& [expert, gate] : problem.selections.ascending(t)) {
      const auto e = std::size_t(expert);
      const Matrix<Wide<S>> weight = problem.experts.weights[e].template cast<Wide<S>>();
      const Vector<Wide<S>> bias = problem.experts.biases[e].template cast<Wide<S>>();
      expected.value.row(t) += Wide<S>(gate) * (times_transposed(x.row(t), weight) + bias.transpose());
      expected.error.row(t) +=
          gamma<S>(300 + 1 + 4) * std::abs(Wide<S>(gate)) *
          (times_transposed(x.row(t).cwiseAbs(), weight.cwiseAbs()) + bias.cwiseAbs().transpose());
    }
  }
  CHECK(disagreement(problem.computed(), expected) == "");
}

TEMPLATE_TEST_CASE("no bit of a dispatched product depends on the number of threads", "[dispatched_product]",
                   float, double) {
  using S = TestType;
  Generator rng(24);
  const DispatchedProblem<S> problem(rng, 20, 30, 5 * Tile<S>::columns + 3, true, 6, 4);
  const Matrix<S> expected = problem.expected();
  with_threads([&](Index threads) {
    INFO(threads << " threads");
    CHECK(bit_difference(problem.computed(), expected) == "");
  });
}

TEMPLATE_TEST_CASE("one expert's rows are gathered, and combined to the same bits", "[dispatched_product]",
                   float, double, long double) {
  using S = TestType;
  Generator rng(25);
  for (const bool has_bias : {false, true}) {
    const Index in_features = 13, out_features = 2 * Tile<S>::columns + 3;
    const DispatchedProblem<S> problem(rng, 25, in_features, out_features, has_bias, 5, 2);
    const auto bank = problem.experts.bank.panels();
    const Dispatch<S>& dispatch = problem.dispatch;
    GuardedMatrix<S> y(25, out_features);
    for (Index expert = 0; expert < bank.num_experts; ++expert) {
      const Index first = dispatch.begin(expert), count = dispatch.begin(expert + 1) - first;
      Matrix<S> rows(count, in_features), outputs(count, out_features);
      for (Index i = 0; i < count; ++i) {
        const Index token = dispatch.tokens[std::size_t(first + i)];
        rows.row(i) = problem.x.row(token);
        outputs.row(i) = problem.output(token, expert);
      }

      GuardedMatrix<S> x(problem.x), contiguous(1, count * out_features);
      gathered_product<S>(bank, expert, dispatch, x.inputs(), {contiguous.data(), out_features},
                          {nullptr, max_threads()});
      CHECK(contiguous.guards_intact());
      CHECK(bit_difference(contiguous.values(),
                           Matrix<S>(outputs.template reshaped<Eigen::RowMajor>(1, outputs.size()))) == "");

      GuardedMatrix<S> gathered(rows);
      combined_product<S>(bank, expert, dispatch, gathered.inputs(), y.rows(), {nullptr, max_threads()});
    }
    CHECK(y.guards_intact());
    CHECK(bit_difference(y.values(), problem.expected()) == "");
  }
}

}  // namespace dispatched_product_test
}  // namespace

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include <meo/routing/selection.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace selection_test {

using namespace meo;
using namespace meo::detail;

/// All experts by descending logit, ties by ascending expert.
template <class S>
std::vector<Index> sorted(const std::vector<S>& logits) {
  std::vector<Index> order(logits.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](Index a, Index b) { return logits[std::size_t(a)] > logits[std::size_t(b)]; });
  return order;
}

template <int N, class S>
void check_ranking(const std::vector<S>& logits) {
  const std::vector<Index> order = sorted(logits);
  for (Index count = 1; count <= N; ++count) {
    const std::vector<Index> expected(order.begin(), order.begin() + count);
    std::vector<Index> ranking(static_cast<std::size_t>(count), -1);
    rank_experts(logits.data(), N, count, ranking.data());
    CHECK(ranking == expected);
    std::fill(ranking.begin(), ranking.end(), -1);
    rank_experts<N>(logits.data(), count, ranking.data());
    CHECK(ranking == expected);
  }
}

/// Logits of few values, so that most rows have ties, and of many.
template <int N, class S>
void check_rankings(test::Generator& rng) {
  for (const unsigned values : {1u, 2u, 3u, 1000u}) {
    for (int repetition = 0; repetition < 40; ++repetition) {
      std::vector<S> logits(N);
      for (S& logit : logits) logit = S(int(rng() % values)) - S(1);
      INFO("N " << N << ", " << values << " values");
      check_ranking<N>(logits);
    }
  }
}

TEMPLATE_TEST_CASE("experts are ranked by logit, ties by number, for a number in the type or not",
                   "[selection]", float, double, long double) {
  using S = TestType;
  test::Generator rng(61);
  check_rankings<1, S>(rng);
  check_rankings<2, S>(rng);
  check_rankings<3, S>(rng);
  check_rankings<8, S>(rng);
  check_rankings<max_compared_experts, S>(rng);
  check_rankings<max_compared_experts + 1, S>(rng);
}

TEMPLATE_TEST_CASE("zeros of either sign are equal, and the largest numbers are not", "[selection]", float,
                   double) {
  using S = TestType;
  constexpr S most = std::numeric_limits<S>::max(), least = std::numeric_limits<S>::denorm_min();
  check_ranking<8>(std::vector<S>{S(-0.0), S(0), least, -least, most, -most, S(0), S(-0.0)});
}

}  // namespace selection_test
}  // namespace

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include <meo/kernels/merge_plan.hpp>

#include "kernels/random_experts.hpp"
#include "support/catch.hpp"

namespace {
namespace merge_plan_test {

using namespace meo;
using namespace meo::detail;
using namespace meo::test;

template <class S>
MergePlan<S> plan_of(const Selections<S>& selections, const std::vector<Index>& lengths) {
  MergePlan<S> plan;
  plan_merges<S>(selections.pairs(), offsets_of(lengths), plan);
  return plan;
}

/// The sequences of each merge.
template <class S>
std::vector<std::vector<Index>> groups(const MergePlan<S>& plan) {
  std::vector<std::vector<Index>> groups;
  for (Index m = 0; m < plan.num_merges(); ++m) {
    groups.emplace_back();
    for (Index i = plan.begin(m); i < plan.begin(m + 1); ++i) groups.back().push_back(plan.sequence(i));
  }
  return groups;
}

template <class S>
std::vector<std::pair<Index, S>> terms_of(const MergeTerms<S>& terms) {
  std::vector<std::pair<Index, S>> pairs;
  for (Index i = 0; i < terms.count; ++i) pairs.emplace_back(terms.experts[i], terms.weights[i]);
  return pairs;
}

using Groups = std::vector<std::vector<Index>>;

TEMPLATE_TEST_CASE("every sequence keeps its pairs, by ascending expert", "[merge_plan]", float, double,
                   long double) {
  using S = TestType;
  Generator rng(3);
  for (Index top_k = 1; top_k <= 20; ++top_k) {
    const Selections<S> selections = random_selections<S>(rng, 9, 24, top_k);
    const MergePlan<S> plan = plan_of(selections, std::vector<Index>(9, 2));
    std::vector<Index> planned;
    for (Index m = 0; m < plan.num_merges(); ++m) {
      for (Index i = plan.begin(m); i < plan.begin(m + 1); ++i) {
        planned.push_back(plan.sequence(i));
        CHECK(terms_of(plan.terms(m)) == selections.ascending(plan.sequence(i)));
      }
    }
    std::sort(planned.begin(), planned.end());
    CHECK(planned == std::vector<Index>{0, 1, 2, 3, 4, 5, 6, 7, 8});
  }
}

TEMPLATE_TEST_CASE("sequences share a merge when experts and weights are the same, in whatever order",
                   "[merge_plan]", float, double, long double) {
  const Selections<TestType> selections{
      2, {3, 1, 0, 2, 1, 3, 1, 3, 3, 1, 0, 3}, {.75, .25, .5, .5, .25, .75, .75, .25, .75, .25, .25, .75}};
  CHECK(groups(plan_of(selections, {1, 2, 3, 1, 2, 3})) == Groups{{1}, {5}, {0, 2, 4}, {3}});
}

TEST_CASE("sequences are ordered by experts, weights and place, however many there are", "[merge_plan]") {
  Generator rng(5);
  for (const Index rows : {1, 2, 3, 4, 5, 6, 7, 8, 100, 1001}) {
    CAPTURE(rows);
    Selections<double> selections = random_selections<double>(rng, rows, 4, 2);
    for (double& weight : selections.weights) weight = static_cast<double>(rng() % 3) / 4;
    const MergePlan<double> plan = plan_of(selections, std::vector<Index>(static_cast<std::size_t>(rows), 1));
    std::vector<std::tuple<Index, Index, double, double, Index>> expected, actual;
    for (Index row = 0; row < rows; ++row) {
      const auto pairs = selections.ascending(row);
      expected.emplace_back(pairs[0].first, pairs[1].first, pairs[0].second, pairs[1].second, row);
    }
    for (const Index row : plan.sequences) actual.push_back(expected[static_cast<std::size_t>(row)]);
    std::sort(expected.begin(), expected.end());
    CHECK(actual == expected);
  }
}

TEST_CASE("a difference of one bit in one weight is another merge", "[merge_plan]") {
  const Selections<double> selections{2, {0, 1, 0, 1, 0, 1}, {.5, .5, .5, .5 + 0x1p-53, .5, .5}};
  CHECK(groups(plan_of(selections, {1, 1, 1})) == Groups{{0, 2}, {1}});
}

TEST_CASE("sequences without tokens need no merge", "[merge_plan]") {
  const Selections<double> selections{1, {2, 0, 2, 1}, {1, 1, 1, 1}};
  CHECK(groups(plan_of(selections, {0, 3, 1, 0})) == Groups{{1}, {2}});
  CHECK(groups(plan_of(selections, {0, 0, 0, 0})) == Groups{});
}

TEST_CASE("rows that are to be left out, or have no pairs, are in no merge", "[merge_plan]") {
  const Selections<double> selections{1, {2, 0, 2, 1}, {1, 1, 1, 1}};
  MergePlan<double> plan;
  for (const auto& [left_out, expected] :
       std::vector<std::pair<std::vector<unsigned char>, Groups>>{{{0, 0, 0, 0}, {{1}, {3}, {0, 2}}},
                                                                  {{0, 1, 0, 0}, {{3}, {0, 2}}},
                                                                  {{1, 1, 0, 0}, {{3}, {2}}},
                                                                  {{1, 1, 1, 1}, {}}}) {
    plan_merges<double>(selections.pairs(), offsets_of({2, 1, 3, 4}), plan, left_out.data());
    CHECK(groups(plan) == expected);
  }
  const Selections<double> ragged{1, {2, 1, 2}, {1, .5, .5}, {0, 0, 1, 1, 3}};
  CHECK(groups(plan_of(ragged, {1, 1, 1, 1})) == Groups{{3}, {1}});
}

TEST_CASE("rows share a merge only with as many pairs, and products have a place for each of them",
          "[merge_plan]") {
  // Rows of the experts 1; 1 and 2; 1; 1, 2 and 3; 1 and 2; the shared ones with the same weights.
  const Selections<double> selections{
      1, {1, 2, 1, 1, 3, 1, 2, 1, 2}, {.5, .25, .75, .5, .125, .75, .25, .75, .25}, {0, 1, 3, 4, 7, 9}};
  const MergePlan<double> plan = plan_of(selections, {1, 1, 1, 1, 1});
  CHECK(groups(plan) == Groups{{0, 2}, {1, 4}, {3}});
  for (Index m = 0; m < 3; ++m) {
    CHECK(plan.terms(m).count == m + 1);
    CHECK(plan.products_begin(m) == m * (m + 1) / 2);
    CHECK(terms_of(plan.terms(m)) == selections.ascending(plan.sequence(plan.begin(m))));
  }
  CHECK(plan.products_begin(3) == 6);
  CHECK_FALSE(plan.have_same_experts(0, 1));
  CHECK(plan.have_same_experts(1, 1));
}

TEST_CASE("a plan made in the memory of a larger one is the same", "[merge_plan]") {
  Generator rng(4);
  MergePlan<double> plan = plan_of(random_selections<double>(rng, 7, 9, 5), std::vector<Index>(7, 1));
  const Selections<double> selections{2, {1, 0, 0, 1}, {.5, .5, .5, .5}};
  plan_merges<double>(selections.pairs(), offsets_of({1, 1}), plan);
  CHECK(groups(plan) == Groups{{0, 1}});
  CHECK(terms_of(plan.terms(0)) == selections.ascending(0));
}

}  // namespace merge_plan_test
}  // namespace

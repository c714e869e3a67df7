#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include <meo/sums.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {
namespace sums_test {

using namespace meo;
using namespace meo::test;

TEST_CASE("parts are added pairwise, in as much memory as is said", "[sums]") {
  for (Index parts = 0; parts <= 300; ++parts) {
    const Index depth = detail::pairwise_depth(parts);
    std::vector<std::vector<Index>> slots(static_cast<std::size_t>(1 + depth));  // the parts that each holds
    std::vector<Index> additions(static_cast<std::size_t>(parts), 0);            // that each has gone through
    const auto add = [&](Index to, Index from) {
      REQUIRE(to + 1 == from);
      auto& sum = slots[static_cast<std::size_t>(to)];
      auto& term = slots[static_cast<std::size_t>(from)];
      sum.insert(sum.end(), term.begin(), term.end());
      term.clear();
      for (const Index part : sum) ++additions[static_cast<std::size_t>(part)];
    };
    detail::PairwiseOrder order;
    for (Index part = 0; part < parts; ++part) {
      REQUIRE(order.slot() <= depth);
      REQUIRE(slots[static_cast<std::size_t>(order.slot())].empty());
      slots[static_cast<std::size_t>(order.slot())].push_back(part);
      order.next(add);
    }
    order.finish(add);
    std::vector<Index> all(static_cast<std::size_t>(parts));
    std::iota(all.begin(), all.end(), Index{0});
    CHECK(slots[0] == all);
    for (const Index count : additions) REQUIRE(count <= depth + 1);
  }
}

TEST_CASE("sums of rows are those of integers, whatever their number", "[sums]") {
  constexpr Index cols = 3;
  for (const Index rows : {0, 1, 127, 128, 129, 255, 256, 257, 1000, 5000}) {
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 17) - 8;
    std::vector<float> sum(cols, 7),
        memory(static_cast<std::size_t>(detail::pairwise_depth(detail::num_parts(rows)) * cols));
    detail::sum_rows(
        0, rows, cols, [&](Index row) { return values.data() + row * cols; }, sum.data(), memory.data());
    for (Index c = 0; c < cols; ++c) {
      float expected = 0;
      for (Index row = 0; row < rows; ++row) expected += values[static_cast<std::size_t>(row * cols + c)];
      CHECK(sum[static_cast<std::size_t>(c)] == expected);
      CHECK(detail::pairwise_sum<float>(0, rows, [&](Index row) {
              return values[static_cast<std::size_t>(row * cols + c)];
            }) == expected);
    }
  }
}

TEMPLATE_TEST_CASE("a million terms are within the bound of their pairwise sum", "[sums]", float, double) {
  using S = TestType;
  constexpr Index terms = 1'000'000;
  constexpr S term = S(0.1);
  const Wide<S> exact = Wide<S>(term) * terms;
  const Wide<S> bound = gamma<S>(detail::serial_terms + 14) * exact;
  CHECK(std::abs(Wide<S>(detail::pairwise_sum<S>(0, terms, [&](Index) { return term; })) - exact) <= bound);
  S sum = 0;
  std::vector<S> memory(static_cast<std::size_t>(detail::pairwise_depth(detail::num_parts(terms))));
  detail::sum_rows(
      0, terms, 1, [&](Index) { return &term; }, &sum, memory.data());
  CHECK(std::abs(Wide<S>(sum) - exact) <= bound);
}

}  // namespace sums_test
}  // namespace

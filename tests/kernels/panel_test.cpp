#include <algorithm>
#include <set>
#include <vector>

#include <meo/kernels/panel.hpp>

#include "support/catch.hpp"

namespace {
namespace panel_test {

using namespace meo;
using namespace meo::detail;

TEMPLATE_TEST_CASE("every weight and bias has a place of its own; the rest is padding", "[panel]", float,
                   double, long double) {
  using S = TestType;
  constexpr Index num_experts = 3;
  for (const bool has_bias : {false, true}) {
    for (const Index in_features : {1, 2, 7}) {
      for (Index out_features = 1; out_features <= 70; ++out_features) {
        PanelBank<S> bank{nullptr, num_experts, in_features, out_features, has_bias};
        std::vector<S> memory(std::size_t(bank.size()));
        bank.data = memory.data();
        for (Index e = 0; e < num_experts; ++e) {
          for (Index out = 0; out < out_features; ++out) {
            if (has_bias) bank.bias(e, out) += 1;
            for (Index in = 0; in < in_features; ++in) bank.weight(e, out, in) += 1;
          }
        }
        const Index parameters = num_experts * out_features * bank.depth();
        CHECK(std::count(memory.begin(), memory.end(), S(1)) == parameters);
        CHECK(std::count(memory.begin(), memory.end(), S(0)) == bank.size() - parameters);
      }
    }
  }
}

TEMPLATE_TEST_CASE("the panels of all experts lie one after another, rows of NR columns under the biases",
                   "[panel]", float, double, long double) {
  using S = TestType;
  constexpr Index columns = PanelBank<S>::columns;
  const Index in_features = 5, out_features = 2 * columns + 1;
  for (const bool has_bias : {false, true}) {
    std::vector<S> memory(std::size_t(3 * 2 * 6 * columns));
    const PanelBank<S> bank{memory.data(), 2, in_features, out_features, has_bias};
    REQUIRE(bank.num_panels() == 3);
    const S* next = memory.data();
    for (Index p = 0; p < bank.num_panels(); ++p) {
      for (Index e = 0; e < bank.num_experts; ++e) {
        CHECK(bank.panel(p, e) == next);
        for (Index row = 0; row < bank.depth(); ++row, next += columns) {
          for (Index column = 0; column < bank.valid_columns(p); ++column) {
            const Index out = p * columns + column;
            const S& place =
                has_bias && row == 0 ? bank.bias(e, out) : bank.weight(e, out, row - (has_bias ? 1 : 0));
            CHECK(&place == next + column);
          }
        }
      }
    }
    CHECK(next == memory.data() + bank.size());
  }
}

TEMPLATE_TEST_CASE("only the last panel has padding", "[panel]", float, double, long double) {
  using S = TestType;
  constexpr Index columns = PanelBank<S>::columns;
  for (Index out_features = 1; out_features <= 3 * columns + 1; ++out_features) {
    const PanelBank<S> bank{nullptr, 1, 1, out_features, false};
    Index valid = 0;
    for (Index p = 0; p < bank.num_panels(); ++p) {
      if (p + 1 < bank.num_panels()) CHECK(bank.valid_columns(p) == columns);
      CHECK(bank.valid_columns(p) > 0);
      valid += bank.valid_columns(p);
    }
    CHECK(valid == out_features);
  }
}

TEMPLATE_TEST_CASE("a row of zeros is as wide as a panel", "[panel]", float, double, long double) {
  CHECK(Index(zero_row<TestType>.size()) == PanelBank<TestType>::columns);
  for (const TestType value : zero_row<TestType>) CHECK(value == 0);
}

TEMPLATE_TEST_CASE("large panels of eight experts begin in different parts of 4 KiB", "[panel]", float,
                   double) {
  using S = TestType;
  const Index row_bytes = Tile<S>::columns * Index(sizeof(S));
  for (Index depth = 1; depth <= 3100; depth += depth < 100 ? 1 : 61) {
    INFO("depth " << depth);
    const Index rows = padded_rows<S>(depth);
    REQUIRE(rows >= depth);
    if (depth * row_bytes < 16384) {
      CHECK(rows == depth);
      continue;
    }
    CHECK((rows - depth) * row_bytes <= 3072);
    std::set<Index> parts;
    for (Index expert = 0; expert < 8; ++expert) parts.insert(expert * rows * row_bytes % 4096);
    CHECK(parts.size() == 8);
  }
}

}  // namespace panel_test
}  // namespace

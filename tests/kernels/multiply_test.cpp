#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include <meo/kernels/multiply.hpp>

#include "kernels/chain.hpp"
#include "kernels/guarded_matrix.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

using namespace meo;
using namespace meo::detail;
using namespace meo::test;

/// A weight (columns × depth) and a bias, and both as a kernel sees them: a panel and NR values to start
/// from, zero beyond `columns`.
template <class S>
struct RandomPanel {
  RandomPanel(Generator& rng, Index depth, Index columns)
      : weight(random_normal<S>(rng, columns, depth)),
        bias(random_normal<S>(rng, columns, 1)),
        panel(Matrix<S>::Zero(depth, Tile<S>::columns)),
        starts(Vector<S>::Zero(Tile<S>::columns)) {
    panel.leftCols(columns) = weight.transpose();
    starts.head(columns) = bias;
  }

  Matrix<S> weight;
  Vector<S> bias;
  Matrix<S> panel;
  Vector<S> starts;
};

template <class S, class Rows>
void multiply(const Rows& rows, Index count, const S* panel, Index depth, Index columns) {
  PrefetchQueue nothing_ahead;
  multiply_panel(rows, count, panel, depth, columns, nothing_ahead);
}

/// Calls f(count, depth, columns) for all counts of rows up to three tiles and one row more.
template <class S, class Function>
void for_all_shapes(const Function& f) {
  for (Index count = 0; count <= 3 * Tile<S>::rows + 1; ++count) {
    for (const Index depth : {0, 1, 2, 13}) {
      for (Index columns = 1; columns <= Tile<S>::columns; ++columns) {
        INFO("rows " << count << ", depth " << depth << ", columns " << columns);
        f(count, depth, columns);
      }
    }
  }
}

TEMPLATE_TEST_CASE("a row's bits are those of its chain, whatever tile it falls in", "[multiply]", float,
                   double, long double) {
  using S = TestType;
  Generator rng(5);
  for_all_shapes<S>([&](Index count, Index depth, Index columns) {
    const RandomPanel<S> random(rng, depth, columns);
    const Matrix<S> values = random_normal<S>(rng, count, depth);
    GuardedMatrix<S> x(values), y(count, columns);
    const StoreRows<S> rows{x.data(), x.stride(), y.data(), y.stride(), random.starts.data()};
    multiply(rows, count, random.panel.data(), depth, columns);
    CHECK(bit_difference(y.values(),
                         chain_product(values, random.weight, bias_rows(random.bias, count, columns))) == "");
    CHECK(y.guards_intact());
  });
}

TEMPLATE_TEST_CASE("a chain cut at any depth goes on from the stored value", "[multiply]", float, double,
                   long double) {
  using S = TestType;
  constexpr Index depth = 11;
  Generator rng(6);
  for (const Index count : {1, Tile<S>::rows, Tile<S>::rows + 1}) {
    for (const Index columns : {1, Tile<S>::columns - 1, Tile<S>::columns}) {
      const RandomPanel<S> random(rng, depth, columns);
      const Matrix<S> values = random_normal<S>(rng, count, depth);
      const Matrix<S> expected = chain_product(values, random.weight, bias_rows(random.bias, count, columns));
      for (Index cut = 0; cut <= depth; ++cut) {
        INFO("rows " << count << ", columns " << columns << ", cut at " << cut);
        GuardedMatrix<S> x(values), y(count, columns);
        const StoreRows<S> first{x.data(), x.stride(), y.data(), y.stride(), random.starts.data()};
        multiply(first, count, random.panel.data(), cut, columns);
        const StoreRows<S> second{x.data() + cut, x.stride(), y.data(), y.stride(), nullptr};
        multiply(second, count, random.panel.data() + cut * Tile<S>::columns, depth - cut, columns);
        CHECK(bit_difference(y.values(), expected) == "");
        CHECK(y.guards_intact());
      }
    }
  }
}

TEMPLATE_TEST_CASE("what is ahead is asked for at the queue's rate, and no bit changes", "[multiply]", float,
                   double, long double) {
  using S = TestType;
  constexpr Index line = PrefetchQueue::line_bytes, columns = Tile<S>::columns, count = 4 * Tile<S>::rows;
  const std::vector<char> memory(1 << 14);
  Generator rng(36);
  for (const Index depth : {prefetch_interval, 3 * prefetch_interval + 1}) {
    const RandomPanel<S> random(rng, depth, columns);
    const Matrix<S> x = random_normal<S>(rng, count, depth);
    const Matrix<S> expected = chain_product(x, random.weight, bias_rows(random.bias, count, columns));
    const Index steps = prefetch_steps<S>(count, depth);
    REQUIRE(steps == 4 * (depth / prefetch_interval));
    for (const Index lines : {1, 2, 4}) {
      INFO("depth " << depth << ", lines " << lines);
      PrefetchQueue ahead;
      ahead.add(memory.data(), lines * steps * line - 1);
      ahead.spread(steps);
      REQUIRE(ahead.lines() == lines);
      Matrix<S> y(count, columns);
      const Index half = count / 2;
      const StoreRows<S> upper{x.data(), depth, y.data(), columns, random.starts.data()};
      multiply_panel(upper, half, random.panel.data(), depth, columns, ahead);
      CHECK(ahead.at() == memory.data() + lines * steps / 2 * line);
      const StoreRows<S> lower{x.data() + half * depth, depth, y.data() + half * columns, columns,
                               random.starts.data()};
      multiply_panel(lower, half, random.panel.data(), depth, columns, ahead);
      CHECK(ahead.lines() == 0);
      CHECK(bit_difference(y, expected) == "");
    }
  }
}

TEMPLATE_TEST_CASE("rows are gathered in any order, also twice", "[multiply]", float, double, long double) {
  using S = TestType;
  Generator rng(7);
  const Index inputs = 5, depth = 4, count = 2 * Tile<S>::rows + 1;
  const Matrix<S> values = random_normal<S>(rng, inputs, depth);
  for (const Index columns : {Tile<S>::columns - 1, Tile<S>::columns}) {
    const RandomPanel<S> random(rng, depth, columns);
    std::vector<Index> gather;
    Matrix<S> gathered(count, depth);
    for (Index r = 0; r < count; ++r) {
      gather.push_back(Index(rng() % std::uint64_t(inputs)));
      gathered.row(r) = values.row(gather.back());
    }
    GuardedMatrix<S> x(values), y(count, columns);
    const StoreRows<S> rows{x.data(), x.stride(), y.data(), y.stride(), random.starts.data(), gather.data()};
    multiply(rows, count, random.panel.data(), depth, columns);
    CHECK(bit_difference(y.values(), chain_product(gathered, random.weight,
                                                   bias_rows(random.bias, count, columns))) == "");
    CHECK(y.guards_intact());
  }
}

TEMPLATE_TEST_CASE("a combined row is weighted, scattered, and added unless it is the first", "[multiply]",
                   float, double, long double) {
  using S = TestType;
  Generator rng(8);
  for_all_shapes<S>([&](Index count, Index depth, Index columns) {
    const RandomPanel<S> random(rng, depth, columns);
    const Matrix<S> values = random_normal<S>(rng, count, depth);
    const Matrix<S> weights = random_normal<S>(rng, 1, count);
    std::vector<Index> tokens(static_cast<std::size_t>(count));
    std::iota(tokens.begin(), tokens.end(), Index{0});
    std::shuffle(tokens.begin(), tokens.end(), rng);
    std::vector<unsigned char> is_first;
    for (Index r = 0; r < count; ++r) is_first.push_back(rng() % 2 == 0);

    Matrix<S> before = random_normal<S>(rng, count, columns);
    const Matrix<S> products = chain_product(values, random.weight, bias_rows(random.bias, count, columns));
    Matrix<S> expected(count, columns);
    for (Index r = 0; r < count; ++r) {
      const Index token = tokens[std::size_t(r)];
      const bool first = is_first[std::size_t(r)] != 0;
      for (Index c = 0; c < columns; ++c) {
        const S addend = first ? S(0) : before(token, c);
        expected(token, c) = multiply_add_one(weights(0, r), products(r, c), addend);
      }
      if (first) before.row(token).setConstant(GuardedMatrix<S>::nan);
    }

    for (const bool gather : {false, true}) {
      Matrix<S> scattered = values;
      if (gather) {
        for (Index r = 0; r < count; ++r) scattered.row(tokens[std::size_t(r)]) = values.row(r);
      }
      GuardedMatrix<S> x(scattered), y(before);
      const CombineRows<S> rows{x.data(),      x.stride(),           y.data(),
                                y.stride(),    random.starts.data(), gather ? tokens.data() : nullptr,
                                tokens.data(), weights.data(),       is_first.data()};
      multiply(rows, count, random.panel.data(), depth, columns);
      CHECK(bit_difference(y.values(), expected) == "");
      CHECK(y.guards_intact());
    }
  });
}

}  // namespace

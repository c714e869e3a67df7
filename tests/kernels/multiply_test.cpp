#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/multiply.hpp>
#include <meo/kernels/parts/packed_rows.hpp>

#include "kernels/chain.hpp"
#include "kernels/guarded_matrix.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace multiply_test {

using namespace meo;
using namespace meo::detail;
using namespace meo::test;

/// A weight (outputs × depth) and a bias, and both as a kernel sees them: panels and the values that chains
/// start from, zero beyond the last output.
template <class S>
struct RandomPanels {
  RandomPanels(Generator& rng, Index depth, Index outputs)
      : weight(random_normal<S>(rng, outputs, depth)), bias(random_normal<S>(rng, outputs, 1)) {
    const Index count = (outputs + columns - 1) / columns;
    values = Matrix<S>::Zero(count * stride_rows(depth), columns);
    starts = Matrix<S>::Zero(count, columns);
    for (Index out = 0; out < outputs; ++out) {
      const Index first_row = out / columns * stride_rows(depth);
      values.col(out % columns).segment(first_row, depth) = weight.row(out).transpose();
      starts(out / columns, out % columns) = bias(out);
    }
  }

  Panels<S> panels() const {
    return {values.data(), stride_rows(weight.cols()) * columns, weight.cols(), weight.rows(), starts.data(),
            columns};
  }

  static constexpr Index columns = Tile<S>::columns;
  static Index stride_rows(Index depth) { return depth + 2; }  // panels need not touch

  Matrix<S> weight;
  Vector<S> bias;
  Matrix<S> values;
  Matrix<S> starts;
};

template <class S, class Rows>
void multiply(const Rows& rows, Index count, const Panels<S>& panels) {
  PrefetchQueue nothing_ahead;
  multiply_panels(rows, count, panels, nothing_ahead);
}

/// Calls f(count, depth, outputs) for all counts of rows up to two tiles and one row more; outputs make every
/// edge of one panel, and of as many as tiles of few rows take at a time.
template <class S, class Function>
void for_all_shapes(const Function& f) {
  constexpr Index columns = Tile<S>::columns;
  std::vector<Index> all_outputs{2 * columns, 4 * columns, 4 * columns + 1, 7 * columns - 1};
  for (Index outputs = 1; outputs <= columns; ++outputs) all_outputs.push_back(outputs);
  for (Index count = 0; count <= 2 * Tile<S>::rows + 1; ++count) {
    for (const Index depth : {0, 1, 4, 13}) {
      for (const Index outputs : all_outputs) {
        INFO("rows " << count << ", depth " << depth << ", outputs " << outputs);
        f(count, depth, outputs);
      }
    }
  }
}

TEMPLATE_TEST_CASE("a row's bits are those of its chain, whatever tile it falls in", "[multiply]", float,
                   double, long double) {
  using S = TestType;
  Generator rng(5);
  for_all_shapes<S>([&](Index count, Index depth, Index outputs) {
    const RandomPanels<S> random(rng, depth, outputs);
    const Matrix<S> values = random_normal<S>(rng, count, depth);
    GuardedMatrix<S> x(values), y(count, outputs);
    multiply(ProductRows<S>{x.inputs(), y.rows()}, count, random.panels());
    CHECK(bit_difference(y.values(),
                         chain_product(values, random.weight, bias_rows(random.bias, count, outputs))) == "");
    CHECK(y.guards_intact());
  });
}

TEMPLATE_TEST_CASE("a chain cut at any depth goes on from the stored value", "[multiply]", float, double,
                   long double) {
  using S = TestType;
  constexpr Index depth = 11;
  Generator rng(6);
  for (const Index count : {Index{1}, Index{Tile<S>::rows}, Index{Tile<S>::rows} + 1}) {
    for (const Index outputs : {Index{1}, Index{Tile<S>::columns}, 5 * Index{Tile<S>::columns} - 1}) {
      const RandomPanels<S> random(rng, depth, outputs);
      const Matrix<S> values = random_normal<S>(rng, count, depth);
      const Matrix<S> expected = chain_product(values, random.weight, bias_rows(random.bias, count, outputs));
      for (Index cut = 0; cut <= depth; ++cut) {
        INFO("rows " << count << ", outputs " << outputs << ", cut at " << cut);
        GuardedMatrix<S> x(values), y(count, outputs);
        Panels<S> panels = random.panels();
        panels.depth = cut;
        multiply(ProductRows<S>{x.inputs(), y.rows()}, count, panels);
        panels.first += cut * Tile<S>::columns;
        panels.depth = depth - cut;
        panels.starts = nullptr;
        multiply(ProductRows<S>{x.inputs().from_column(cut), y.rows()}, count, panels);
        CHECK(bit_difference(y.values(), expected) == "");
        CHECK(y.guards_intact());
      }
    }
  }
}

TEMPLATE_TEST_CASE("what is ahead is asked for at the queue's rate, and no bit changes", "[multiply]", float,
                   double, long double) {
  using S = TestType;
  constexpr Index line = PrefetchQueue::line_bytes, outputs = 2 * Tile<S>::columns;
  constexpr Index half = 2 * Tile<S>::rows, count = 2 * half;
  const std::vector<char> memory(1 << 14);
  Generator rng(36);
  for (const Index depth : {prefetch_interval<S>, 3 * prefetch_interval<S> + 1}) {
    const RandomPanels<S> random(rng, depth, outputs);
    const Matrix<S> x = random_normal<S>(rng, count, depth);
    const Matrix<S> expected = chain_product(x, random.weight, bias_rows(random.bias, count, outputs));
    const Index intervals = prefetch_intervals(count, random.panels());
    REQUIRE(intervals == 4 * 2 * (depth / prefetch_interval<S>));
    for (const Index lines : {2, 4, 8}) {
      INFO("depth " << depth << ", lines " << lines);
      PrefetchQueue ahead;
      const bool is_most = lines == PrefetchQueue::max_lines;  // and not enough
      ahead.add(memory.data(), (is_most ? lines + 1 : lines) * intervals * line - 1);
      ahead.spread(intervals);
      REQUIRE(ahead.lines() == lines);
      Matrix<S> y(count, outputs);
      multiply_panels(ProductRows<S>{{x.data(), depth}, {y.data(), outputs}}, half, random.panels(), ahead);
      CHECK(ahead.at() == memory.data() + lines * intervals / 2 * line);
      multiply_panels(ProductRows<S>{{x.data() + half * depth, depth}, {y.data() + half * outputs, outputs}},
                      half, random.panels(), ahead);
      CHECK(ahead.lines() == (is_most ? lines : 0));
      CHECK(bit_difference(y, expected) == "");
    }
  }
}

TEMPLATE_TEST_CASE("packed rows give what the rows give where they lie", "[multiply]", float, double,
                   long double) {
  using S = TestType;
  constexpr Index line = line_size<S>, columns = Tile<S>::columns, skipped = 2;
  const std::vector<char> memory(1 << 14);
  Generator rng(40);
  for (Index count = 0; count <= 2 * Tile<S>::rows + 1; ++count) {
    for (const Index depth : {Index{1}, line - 1, line, line + 1, 5 * line + 2}) {
      for (const Index outputs : {Index{1}, columns, 4 * columns + 1}) {
        for (const Index lines : {0, 1, 4}) {
          if (depth == 0) continue;
          INFO("rows " << count << ", depth " << depth << ", outputs " << outputs << ", lines " << lines);
          const RandomPanels<S> random(rng, depth, outputs);
          const Matrix<S> values = random_normal<S>(rng, count, skipped + depth + 1);
          const Index stride = whole_lines<S>(depth);
          REQUIRE(stride >= depth);
          REQUIRE(packed_rows_size<S>(count, depth, depth) == count * stride);
          GuardedMatrix<S> x(values), packed(1, count * stride), y(count, outputs);
          pack_rows(x.inputs().from_column(skipped), count, depth, packed.data());
          CHECK(packed.guards_intact());
          PrefetchQueue ahead;
          if (lines > 0) ahead.add(memory.data(), lines * PrefetchQueue::line_bytes - 1);
          ahead.spread(1);
          REQUIRE(ahead.lines() == lines);
          multiply_packed<S>(packed.data(), {{}, y.rows()}, count, random.panels(), ahead);
          const Matrix<S> starts = bias_rows(random.bias, count, outputs);
          CHECK(bit_difference(y.values(), chain_product(Matrix<S>(values.middleCols(skipped, depth)),
                                                         random.weight, starts)) == "");
          CHECK(y.guards_intact());
        }
      }
    }
  }
}

TEST_CASE("a line is walked in equal parts, whatever a scalar's size", "[multiply]") {
  for (Index line = 1; line <= 64; ++line) {
    for (Index most = 1; most <= line; ++most) {
      const Index part = divisor_of_line(line, most);
      CHECK(part <= most);
      CHECK(line % part == 0);
    }
  }
  CHECK(divisor_of_line(5, 4) == 1);  // of 12 bytes, with tiles of 8 rows
  CHECK(divisor_of_line(16, 8) == 8);
}

TEMPLATE_TEST_CASE("packed tiles ask for what is ahead", "[multiply]", float, double) {
  using S = TestType;
  constexpr Index depth = 4 * std::max(prefetch_interval<S>, line_size<S>), count = 2 * Tile<S>::rows;
  const std::vector<char> memory(1 << 14);
  Generator rng(42);
  const RandomPanels<S> random(rng, depth, Tile<S>::columns);
  const Matrix<S> values = random_normal<S>(rng, count, depth);
  Matrix<S> packed(1, count * depth), y(count, Tile<S>::columns);
  pack_rows<S>({values.data(), depth}, count, depth, packed.data());
  const Index intervals = prefetch_intervals(count, random.panels());
  for (const Index lines : {1, 2}) {
    INFO(lines << " lines");
    PrefetchQueue ahead;
    ahead.add(memory.data(), lines * intervals * PrefetchQueue::line_bytes - 1);
    ahead.spread(intervals);
    REQUIRE(ahead.lines() == lines);
    multiply_packed<S>(packed.data(), {{}, {y.data(), y.cols()}}, count, random.panels(), ahead);
    CHECK(ahead.lines() == 0);
  }
}

TEMPLATE_TEST_CASE("chains go from one matrix of sums to another place", "[multiply]", float, double,
                   long double) {
  using S = TestType;
  constexpr Index depth = 5, columns = Tile<S>::columns;
  Generator rng(41);
  for (Index count = 1; count <= 2 * Tile<S>::rows + 1; ++count) {
    for (const Index outputs : {Index{1}, columns, 5 * columns - 1}) {
      INFO("rows " << count << ", outputs " << outputs);
      const RandomPanels<S> random(rng, depth, outputs);
      const Matrix<S> values = random_normal<S>(rng, count, depth);
      const Matrix<S> starts = random_normal<S>(rng, count, outputs);
      // Of each panel, NR sums of each row.
      const Index count_panels = (outputs + columns - 1) / columns;
      Matrix<S> sums = Matrix<S>::Zero(count_panels * count, columns);
      for (Index r = 0; r < count; ++r) {
        for (Index out = 0; out < outputs; ++out)
          sums(out / columns * count + r, out % columns) = starts(r, out);
      }
      Panels<S> panels = random.panels();
      panels.starts = sums.data();
      panels.starts_stride = count * columns;
      panels.starts_row_stride = columns;
      const Matrix<S> expected = chain_product(values, random.weight, starts);
      GuardedMatrix<S> x(values), y(count, outputs), next(count_panels * count, columns);
      multiply(ProductRows<S>{x.inputs(), y.rows()}, count, panels);
      CHECK(bit_difference(y.values(), expected) == "");
      CHECK(y.guards_intact());
      Matrix<S> packed(1, count * whole_lines<S>(depth)), from_packed(count, outputs);
      pack_rows(x.inputs(), count, depth, packed.data());
      PrefetchQueue nothing_ahead;
      multiply_packed<S>(packed.data(), {{}, {from_packed.data(), outputs}}, count, panels, nothing_ahead);
      CHECK(bit_difference(from_packed, expected) == "");
      ProductRows<S> rows{x.inputs(), {next.data(), next.stride()}};
      rows.panel_stride = count * next.stride();
      panels.outputs = count_panels * columns;
      multiply(rows, count, panels);
      CHECK(next.guards_intact());
      Matrix<S> gathered(count, outputs);
      const Matrix<S> written = next.values();
      for (Index r = 0; r < count; ++r) {
        for (Index out = 0; out < outputs; ++out)
          gathered(r, out) = written(out / columns * count + r, out % columns);
      }
      CHECK(bit_difference(gathered, expected) == "");
    }
  }
}

TEMPLATE_TEST_CASE("rows are gathered in any order, also twice", "[multiply]", float, double, long double) {
  using S = TestType;
  Generator rng(7);
  const Index inputs = 5, depth = 4, count = 2 * Tile<S>::rows + 1;
  const Matrix<S> values = random_normal<S>(rng, inputs, depth);
  for (const Index outputs : {Tile<S>::columns - 1, 5 * Tile<S>::columns}) {
    const RandomPanels<S> random(rng, depth, outputs);
    std::vector<Index> gather;
    Matrix<S> gathered(count, depth);
    for (Index r = 0; r < count; ++r) {
      gather.push_back(Index(rng() % std::uint64_t(inputs)));
      gathered.row(r) = values.row(gather.back());
    }
    GuardedMatrix<S> x(values), y(count, outputs);
    multiply(ProductRows<S>{{x.data(), x.stride(), gather.data()}, y.rows()}, count, random.panels());
    CHECK(bit_difference(y.values(), chain_product(gathered, random.weight,
                                                   bias_rows(random.bias, count, outputs))) == "");
    CHECK(y.guards_intact());
  }
}

TEMPLATE_TEST_CASE("a combined row is weighted, scattered, and added unless it is the first", "[multiply]",
                   float, double, long double) {
  using S = TestType;
  Generator rng(8);
  for_all_shapes<S>([&](Index count, Index depth, Index outputs) {
    const RandomPanels<S> random(rng, depth, outputs);
    const Matrix<S> values = random_normal<S>(rng, count, depth);
    const Matrix<S> weights = random_normal<S>(rng, 1, count);
    std::vector<Index> tokens(static_cast<std::size_t>(count));
    std::iota(tokens.begin(), tokens.end(), Index{0});
    std::shuffle(tokens.begin(), tokens.end(), rng);
    std::vector<unsigned char> is_first;
    for (Index r = 0; r < count; ++r) is_first.push_back(rng() % 2 == 0);

    Matrix<S> before = random_normal<S>(rng, count, outputs);
    const Matrix<S> products = chain_product(values, random.weight, bias_rows(random.bias, count, outputs));
    Matrix<S> expected(count, outputs);
    for (Index r = 0; r < count; ++r) {
      const Index token = tokens[std::size_t(r)];
      const bool first = is_first[std::size_t(r)] != 0;
      for (Index c = 0; c < outputs; ++c) {
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
      const ProductRows<S> rows{{x.data(), x.stride(), gather ? tokens.data() : nullptr},
                                {y.data(), y.stride(), tokens.data(), weights.data()},
                                is_first.data()};
      multiply(rows, count, random.panels());
      CHECK(bit_difference(y.values(), expected) == "");
      CHECK(y.guards_intact());
    }
  });
}

}  // namespace multiply_test
}  // namespace

// The scratch of the gradients' kernels: at most 2 MiB a thread, and room for everything, also of scalars as
// large as those of automatic differentiation.

#include <algorithm>
#include <string>
#include <vector>

#include <Eigen/Core>

#include <meo/experts/expert_bank.hpp>
#include <meo/kernels/input_gradient.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/merged_input_gradient.hpp>
#include <meo/kernels/merged_weight_gradient.hpp>
#include <meo/kernels/weight_gradient.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

/// A number with as many derivatives that nobody reads.
template <int Derivatives>
struct Dual {
  double value = 0;
  double derivatives[Derivatives] = {};

  Dual() = default;
  template <class Number>
  requires std::is_arithmetic_v<Number>
  explicit Dual(Number number) : value(static_cast<double>(number)) {}

  friend Dual operator+(const Dual& a, const Dual& b) { return Dual(a.value + b.value); }
  friend Dual operator-(const Dual& a, const Dual& b) { return Dual(a.value - b.value); }
  friend Dual operator*(const Dual& a, const Dual& b) { return Dual(a.value * b.value); }
  Dual& operator+=(const Dual& other) { return *this = *this + other; }
  friend bool operator==(const Dual& a, const Dual& b) { return a.value == b.value; }
  friend bool operator<(const Dual& a, const Dual& b) { return a.value < b.value; }
};

}  // namespace

namespace Eigen {

template <int Derivatives>
struct NumTraits<Dual<Derivatives>> : GenericNumTraits<Dual<Derivatives>> {};

}  // namespace Eigen

namespace {
namespace gradient_scratch_test {

using namespace meo;
using namespace meo::test;
using namespace meo::detail;

TEMPLATE_TEST_CASE("a thread's scratch for gradients is at most 2 MiB", "[gradient]", float, double,
                   long double, (Dual<11>)) {
  using S = TestType;
  static_assert(sizeof(Dual<11>) == 96);
  constexpr Index most = (Index{2} << 20) / static_cast<Index>(sizeof(S));
  for (const Index panels : {1, 9, 1000}) {
    for (const Index tokens : {0, 600, 5000, 100'000, 1 << 20}) {
      INFO(panels << " panels, " << tokens << " tokens");
      CHECK(weight_gradient_scratch_size<S>(panels, tokens) <= most);
    }
  }
  for (const Index in : {1, 7, 48, 100, 768, 5000}) {
    for (const Index out : {1, 9, 81, 100, 192, 200, 768, 5000}) {
      for (const bool bias : {false, true}) {
        const PanelBank<S, const S> bank{nullptr, 4, in, out, bias};
        INFO(in << " inputs, " << out << " outputs, bias " << bias);
        CHECK(input_gradient_scratch_size(bank) <= most);
        for (const Index merges : {0, 1, 2, 5, 16, 31, 32, 33, 1000}) {
          INFO(merges << " merges");
          CHECK(merged_weight_gradient_scratch_size(bank, merges, 1 << 20) <= most);
          CHECK(merged_input_gradient_scratch_size(bank, merges) <= most);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("as many rows of dy fit into scratch as are packed at a time", "[gradient]", float, double,
                   long double, (Dual<5>), (Dual<11>), (Dual<99>), (Dual<1999>)) {
  using S = TestType;
  CHECK(outer_product_tokens<S>() >= 1);
  CHECK(gradient_tokens<S>() >= outer_product_tokens<S>());
  for (const Index in : {1, 48, 5000}) {
    for (Index out = 1; out <= 300; ++out) {
      const PanelBank<S, const S> bank{nullptr, 4, in, out, true};
      for (const Index merges : {1, 40}) {
        const TurnedBlocks blocks = turned_blocks(bank, merges);
        INFO(in << " inputs, " << out << " outputs, " << merges << " merges");
        CHECK(blocks.tokens >= packed_gradient_rows);
        CHECK(blocks.merges >= 1);
        CHECK(packed_gradient_stride<S>(blocks.panels) >= blocks.panels * Tile<S>::columns);
      }
    }
  }
}

TEST_CASE("gradients of x are exact on integers of a large scalar", "[gradient]") {
  using S = Dual<11>;
  Generator rng(53);
  constexpr Index in = 5, out = 200;
  const std::vector<Index> offsets{0, 128, 131};
  const Matrix<double> dy = random_integers<double>(rng, offsets.back(), out, 3);
  const Matrix<double> weight = random_integers<double>(rng, out, in, 3);
  ExpertBank<S> bank(1, in, out, false);
  bank.set_weight(0, weight.unaryExpr([](double value) { return S(value); }));
  const Matrix<S> large_dy = dy.unaryExpr([](double value) { return S(value); });
  const Matrix<double> expected = dy * weight;
  const auto values = [](const Matrix<S>& matrix) {
    return Matrix<double>(matrix.unaryExpr([](const S& scalar) { return scalar.value; }));
  };

  Matrix<S> dx(offsets.back(), in);
  AlignedVector<S> scratch(static_cast<std::size_t>(input_gradient_scratch_size<S>(bank.panels())));
  input_gradient<S>(bank.panels(), 0, {large_dy.data(), out}, offsets.back(), false, {dx.data(), in},
                    {scratch.data(), 1});
  CHECK(values(dx) == expected);

  const std::vector<Index> selected{0, 0};
  const std::vector<S> weights{S(1), S(2)};
  MergePlan<S> plan;
  plan_merges<S>({2, selected.data(), weights.data(), nullptr, 1}, offsets, plan);
  scratch.resize(static_cast<std::size_t>(merged_input_gradient_scratch_size<S>(bank.panels(), 2)));
  merged_input_gradient<S>(bank.panels(), plan, offsets, {large_dy.data(), out}, {dx.data(), in},
                           {scratch.data(), 1});
  CHECK(values(dx.topRows(128)) == expected.topRows(128));
  CHECK(values(dx.bottomRows(3)) == 2 * expected.bottomRows(3));
}

TEST_CASE("gradients of experts are exact on integers of a large scalar", "[gradient]") {
  using S = Dual<11>;
  Generator rng(54);
  constexpr Index in = 150, out = 5, tokens = 7;
  REQUIRE(in > 2 * gradient_inputs<S>());
  const std::vector<Index> offsets{0, tokens};
  const Matrix<double> x = random_integers<double>(rng, tokens, in, 3);
  const Matrix<double> dy = random_integers<double>(rng, tokens, out, 3);
  const auto large = [](const Matrix<double>& matrix) {
    return Matrix<S>(matrix.unaryExpr([](double value) { return S(value); }));
  };
  const Matrix<S> large_x = large(x), large_dy = large(dy);
  const Matrix<double> expected = dy.transpose() * x;
  ExpertBank<S> bank(1, in, out, false), gradients = bank;
  const auto check = [&] {
    CHECK(gradients.weight(0).unaryExpr([](const S& scalar) { return scalar.value; }) == expected);
    gradients = bank;
  };

  const Index panels = bank.panels().num_panels();
  AlignedVector<S> scratch(static_cast<std::size_t>(weight_gradient_scratch_size<S>(panels, tokens)));
  weight_gradient<S>(gradients.mutable_panels(), 0, {large_x.data(), in}, {large_dy.data(), out}, tokens,
                     {scratch.data(), 1});
  check();

  const Index selected = 0;
  const S one(1);
  MergePlan<S> plan;
  plan_merges<S>({1, &selected, &one, nullptr, 1}, offsets, plan);
  scratch.resize(static_cast<std::size_t>(merged_weight_gradient_scratch_size<S>(bank.panels(), 1, tokens)));
  std::vector<S> products(1), partial_products(static_cast<std::size_t>(product_chunks(panels)));
  AlignedVector<S> packed_x(static_cast<std::size_t>(tokens * padded_inputs<S>(in)));
  merged_weight_gradient<S>(bank.panels(), gradients.mutable_panels(), plan, offsets, {large_x.data(), in},
                            {large_dy.data(), out}, products.data(),
                            {partial_products.data(), packed_x.data(), {scratch.data(), 1}, nullptr});
  check();
}

}  // namespace gradient_scratch_test
}  // namespace

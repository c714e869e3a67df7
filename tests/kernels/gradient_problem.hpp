#pragma once

/// Gradients of experts, single and merged, on integers: every product and sum is exact, so that the kernels
/// have to repeat plain Eigen to the bit, in whatever blocks and threads they work.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include <meo/experts/aligned_vector.hpp>
#include <meo/experts/expert_bank.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/input_gradient.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/merged_input_gradient.hpp>
#include <meo/kernels/merged_weight_gradient.hpp>
#include <meo/kernels/weight_gradient.hpp>
#include <meo/types.hpp>

#include "kernels/threads.hpp"
#include "reference/reference.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/product.hpp"
#include "support/random.hpp"

namespace meo::test {

template <class S>
struct GradientProblem {
  Matrix<S> x, dy;
  ExpertBank<S> bank, start;  // start: what the gradients hold already

  GradientProblem(Generator& rng, Index tokens, Index in, Index out, Index experts, bool bias)
      : x(random_integers<S>(rng, tokens, in, 3)),
        dy(random_integers<S>(rng, tokens, out, 3)),
        bank(experts, in, out, bias),
        start(experts, in, out, bias) {
    for (ExpertBank<S>* const all : {&bank, &start}) {
      for (Index e = 0; e < experts; ++e) {
        all->set_weight(e, random_integers<S>(rng, out, in, 3));
        if (bias) all->set_bias(e, random_integers<S>(rng, out, 1, 3));
      }
    }
  }
};

/// bit_difference but for the sign of zeros.
template <class Actual, class Expected>
std::string exact_difference(const Actual& actual, const Expected& expected) {
  using S = typename Expected::Scalar;
  return bit_difference((actual.array() + S(0)).matrix().eval(), (expected.array() + S(0)).matrix().eval());
}

/// Whether the gradients of an expert are what start held and the given ones.
template <class S>
std::string difference(const ExpertBank<S>& actual, const ExpertBank<S>& start, Index expert,
                       const Matrix<S>& weight, const Vector<S>& bias) {
  const std::string of_weight =
      exact_difference(actual.weight(expert), Matrix<S>(start.weight(expert) + weight));
  if (of_weight != "" || !actual.has_bias()) return of_weight;
  return exact_difference(actual.bias(expert), Vector<S>(start.bias(expert) + bias));
}

/// Packed values that stand for no parameter.
template <class S>
bool padding_is_zero(const ExpertBank<S>& bank) {
  const auto panels = bank.panels();
  const Index last = panels.num_panels() - 1;
  for (Index e = 0; e < bank.num_experts(); ++e) {
    for (Index row = 0; row < panels.depth(); ++row) {
      for (Index c = panels.valid_columns(last); c < panels.columns; ++c) {
        if (panels.panel(last, e)[row * panels.columns + c] != S(0)) return false;
      }
    }
  }
  return true;
}

/// One expert, with the rows of x and dy gathered and those of dy weighted.
template <class S>
void check_expert_gradients(Generator& rng, Index tokens, Index rows, Index in, Index out, bool bias,
                            const detail::Blocks& limits = {}) {
  INFO("T " << tokens << ", rows " << rows << ", D " << in << ", F " << out << ", bias " << bias);
  const GradientProblem<S> problem(rng, tokens, in, out, 2, bias);
  std::vector<Index> gather;
  Matrix<S> x(rows, in), dy(rows, out), weighted(rows, out);
  const Vector<S> factors = random_integers<S>(rng, rows, 1, 2);
  for (Index r = 0; r < rows; ++r) {
    gather.push_back(static_cast<Index>(rng() % static_cast<std::uint64_t>(tokens)));
    x.row(r) = problem.x.row(gather.back());
    dy.row(r) = problem.dy.row(gather.back());
    weighted.row(r) = factors(r) * dy.row(r);
  }
  const Matrix<S> dw = times_transposed(weighted.transpose(), x.transpose()),
                  dx = times_transposed(dy, problem.bank.weight(1).transpose());
  const Vector<S> db = weighted.colwise().sum().transpose();
  with_threads([&](Index threads) {
    ExpertBank<S> gradients = problem.start;
    const auto panels = problem.bank.panels();
    AlignedVector<S> scratch(static_cast<std::size_t>(
        threads * std::max(detail::weight_gradient_scratch_size<S>(panels.num_panels(), rows, limits),
                           detail::input_gradient_scratch_size(panels, limits))));
    detail::weight_gradient<S>(gradients.mutable_panels(), 1, {problem.x.data(), in, gather.data()},
                               {problem.dy.data(), out, gather.data(), factors.data()}, rows,
                               {scratch.data(), threads}, limits);
    CHECK(difference(gradients, problem.start, 1, dw, db) == "");
    CHECK(difference(gradients, problem.start, 0, Matrix<S>(Matrix<S>::Zero(out, in)),
                     Vector<S>(Vector<S>::Zero(out))) == "");
    CHECK(padding_is_zero(gradients));

    Matrix<S> around = Matrix<S>::Constant(rows, in + 3, S(7));
    for (const bool add : {false, true}) {
      detail::input_gradient<S>(panels, 1, {problem.dy.data(), out, gather.data()}, rows, add,
                                {around.data() + 1, around.cols()}, {scratch.data(), threads}, limits);
      CHECK(exact_difference(around.middleCols(1, in), Matrix<S>((add ? S(2) : S(1)) * dx)) == "");
    }
    CHECK((around.leftCols(1).array() == S(7)).all());
    CHECK((around.rightCols(2).array() == S(7)).all());
  });
}

/// All experts through their merges, of which some serve several sequences.
template <class S>
void check_merged_gradients(Generator& rng, const std::vector<Index>& lengths, Index in, Index out,
                            Index experts, Index top_k, bool bias, const detail::Blocks& limits = {}) {
  const std::vector<Index> offsets = reference::offsets_from_lengths(lengths);
  INFO(lengths.size() << " sequences, " << offsets.back() << " tokens, D " << in << ", F " << out << ", N "
                      << experts << ", K " << top_k << ", bias " << bias);
  const GradientProblem<S> problem(rng, offsets.back(), in, out, experts, bias);
  std::vector<Index> selected;
  std::vector<S> weights;
  // Of few weights there are few merges, which sequences share. Many sequences are for many merges.
  const bool has_many = lengths.size() > 8;
  const std::uint64_t num_weights = has_many ? 64 : 2;
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    const auto first = static_cast<Index>(rng() % 2);
    for (Index k = 0; k < top_k; ++k) {
      selected.push_back((first + k * (experts / top_k)) % experts);
      weights.push_back(S(1 + static_cast<int>(rng() % num_weights)));
    }
  }
  detail::MergePlan<S> plan;
  detail::plan_merges<S>({Index(lengths.size()), selected.data(), weights.data(), nullptr, top_k}, offsets,
                         plan);
  if (has_many) REQUIRE(4 * plan.num_merges() > 3 * static_cast<Index>(lengths.size()));

  std::vector<Matrix<S>> dw(static_cast<std::size_t>(experts), Matrix<S>::Zero(out, in));
  std::vector<Vector<S>> db(static_cast<std::size_t>(experts), Vector<S>::Zero(out));
  Matrix<S> dx = Matrix<S>::Zero(offsets.back(), in);
  Matrix<S> products = Matrix<S>::Zero(plan.num_merges(), top_k);
  for (Index m = 0; m < plan.num_merges(); ++m) {
    for (Index i = plan.begin(m); i < plan.begin(m + 1); ++i) {
      const auto b = static_cast<std::size_t>(plan.sequence(i));
      const Matrix<S> x = problem.x.middleRows(offsets[b], lengths[b]),
                      dy = problem.dy.middleRows(offsets[b], lengths[b]);
      const Matrix<S> merged_dw = times_transposed(dy.transpose(), x.transpose());
      const Vector<S> merged_db = dy.colwise().sum().transpose();
      for (Index k = 0; k < top_k; ++k) {
        const Index* const e = plan.terms(m).experts + k;
        const S* const g = plan.terms(m).weights + k;
        dw[static_cast<std::size_t>(*e)] += *g * merged_dw;
        db[static_cast<std::size_t>(*e)] += *g * merged_db;
        products(m, k) += merged_dw.cwiseProduct(problem.bank.weight(*e)).sum();
        if (bias) products(m, k) += merged_db.dot(problem.bank.bias(*e));
        dx.middleRows(offsets[b], lengths[b]) +=
            *g * times_transposed(dy, problem.bank.weight(*e).transpose());
      }
    }
  }

  with_threads([&](Index threads) {
    const auto panels = problem.bank.panels();
    const Index merges = plan.num_merges();
    ExpertBank<S> gradients = problem.start;
    AlignedVector<S> scratch(static_cast<std::size_t>(
        threads *
        std::max(detail::merged_weight_gradient_scratch_size(panels, merges, offsets.back(), limits),
                 detail::merged_input_gradient_scratch_size(panels, merges, limits))));
    Matrix<S> actual_products = Matrix<S>::Constant(merges, top_k, S(7));
    std::vector<S> partial(
        static_cast<std::size_t>(detail::product_chunks(panels.num_panels()) * merges * top_k));
    AlignedVector<S> packed_x(static_cast<std::size_t>(offsets.back() * detail::padded_inputs<S>(in)));
    AlignedVector<S> partial_gradients(
        static_cast<std::size_t>(threads * detail::partial_gradients_size(panels, merges, limits)));
    detail::merged_weight_gradient<S>(
        panels, gradients.mutable_panels(), plan, offsets, {problem.x.data(), in}, {problem.dy.data(), out},
        actual_products.data(),
        {partial.data(), packed_x.data(), {scratch.data(), threads}, partial_gradients.data()}, limits);
    for (Index e = 0; e < experts; ++e) {
      const auto expert = static_cast<std::size_t>(e);
      CHECK(difference(gradients, problem.start, e, dw[expert], db[expert]) == "");
    }
    CHECK(padding_is_zero(gradients));
    CHECK(exact_difference(actual_products, products) == "");

    Matrix<S> around = Matrix<S>::Constant(offsets.back(), in + 3, S(7));
    detail::merged_input_gradient<S>(panels, plan, offsets, {problem.dy.data(), out},
                                     {around.data() + 1, around.cols()}, {scratch.data(), threads}, limits);
    CHECK(exact_difference(around.middleCols(1, in), dx) == "");
    CHECK((around.leftCols(1).array() == S(7)).all());
    CHECK((around.rightCols(2).array() == S(7)).all());
  });
}

/// Every edge of every tile and block.
template <class S>
void check_gradient_kernels(const detail::Blocks& limits = {}) {
  Generator rng(51);
  for (const Index in : {1, 2, 5, 7, 12, 16, 17, 40}) {
    for (const Index out : {1, 3, 8, 15, 16, 33}) {
      check_expert_gradients<S>(rng, 9, 1 + (in + out) % 14, in, out, (in + out) % 2 == 0, limits);
      check_merged_gradients<S>(rng, {3, 0, 1, 7, 2}, in, out, 4, 1 + (in * out) % 3, in % 2 == 0, limits);
    }
  }
  check_expert_gradients<S>(rng, 9, 0, 5, 7, true, limits);
  check_expert_gradients<S>(rng, 300, 600, 9, 18, true, limits);
  check_merged_gradients<S>(rng, {300, 1, 600}, 9, 18, 3, 2, true, limits);
  check_merged_gradients<S>(rng, {300, 1}, 80, 9, 3, 2, true, limits);
  check_merged_gradients<S>(rng, {5, 2, 9}, 80, 9, 3, 2, false, limits);
  check_merged_gradients<S>(rng, std::vector<Index>(70, 2), 9, 18, 8, 3, true, limits);
  check_merged_gradients<S>(rng, {}, 9, 18, 3, 2, true, limits);
  // Sums of several parts: of tokens, one more than a power of two among them, and of merges.
  for (const Index parts : {2, 3, 5, 7}) {
    const Index tokens = (parts - 1) * detail::serial_tokens<S>(limits) + parts;
    check_expert_gradients<S>(rng, 9, tokens, 9, 18, true, limits);
    check_merged_gradients<S>(rng, {tokens, 3}, 9, 18, 3, 2, true, limits);
    check_merged_gradients<S>(rng, std::vector<Index>(std::size_t((parts - 1) * limits.serial_merges + 1), 1),
                              5, 7, 3, 2, true, limits);
  }
}

}  // namespace meo::test

// Gates whose rows lie with several processes, against one with all rows: no process is needed for that, as
// what each would send is known from a first run.

#include <cstddef>
#include <span>
#include <vector>

#include <meo/routing/gate.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace statistics_reduction_test {

using namespace meo;
using namespace meo::test;

constexpr Index features = 6, experts = 5, top_k = 2;

struct Decision {
  Routing<double> routing;
  GateWorkspace<double> workspace;
  Matrix<double> dz;
};

/// Forward with what adds up, and backward, whose gradients are added to `gradients`.
template <class AddUp>
Decision run(const Gate<double>& gate, const Matrix<double>& z, bool is_noisy, const Matrix<double>& noise,
             const Matrix<double>& d_weights, AddUp* add_up, Gate<double>& gradients) {
  Decision decision;
  GateCall<double> call;
  if (add_up != nullptr) call.reduction = StatisticsReduction<double>(*add_up);
  gate.route(z, is_noisy ? Noise<double>(MatrixView<double>(noise)) : Noise<double>(), decision.routing,
             decision.workspace, call);
  decision.dz.resize(z.rows(), features);
  GateGradientWorkspace<double> memory;
  gate.backward({z, decision.routing, decision.workspace},
                {d_weights.data(), static_cast<std::size_t>(d_weights.size())}, 1, gradients, decision.dz,
                false, memory);
  return decision;
}

/// What all processes have sent.
struct Total {
  std::vector<double> sums;
  std::vector<Index> counts;

  void operator()(std::span<double> more_sums, std::span<Index> more_counts) {
    sums.resize(more_sums.size());
    counts.resize(more_counts.size());
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += more_sums[i];
    for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += more_counts[i];
  }
};

RoutingOptions shares_of(ScoreFunction function) {
  return {.scores = {.function = function}, .losses = {.share_coefficient = 0.5, .z_coefficient = 0.25}};
}

TEST_CASE("parts of a batch give the losses and gradients of the whole", "[statistics_reduction]") {
  Generator rng(1);
  const Index rows = 150;
  const std::vector<Index> begins{0, 5, 5, rows};  // a process may have no rows
  const bool is_noisy = GENERATE(false, true);
  const RoutingOptions options =
      GENERATE(RoutingOptions{}, shares_of(ScoreFunction::softmax), shares_of(ScoreFunction::sigmoid));
  CAPTURE(is_noisy, options.scores.function);
  Gate<double> gate(features, experts, top_k, options);
  gate.set_weight(random_matrix<double>(rng, features, experts));
  gate.set_noise_weight(random_matrix<double>(rng, features, experts));
  const Matrix<double> z = random_matrix<double>(rng, rows, features);
  const Matrix<double> noise = random_normal<double>(rng, rows, experts);
  const Matrix<double> d_weights = random_matrix<double>(rng, rows, top_k) / rows;

  Gate<double> expected_gradients(features, experts, top_k, options), gradients(expected_gradients);
  const Decision expected =
      run(gate, z, is_noisy, noise, d_weights, static_cast<Total*>(nullptr), expected_gradients);

  const auto run_parts = [&](auto& add_up, Gate<double>& to, const auto& check) {
    for (std::size_t p = 0; p + 1 < begins.size(); ++p) {
      const Index begin = begins[p], count = begins[p + 1] - begin;
      check(begin, run(gate, z.middleRows(begin, count), is_noisy, noise.middleRows(begin, count),
                       d_weights.middleRows(begin, count), &add_up, to));
    }
  };
  Total total;
  Gate<double> ignored(expected_gradients);
  run_parts(total, ignored, [](Index, const Decision&) {});
  const auto as_all = [&](std::span<double> sums, std::span<Index> counts) {
    REQUIRE(sums.size() == total.sums.size());
    REQUIRE(counts.size() == total.counts.size());
    std::copy(total.sums.begin(), total.sums.end(), sums.begin());
    std::copy(total.counts.begin(), total.counts.end(), counts.begin());
  };
  // All sums over the rows are of one sign, so that another order changes them by γ_rows of themselves; from
  // there on some dozens of roundings, in N terms each, lead to a gradient.
  const double tolerance = double(gamma<double>(4 * rows + 50 * experts));
  const auto close = [&](const auto& actual, const auto& of_all) {
    return disagreement_in_max_norm(actual, of_all, tolerance);
  };
  const auto vector_of = [](const std::vector<double>& values) {
    return Vector<double>(Eigen::Map<const Vector<double>>(values.data(), static_cast<Index>(values.size())));
  };
  run_parts(as_all, gradients, [&](Index begin, const Decision& part) {
    CHECK(share_of_bound(part.routing.loss, expected.routing.loss, tolerance * expected.routing.loss) <= 1);
    CHECK(close(vector_of(part.routing.importance), vector_of(expected.routing.importance)) == "");
    CHECK(close(vector_of(part.routing.load), vector_of(expected.routing.load)) == "");
    const Index count = part.dz.rows();
    if (count == 0) return;
    const double norm = expected.dz.cwiseAbs().maxCoeff();
    CHECK(disagreement(part.dz, Matrix<double>(expected.dz.middleRows(begin, count)),
                       Matrix<double>::Constant(count, features, tolerance * norm)) == "");
  });
  CHECK(close(gradients.weight(), expected_gradients.weight()) == "");
  CHECK(close(gradients.noise_weight(), expected_gradients.noise_weight()) == "");
  CHECK(expected_gradients.noise_weight().isZero(0) == !is_noisy);
}

}  // namespace statistics_reduction_test
}  // namespace

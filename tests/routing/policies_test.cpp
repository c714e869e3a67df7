// Every combination of scores, selection, capacity, losses, K and mask against plain arithmetic in long
// double, and the gradients against its central differences.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <meo/routing/gate.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace policies_test {

using namespace meo;
using namespace meo::test;

using Real = long double;
using Reals = Matrix<Real>;

// ---------------------------------------------------------------------------------------------------------------
// The arithmetic. Experts that are out have a logit of −∞.

constexpr Real out = -std::numeric_limits<Real>::infinity();

struct Problem {
  RoutingOptions options;
  Index top_k = 1;
  std::vector<unsigned char> allowed;
  std::vector<Index> parts;  // R + 1 … offsets
  std::vector<Real> correction;
};

/// Of each row the selected, and whether there is room for them.
struct Selected {
  std::vector<std::vector<Index>> experts;
  std::vector<std::vector<bool>> kept;
};

Reals masked(const Problem& problem, const Reals& logits) {
  Reals result = logits;
  for (Index j = 0; j < result.cols(); ++j) {
    if (!problem.allowed.empty() && problem.allowed[std::size_t(j)] == 0) result.col(j).setConstant(out);
  }
  return result;
}

Reals softmax(const Reals& logits, double temperature) {
  Reals e = logits;
  for (Index r = 0; r < e.rows(); ++r) {
    const Real largest = e.row(r).maxCoeff();
    Real sum = 0;
    for (Real& value : e.row(r)) sum += value = std::exp((value - largest) / Real(temperature));
    for (Real& value : e.row(r)) value /= sum;
  }
  return e;
}

/// Of all experts; −∞ for a linear score of one that is out.
Reals scores_of(const Problem& problem, const Reals& logits) {
  const ScoreOptions& options = problem.options.scores;
  const Reals of = masked(problem, logits);
  if (options.function == ScoreFunction::softmax) return softmax(of, options.temperature);
  if (options.function == ScoreFunction::sigmoid)
    return of.unaryExpr([&](Real x) { return 1 / (1 + std::exp(-x / Real(options.temperature))); });
  return of / Real(options.temperature);
}

std::vector<Index> descending(const std::vector<Real>& values, Index count) {
  std::vector<Index> order(values.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](Index a, Index b) { return values[std::size_t(a)] > values[std::size_t(b)]; });
  std::erase_if(order, [&](Index i) { return values[std::size_t(i)] == out; });
  if (Index(order.size()) > count) order.resize(std::size_t(count));
  return order;
}

std::vector<Index> select_row(const Problem& problem, const std::vector<Real>& scores) {
  const SelectionOptions& options = problem.options.selection;
  std::vector<Real> left = scores;
  const Index size = Index(scores.size()) / options.groups;
  std::vector<Real> of_groups;
  for (Index g = 0; g < options.groups; ++g) {
    std::vector<Real> group(scores.begin() + g * size, scores.begin() + (g + 1) * size);
    std::sort(group.begin(), group.end(), std::greater<>());
    const bool adds = options.group_score == GroupScore::two_largest && group[1] != out;
    of_groups.push_back(adds ? group[0] + group[1] : group[0]);
  }
  const std::vector<Index> best = descending(of_groups, options.top_groups);
  for (Index j = 0; j < Index(scores.size()); ++j) {
    if (std::find(best.begin(), best.end(), j / size) == best.end()) left[std::size_t(j)] = out;
  }
  return descending(left, problem.top_k);
}

Index capacity(const Problem& problem, Index rows, Index experts) {
  const SelectionOptions& options = problem.options.selection;
  if (options.capacity > 0) return options.capacity;
  if (options.capacity_factor == 0) return rows;
  return std::max<Index>(1, Index(options.capacity_factor * double(rows * problem.top_k) / double(experts)));
}

Selected select(const Problem& problem, const Reals& logits) {
  const Index rows = logits.rows(), experts = logits.cols();
  Reals scores = scores_of(problem, logits);
  for (Index j = 0; j < experts; ++j) {
    if (!problem.allowed.empty() && problem.allowed[std::size_t(j)] == 0) scores.col(j).setConstant(out);
    if (!problem.correction.empty()) scores.col(j).array() += problem.correction[std::size_t(j)];
  }
  Selected selected{std::vector<std::vector<Index>>(std::size_t(rows)), {}};
  const bool by_experts = problem.options.selection.method == SelectionMethod::expert_choice;
  for (std::size_t p = 0; p + 1 < problem.parts.size(); ++p) {
    const Index begin = problem.parts[p], end = problem.parts[p + 1];
    if (by_experts) {
      for (Index j = 0; j < experts; ++j) {
        std::vector<Real> column;
        for (Index r = begin; r < end; ++r) column.push_back(scores(r, j));
        for (const Index r : descending(column, capacity(problem, end - begin, experts)))
          selected.experts[std::size_t(begin + r)].push_back(j);
      }
      continue;
    }
    for (Index r = begin; r < end; ++r) {
      selected.experts[std::size_t(r)] = select_row(problem, {scores.row(r).begin(), scores.row(r).end()});
    }
  }
  for (std::size_t p = 0; p + 1 < problem.parts.size(); ++p) {
    const Index begin = problem.parts[p], end = problem.parts[p + 1];
    std::vector<Index> room(std::size_t(experts), capacity(problem, end - begin, experts));
    for (Index r = begin; r < end; ++r) {
      selected.kept.emplace_back();
      for (const Index j : selected.experts[std::size_t(r)])
        selected.kept.back().push_back(by_experts || room[std::size_t(j)]-- > 0);
    }
  }
  return selected;
}

struct Decision {
  Reals weights;  // R × N; 0 where there is no pair
  std::vector<Real> importance, load;
  Real loss = 0;
};

Real cv(const std::vector<Real>& values) {
  if (values.size() < 2) return 0;
  const Real n = Real(values.size());
  const Real mean = std::accumulate(values.begin(), values.end(), Real(0)) / n;
  Real squares = 0;
  for (const Real value : values) squares += (value - mean) * (value - mean);
  return squares / (n - 1) / (mean * mean + 1e-10L);
}

/// The selected given: what depends on logits beside is smooth. load: null where it is a count.
Decision decide(const Problem& problem, const Reals& logits, const Selected& selected,
                const std::vector<Real>* load = nullptr) {
  const ScoreOptions& options = problem.options.scores;
  const LossOptions& losses = problem.options.losses;
  const Index rows = logits.rows(), experts = logits.cols();
  const Reals scores = scores_of(problem, logits);
  Decision decision{Reals::Zero(rows, experts), std::vector<Real>(std::size_t(experts)),
                    std::vector<Real>(std::size_t(experts))};
  for (Index r = 0; r < rows; ++r) {
    const std::vector<Index>& of_row = selected.experts[std::size_t(r)];
    std::vector<Real> weights;
    for (const Index j : of_row) {
      const bool is_exp = options.function == ScoreFunction::softmax_selected;
      weights.push_back(is_exp ? std::exp(scores(r, j)) : scores(r, j));
    }
    Real sum = 1;
    if (options.normalize || options.function == ScoreFunction::softmax_selected)
      sum = std::accumulate(weights.begin(), weights.end(), Real(0));
    for (std::size_t i = 0; i < of_row.size(); ++i) {
      decision.load[std::size_t(of_row[i])] += 1;
      if (!selected.kept[std::size_t(r)][i]) continue;
      const Real weight = weights[i] / sum * Real(options.scale);
      decision.weights(r, of_row[i]) = weight;
      decision.importance[std::size_t(of_row[i])] += weight;
    }
  }
  const std::vector<Real> counts = decision.load;
  if (load != nullptr) decision.load = *load;
  decision.loss = Real(problem.options.loss_coefficient) * (cv(decision.importance) + cv(decision.load));
  const Reals of = masked(problem, logits);
  const bool is_sigmoid = options.function == ScoreFunction::sigmoid;
  const Reals p = is_sigmoid ? scores : softmax(of, options.temperature);
  const Real all = std::accumulate(counts.begin(), counts.end(), Real(0));
  for (Index r = 0; r < rows; ++r) {
    Real log_sum = 0;
    for (Index j = 0; j < experts; ++j) {
      decision.loss += Real(losses.share_coefficient) * Real(experts) * counts[std::size_t(j)] / all *
                       p(r, j) / p.row(r).sum() / Real(rows);
      log_sum += std::exp(of(r, j));
    }
    const Real z = std::log(log_sum);
    decision.loss += Real(losses.z_coefficient) * z * z / Real(rows);
  }
  return decision;
}

// ---------------------------------------------------------------------------------------------------------------
// Random problems

constexpr std::array functions{ScoreFunction::softmax_selected, ScoreFunction::softmax,
                               ScoreFunction::sigmoid, ScoreFunction::identity};

Index draw(Generator& rng, Index least, Index most) {
  return least + Index(rng() % std::uint64_t(most - least + 1));
}
bool flip(Generator& rng) { return rng() % 2 == 0; }

struct Case {
  Problem problem;
  Index rows, experts;
  Matrix<double> z;  // R × N: the logits without their bias
  Vector<double> bias;

  Reals logits() const {
    Reals result = z.cast<Real>();
    if (bias.size() > 0) result.rowwise() += bias.cast<Real>().transpose();
    return result;
  }
};

Case random_case(Generator& rng) {
  Case c;
  Problem& problem = c.problem;
  SelectionOptions& selection = problem.options.selection;
  ScoreOptions& scores = problem.options.scores;
  c.rows = draw(rng, 0, 9);
  selection.groups = draw(rng, 1, 4);
  const Index group_size = draw(rng, 1, 4);
  c.experts = selection.groups * group_size;
  scores.function = functions[rng() % functions.size()];
  scores.normalize = scores.function != ScoreFunction::identity && flip(rng);
  if (flip(rng)) scores.temperature = 0.75;
  if (flip(rng)) scores.scale = 2.5;
  scores.bias = flip(rng);
  if (flip(rng)) selection.method = SelectionMethod::expert_choice;
  const bool by_experts = selection.method == SelectionMethod::expert_choice;
  if (by_experts) selection.groups = 1;
  selection.top_groups = draw(rng, 1, selection.groups);
  if (!by_experts && group_size >= 2 && flip(rng)) selection.group_score = GroupScore::two_largest;
  selection.correction_bias = !by_experts && flip(rng);
  const auto limit = by_experts ? 1 + rng() % 2 : rng() % 3;
  if (limit == 1) selection.capacity = draw(rng, 1, 4);
  if (limit == 2) selection.capacity_factor = 0.25 * double(draw(rng, 1, 8));
  // With weights of both signs cv² has poles.
  problem.options.loss_coefficient = scores.function == ScoreFunction::identity ? 0 : 0.5;
  if (flip(rng)) problem.options.losses.share_coefficient = 0.25;
  if (flip(rng)) problem.options.losses.z_coefficient = 0.125;
  problem.top_k = draw(rng, 1, by_experts ? c.experts : selection.top_groups * group_size);
  if (flip(rng)) {
    for (Index j = 0; j < c.experts; ++j) problem.allowed.push_back(flip(rng) ? 1 : 0);
    problem.allowed[std::size_t(draw(rng, 0, c.experts - 1))] = 1;
  }
  problem.parts = {0, c.rows};
  if (flip(rng)) problem.parts.insert(problem.parts.begin() + 1, draw(rng, 0, c.rows));
  c.z = 2 * random_matrix<double>(rng, c.rows, c.experts);
  if (scores.bias) c.bias = random_vector<double>(rng, c.experts);
  for (Index j = 0; selection.correction_bias && j < c.experts; ++j)
    problem.correction.push_back(uniform<double>(rng) / 2);
  if (flip(rng)) return c;
  // Ties. Values of which no two pairs have the same sum, so that rounding decides on none; with expert
  // choice whole rows, of which rounding makes the same.
  constexpr std::array<double, 4> values{-0.7, 0.23, 0.91, 1.3};
  if (by_experts) {
    for (Index r = 1; r < c.rows; ++r) {
      if (flip(rng)) c.z.row(r) = c.z.row(draw(rng, 0, r - 1));
    }
    return c;
  }
  for (double& value : c.z.reshaped()) value = values[rng() % values.size()];
  if (flip(rng)) c.bias.setZero();
  if (flip(rng)) std::fill(problem.correction.begin(), problem.correction.end(), 0.5L);
  return c;
}

std::string to_text(const Case& c) {
  const RoutingOptions& o = c.problem.options;
  std::ostringstream text;
  text << c.rows << " x " << c.experts << ", K " << c.problem.top_k << ", " << to_string(o.scores.function)
       << " normalize " << o.scores.normalize << " temperature " << o.scores.temperature << " scale "
       << o.scores.scale << " bias " << o.scores.bias << ", method " << int(o.selection.method) << " groups "
       << o.selection.groups << " top " << o.selection.top_groups << " score " << int(o.selection.group_score)
       << " correction " << o.selection.correction_bias << " capacity " << o.selection.capacity << " factor "
       << o.selection.capacity_factor << ", losses " << o.losses.share_coefficient << ' '
       << o.losses.z_coefficient << ", masked " << !c.problem.allowed.empty() << ", parts "
       << c.problem.parts.size() - 1;
  return text.str();
}

/// A gate whose logits are the rows of z and the bias.
Gate<double> gate_of(const Case& c, bool has_k) {
  Gate<double> gate(c.experts, c.experts, has_k ? c.problem.top_k : 1, c.problem.options);
  gate.set_weight(Matrix<double>::Identity(c.experts, c.experts));
  if (c.bias.size() > 0) gate.set_bias(c.bias);
  if (!c.problem.correction.empty()) {
    gate.set_correction_bias(
        Eigen::Map<const Vector<Real>>(c.problem.correction.data(), c.experts).cast<double>());
  }
  return gate;
}

Reals row_of(const std::vector<Real>& values) {
  return Eigen::Map<const Reals>(values.data(), 1, Index(values.size()));
}
Matrix<double> row_of(const std::vector<double>& values) {
  return Eigen::Map<const Matrix<double>>(values.data(), 1, Index(values.size()));
}

/// Against the largest, or 1 where all are smaller: some are zero by their arithmetic and not in rounding.
std::string off(const Matrix<double>& actual, const Reals& expected, Real tolerance) {
  const Real norm = expected.size() == 0 ? 1 : std::max(expected.cwiseAbs().maxCoeff(), Real(1));
  return disagreement(actual, expected, Reals::Constant(expected.rows(), expected.cols(), tolerance * norm));
}

constexpr int cases = 3000;

TEST_CASE("a gate decides as the arithmetic says, by any policies", "[policies]") {
  Generator rng(301);
  Routing<double> routing;
  GateWorkspace<double> workspace;  // one for all
  int ragged = 0;
  for (int i = 0; i < cases; ++i) {
    const Case c = random_case(rng);
    INFO(i << ": " << to_text(c));
    const bool has_k = flip(rng);  // else the call has
    const Selected selected = select(c.problem, c.logits());
    const Decision expected = decide(c.problem, c.logits(), selected);
    gate_of(c, has_k).route(c.z, {}, routing, workspace,
                            {.top_k = has_k ? 0 : c.problem.top_k,
                             .allowed_experts = c.problem.allowed,
                             .parts = c.problem.parts});
    routing.check(c.rows, c.experts);
    for (Index r = 0; r < c.rows; ++r) {
      std::vector<Index> kept;
      for (std::size_t s = 0; s < selected.experts[std::size_t(r)].size(); ++s) {
        if (selected.kept[std::size_t(r)][s]) kept.push_back(selected.experts[std::size_t(r)][s]);
      }
      const auto experts = routing.row_experts(r);
      CHECK(std::vector<Index>(experts.begin(), experts.end()) == kept);
    }
    ragged += routing.begins.empty() ? 0 : 1;
    CHECK(off(routing.dense(), expected.weights, 1e-13L) == "");
    CHECK(off(row_of(routing.importance), row_of(expected.importance), 1e-13L) == "");
    CHECK(row_of(routing.load).cast<Real>() == row_of(expected.load));
    if (c.rows > 0)
      CHECK(std::abs(Real(routing.loss) - expected.loss) <= 1e-13L * std::max(std::abs(expected.loss), 1.0L));
    else CHECK(routing.loss == 0);
  }
  CHECK(ragged > cases / 10);
}

TEST_CASE("gradients are the derivatives, by any policies", "[policies]") {
  Generator rng(302);
  Routing<double> routing;
  GateWorkspace<double> workspace;
  GateGradientWorkspace<double> gradient_workspace;
  for (int i = 0; i < cases / 2; ++i) {
    Case c = random_case(rng);
    INFO(i << ": " << to_text(c));
    const Gate<double> gate = gate_of(c, true);
    Gate<double> gradients(c.experts, c.experts, c.problem.top_k, c.problem.options);
    gate.route(c.z, {}, routing, workspace, {.allowed_experts = c.problem.allowed, .parts = c.problem.parts});
    const Matrix<double> d_weights = random_matrix<double>(rng, c.rows, c.experts);
    std::vector<double> of_pairs;
    for (Index r = 0; r < c.rows; ++r) {
      for (const Index j : routing.row_experts(r)) of_pairs.push_back(d_weights(r, j));
    }
    std::vector<unsigned char> constant;
    for (Index r = 0; r < c.rows; ++r) constant.push_back(rng() % 8 == 0 ? 1 : 0);
    const double d_loss = 0.75;
    Matrix<double> dz = Matrix<double>::Constant(c.rows, c.experts, 7);
    gate.backward({c.z, routing, workspace, constant}, of_pairs, d_loss, gradients, dz, false,
                  gradient_workspace);

    const Reals logits = c.logits();
    const Selected selected = select(c.problem, logits);
    const auto value = [&](const Reals& at) {
      const Decision decision = decide(c.problem, at, selected);
      return d_weights.cast<Real>().cwiseProduct(decision.weights).sum() + Real(d_loss) * decision.loss;
    };
    Reals expected = Reals::Zero(c.rows, c.experts);
    for (Index k = 0; k < expected.size(); ++k) {
      if (constant[std::size_t(k / c.experts)] != 0) continue;
      constexpr Real step = 1e-6L;
      Reals up = logits, down = logits;
      up.data()[k] += step;
      down.data()[k] -= step;
      expected.data()[k] = (value(up) - value(down)) / (2 * step);
    }
    CHECK(off(dz, expected, 1e-9L) == "");
    const Reals of_weight = c.z.cast<Real>().transpose() * expected;
    CHECK(off(gradients.weight(), of_weight, 1e-9L) == "");
    if (c.bias.size() == 0) continue;
    const Reals of_bias = expected.colwise().sum();
    CHECK(off(gradients.bias().transpose(), of_bias, 1e-9L) == "");
  }
}

/// ℓ, σ and ℓ̃ of the gate's noise.
struct Noisy {
  Reals logits, deviations, noisy;
};

TEST_CASE("noise comes before the policies, and gradients go through it", "[policies]") {
  Generator rng(303);
  Routing<double> routing;
  GateWorkspace<double> workspace;
  GateGradientWorkspace<double> gradient_workspace;
  int estimates = 0;
  for (int i = 0; i < cases / 10; ++i) {
    Case c = random_case(rng);
    c.problem.options.noise_epsilon = 0.25;
    if (flip(rng)) {  // what the load is estimated with
      SelectionOptions& selection = c.problem.options.selection;
      c.problem.allowed.clear();
      c.problem.correction.clear();
      selection.correction_bias = false;
      selection.top_groups = selection.groups;
    }
    INFO(i << ": " << to_text(c));
    const Matrix<double> noise = random_normal<double>(rng, c.rows, c.experts);
    const Matrix<double> noise_weight = random_matrix<double>(rng, c.experts, c.experts);
    Gate<double> gate = gate_of(c, true);
    gate.set_noise_weight(noise_weight);
    Gate<double> gradients(c.experts, c.experts, c.problem.top_k, c.problem.options);
    gate.route(c.z, Noise<double>(noise), routing, workspace,
               {.allowed_experts = c.problem.allowed, .parts = c.problem.parts});
    const Matrix<double> d_weights = random_matrix<double>(rng, c.rows, c.experts);
    std::vector<double> of_pairs;
    for (Index r = 0; r < c.rows; ++r) {
      for (const Index j : routing.row_experts(r)) of_pairs.push_back(d_weights(r, j));
    }
    Matrix<double> dz(c.rows, c.experts);
    gate.backward({c.z, routing, workspace}, of_pairs, 0.75, gradients, dz, false, gradient_workspace);

    const auto noisy_at = [&](const Reals& z, const Reals& weight) {
      Noisy at{z, z * weight, {}};
      if (c.bias.size() > 0) at.logits.rowwise() += c.bias.cast<Real>().transpose();
      at.deviations = at.deviations.unaryExpr([](Real s) { return std::log1p(std::exp(s)) + 0.25L; });
      at.noisy = at.logits + noise.cast<Real>().cwiseProduct(at.deviations);
      return at;
    };
    const Reals z = c.z.cast<Real>(), weight = noise_weight.cast<Real>();
    const Noisy here = noisy_at(z, weight);
    const Selected selected = select(c.problem, here.noisy);
    const SelectionOptions& selection = c.problem.options.selection;
    const Index k = c.problem.top_k;
    const bool estimates_load = k < c.experts && c.problem.allowed.empty() && c.problem.correction.empty() &&
                                selection.top_groups == selection.groups &&
                                selection.method == SelectionMethod::top_k;
    estimates += estimates_load ? 1 : 0;
    const auto decide_at = [&](const Noisy& at) {
      if (!estimates_load) return decide(c.problem, at.noisy, selected);
      std::vector<Real> load(std::size_t(c.experts));
      for (Index r = 0; r < c.rows; ++r) {
        const std::vector<Index> order =
            descending({here.noisy.row(r).begin(), here.noisy.row(r).end()}, k + 1);
        for (Index j = 0; j < c.experts; ++j) {
          const bool is_above = here.noisy(r, j) > here.noisy(r, order[std::size_t(k)]);
          const Real beaten = at.noisy(r, order[std::size_t(is_above ? k : k - 1)]);
          load[std::size_t(j)] +=
              std::erfc((beaten - at.logits(r, j)) / at.deviations(r, j) / std::sqrt(2.L)) / 2;
        }
      }
      return decide(c.problem, at.noisy, selected, &load);
    };
    const Decision expected = decide_at(here);
    CHECK(off(routing.dense(), expected.weights, 1e-13L) == "");
    CHECK(off(row_of(routing.load), row_of(expected.load), 1e-13L) == "");
    if (c.rows > 0)
      CHECK(std::abs(Real(routing.loss) - expected.loss) <= 1e-12L * std::max(std::abs(expected.loss), 1.0L));
    const auto derivative = [&](const Reals& of, const auto& noisy_of) {
      const auto value = [&](const Reals& moved) {
        const Decision decision = decide_at(noisy_of(moved));
        return d_weights.cast<Real>().cwiseProduct(decision.weights).sum() + 0.75L * decision.loss;
      };
      Reals result(of.rows(), of.cols());
      for (Index e = 0; e < of.size(); ++e) {
        constexpr Real step = 1e-6L;
        Reals up = of, down = of;
        up.data()[e] += step;
        down.data()[e] -= step;
        result.data()[e] = (value(up) - value(down)) / (2 * step);
      }
      return result;
    };
    CHECK(off(dz, derivative(z, [&](const Reals& at) { return noisy_at(at, weight); }), 1e-8L) == "");
    CHECK(off(gradients.noise_weight(), derivative(weight, [&](const Reals& at) { return noisy_at(z, at); }),
              1e-8L) == "");
  }
  CHECK(estimates > cases / 100);
}

}  // namespace policies_test
}  // namespace

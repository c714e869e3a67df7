#pragma once

/// Mixtures of experts as their definition reads, in plain Eigen: the oracle that the library is held
/// against.
///
/// Source: He et al., "Merging Experts into One", EMNLP 2023 (arXiv 2310.09832). Written for clarity; nothing
/// here shares code with the library but the matrix types. Results are Bounded (support/bounds.hpp): computed
/// in Wide<S> from data in S, with the error that a computation in S may have.
///
/// Letters: B sequences, T tokens, D in_features, F out_features, N num_experts, K top_k, R gated rows,
/// D_g gate features, S task features.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <vector>

#include <Eigen/Core>

#include <meo/types.hpp>

#include "support/bounds.hpp"

namespace meo::reference {

using test::Bounded;
using test::gamma;
using test::Wide;

/// Rows begin … end − 1 of a matrix.
struct Rows {
  Index begin = 0, end = 0;
  Index count() const { return end - begin; }
};

/// x Wᵀ + b with W out × in and b of size out, or none where the bias is empty.
template <class S>
struct Affine {
  Matrix<S> weight;
  Vector<S> bias;

  Bounded<S> operator()(const Bounded<S>& x) const {
    return test::affine(x, Matrix<Wide<S>>(weight.template cast<Wide<S>>()),
                        Vector<Wide<S>>(bias.template cast<Wide<S>>()));
  }
};

enum class Kind { moe, meo };

/// Everything that a layer is.
template <class S>
struct Layer {
  Kind kind = Kind::meo;
  Level level = Level::sequence;
  Index top_k = 1;
  std::vector<Affine<S>> experts;          // N times F × D
  Matrix<S> gate_weight, noise_weight;     // D_g × N
  Affine<S> attention_down, attention_up;  // MEO at token level: V, v and U, u
  Affine<S> task_projection;               // task level: P, p
  Index reduce_factor = 64;                // r: V has ⌊D/r⌋ rows, P ⌊S/r⌋, at least one
  bool gate_before_attention = false;
  double loss_coefficient = 1e-2, noise_epsilon = 1e-2;

  Index num_experts() const { return Index(experts.size()); }
  Index in_features() const { return experts.front().weight.cols(); }
  Index out_features() const { return experts.front().weight.rows(); }
  bool has_bias() const { return experts.front().bias.size() != 0; }
  bool gates_tokens() const { return kind == Kind::moe && level == Level::token; }
  bool has_attention() const { return kind == Kind::meo && level == Level::token; }
};

/// What a batch holds beside x.
template <class S>
struct Batch {
  std::vector<Index> offsets;  // B + 1: sequence b is rows offsets[b] … offsets[b + 1] − 1 of x
  Matrix<S> task_embeddings;   // task level: Σ L × S
  std::vector<Index> description_offsets;  // task level
  std::vector<Index> task_of_sequence;     // task level: description of each sequence
  Matrix<S> noise;                         // R × N standard normal; empty at inference

  Index size() const { return Index(offsets.size()) - 1; }
  Index tokens() const { return offsets.back(); }
  Rows sequence(Index b) const { return {offsets[std::size_t(b)], offsets[std::size_t(b) + 1]}; }
  Rows description(Index d) const {
    return {description_offsets[std::size_t(d)], description_offsets[std::size_t(d) + 1]};
  }
};

inline std::vector<Index> offsets_from_lengths(const std::vector<Index>& lengths) {
  std::vector<Index> offsets(lengths.size() + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), offsets.begin() + 1);
  return offsets;
}

template <class S>
struct Gating {
  std::vector<std::vector<Index>> selected;  // R rows of K experts, by descending noisy logit
  Bounded<S> gates;                          // R × N, zero where not selected
  Bounded<S> importance, load;               // 1 × N
  Bounded<S> loss;                           // 1 × 1
  bool decided = true;                       // no rounding in S can select other experts
};

/// Φ, the standard normal distribution function.
template <class W>
W normal_cdf(W x) {
  return std::erfc(-x / std::numbers::sqrt2_v<W>) / 2;
}

/// softplus(x) = log(1 + eˣ).
template <class W>
W softplus(W x) {
  return std::max(x, W(0)) + std::log1p(std::exp(-std::abs(x)));
}

/// cv²(v) = var(v) / (mean(v)² + 1e-10), the variance unbiased; 0 for one element. v: 1 × N.
template <class S>
Bounded<S> squared_coefficient_of_variation(const Bounded<S>& v) {
  using W = Wide<S>;
  const Index n = v.cols();
  Bounded<S> result(1, 1);
  if (n < 2) return result;

  const W mean = v.value.mean();
  const Matrix<W> deviation = (v.value.array() - mean).matrix();
  const W variance = deviation.squaredNorm() / W(n - 1);
  const W denominator = mean * mean + W(1e-10);
  result.value(0, 0) = variance / denominator;

  // The error of the mean, of each deviation from it, of the variance and of the denominator, in turn.
  const W mean_error = v.error.mean() + gamma<S>(n) * v.magnitude().mean();
  Matrix<W> deviation_error = v.error + gamma<S>(1) * v.magnitude();
  deviation_error.array() += mean_error + gamma<S>(1) * (std::abs(mean) + mean_error);
  const Matrix<W> deviation_magnitude = deviation.cwiseAbs() + deviation_error;
  const W variance_error =
      (2 * deviation.cwiseAbs().cwiseProduct(deviation_error).sum() + deviation_error.squaredNorm() +
       gamma<S>(n + 2) * deviation_magnitude.squaredNorm()) /
      W(n - 1);
  const W mean_magnitude = std::abs(mean) + mean_error;
  const W denominator_error = 2 * std::abs(mean) * mean_error + mean_error * mean_error +
                              gamma<S>(3) * (mean_magnitude * mean_magnitude + W(1e-10));
  // A denominator that may vanish has no bound; infinity says so.
  const W smallest_denominator = denominator - denominator_error;
  result.error(0, 0) = smallest_denominator > 0 ? (variance_error + result.value(0, 0) * denominator_error) /
                                                          smallest_denominator * (1 + gamma<S>(1)) +
                                                      gamma<S>(1) * result.value(0, 0)
                                                : std::numeric_limits<W>::infinity();
  return result;
}

/// coefficient · (cv²(importance) + cv²(load)): 1 × 1.
template <class S>
Bounded<S> balance_loss(const Bounded<S>& importance, const Bounded<S>& load, double coefficient) {
  Bounded<S> factor(1, 1);
  factor.value(0, 0) = Wide<S>(coefficient);
  factor.error(0, 0) = gamma<S>(1) * Wide<S>(coefficient);
  return test::multiply(
      test::add(squared_coefficient_of_variation(importance), squared_coefficient_of_variation(load)),
      factor);
}

/// Expert indices by descending logit, ties by lower index.
template <class W>
std::vector<Index> ranking(const Matrix<W>& row) {
  std::vector<Index> order(std::size_t(row.cols()));
  std::iota(order.begin(), order.end(), Index(0));
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return row(0, a) > row(0, b); });
  return order;
}

/// Gates of the rows z (R × D_g), with the noise of a training step or none (an empty matrix).
///
/// load: the derivative of Φ is at most 1/√(2π), so Φ((ℓ − τ)/σ) carries at most that times the error of the
/// quotient.
template <class S>
Gating<S> gate(const Layer<S>& layer, const Bounded<S>& z, const Matrix<S>& noise) {
  using W = Wide<S>;
  const Index rows = z.rows(), n = layer.num_experts(), k = layer.top_k;
  const bool noisy = noise.size() != 0;

  const Bounded<S> logits = Affine<S>{layer.gate_weight.transpose(), {}}(z);
  Bounded<S> sigma(rows, n), selection_logits = logits;
  if (noisy) {
    const Bounded<S> raw = Affine<S>{layer.noise_weight.transpose(), {}}(z);
    sigma = test::apply(raw, softplus<W>, W(1), 2 * test::function_roundings, W(1));
    const Matrix<W> epsilon = Matrix<W>::Constant(rows, n, W(layer.noise_epsilon));
    sigma = test::add(sigma, Bounded<S>::exact(epsilon));
    selection_logits = test::add(logits, test::multiply(Bounded<S>::exact(noise), sigma));
  }

  Gating<S> result;
  result.gates = Bounded<S>(rows, n);
  Bounded<S> load_of_row(rows, n);
  for (Index r = 0; r < rows; ++r) {
    const Bounded<S> row = selection_logits.middle_rows(r, 1);
    const std::vector<Index> order = ranking(row.value);
    const std::vector<Index> selected(order.begin(), order.begin() + k);
    result.selected.push_back(selected);

    Bounded<S> chosen(1, k);
    for (Index i = 0; i < k; ++i) {
      chosen.value(0, i) = row.value(0, selected[std::size_t(i)]);
      chosen.error(0, i) = row.error(0, selected[std::size_t(i)]);
    }
    const Bounded<S> weights = test::softmax(chosen);
    for (Index i = 0; i < k; ++i) {
      result.gates.value(r, selected[std::size_t(i)]) = weights.value(0, i);
      result.gates.error(r, selected[std::size_t(i)]) = weights.error(0, i);
    }

    // Ranks i and i + 1 are decided when rounding cannot swap them; an exact tie is decided by the index.
    // Only ranks up to K matter: they are the order in which the experts are listed, and who is the last.
    for (Index i = 0; i < k && i + 1 < n; ++i) {
      const Index a = order[std::size_t(i)], b = order[std::size_t(i + 1)];
      const W gap = row.value(0, a) - row.value(0, b);
      if (gap != 0 && gap <= row.error(0, a) + row.error(0, b)) result.decided = false;
    }

    for (Index j = 0; j < n; ++j) {
      if (!noisy || k == n) {
        load_of_row.value(r, j) = std::find(selected.begin(), selected.end(), j) != selected.end() ? 1 : 0;
        continue;
      }
      const Index next = order[std::size_t(k)], last = order[std::size_t(k - 1)];
      const Index threshold = row.value(0, j) > row.value(0, next) ? next : last;
      const W distance = logits.value(r, j) - row.value(0, threshold);
      const W spread = sigma.value(r, j);
      const W quotient = distance / spread;
      const W distance_error = logits.error(r, j) + row.error(0, threshold);
      const W quotient_error = (distance_error + std::abs(quotient) * sigma.error(r, j)) /
                                   std::max(spread - sigma.error(r, j), std::numeric_limits<W>::min()) +
                               gamma<S>(4) * std::abs(quotient);
      load_of_row.value(r, j) = normal_cdf(quotient);
      load_of_row.error(r, j) = quotient_error * std::numbers::inv_sqrtpi_v<W> / std::numbers::sqrt2_v<W> +
                                gamma<S>(2 * test::function_roundings);
    }
  }
  result.importance = test::sum_of_rows(result.gates);
  result.load = test::sum_of_rows(load_of_row);
  result.loss = balance_loss(result.importance, result.load, layer.loss_coefficient);
  return result;
}

/// x + U relu(V x + v) + u for every row of x. The three parts of the sum may be added in any order: D_r
/// products and D_r + 2 terms.
template <class S>
Bounded<S> token_attention(const Layer<S>& layer, const Bounded<S>& x) {
  using W = Wide<S>;
  const auto relu = [](W value) { return std::max(value, W(0)); };
  const Bounded<S> hidden = test::apply(layer.attention_down(x), relu, W(1), 0);
  const Matrix<W> weight = layer.attention_up.weight.template cast<W>();
  const Vector<W> bias = layer.attention_up.bias.template cast<W>();
  Bounded<S> y(x.rows(), x.cols());
  y.value = x.value + (test::times_transposed(hidden.value, weight).rowwise() + bias.transpose());
  const Matrix<W> magnitude =
      x.magnitude() +
      (test::times_transposed(hidden.magnitude(), weight.cwiseAbs()).rowwise() + bias.cwiseAbs().transpose());
  y.error = x.error + test::times_transposed(hidden.error, weight.cwiseAbs()) +
            gamma<S>(hidden.cols() + 2) * magnitude;
  return y;
}

/// The mean over the L rows of E Pᵀ + p, for data E (L × S): 1 × D_g; p where there are no rows, as their
/// mean is zero. Whether the mean or the projection comes first, a term passes at most S + L + 2 roundings.
template <class S>
Bounded<S> mean_projection(const Affine<S>& projection, const Matrix<S>& embeddings) {
  using W = Wide<S>;
  if (embeddings.rows() == 0) return Bounded<S>::exact(projection.bias.transpose());
  const Bounded<S> projected = projection(Bounded<S>::exact(embeddings));
  Bounded<S> mean = test::mean_of_rows(projected);
  const Matrix<W> magnitude = test::times_transposed(embeddings.cwiseAbs().template cast<W>(),
                                                     projection.weight.cwiseAbs().template cast<W>())
                                  .rowwise() +
                              projection.bias.cwiseAbs().template cast<W>().transpose();
  mean.error = gamma<S>(embeddings.cols() + embeddings.rows() + 2) * magnitude.colwise().mean();
  return mean;
}

/// Which rows of x a row of the gate governs: R ranges.
template <class S>
std::vector<Rows> gated_rows(const Layer<S>& layer, const Batch<S>& batch) {
  std::vector<Rows> ranges;
  if (layer.gates_tokens()) {
    for (Index t = 0; t < batch.tokens(); ++t) ranges.push_back({t, t + 1});
  } else {
    for (Index b = 0; b < batch.size(); ++b) ranges.push_back(batch.sequence(b));
  }
  return ranges;
}

/// z (R × D_g) for gates that look at x; at task level they look at the batch's descriptions instead.
template <class S>
Bounded<S> gate_input(const Layer<S>& layer, const Bounded<S>& x, const Batch<S>& batch) {
  const std::vector<Rows> ranges = gated_rows(layer, batch);
  const bool task = layer.level == Level::task;
  Bounded<S> z(Index(ranges.size()), task ? layer.task_projection.weight.rows() : x.cols());
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    if (task) {
      const Rows description = batch.description(batch.task_of_sequence[r]);
      const Matrix<S> embeddings = batch.task_embeddings.middleRows(description.begin, description.count());
      z.set_middle_rows(Index(r), mean_projection(layer.task_projection, embeddings));
    } else {
      z.set_middle_rows(Index(r), test::mean_of_rows(x.middle_rows(ranges[r].begin, ranges[r].count())));
    }
  }
  return z;
}

/// The rows x through the experts of row r of the gating: Σ g_i (x W_iᵀ + b_i), MEO with the experts merged
/// first.
///
/// Both orders, and any mixture of them, are within the same bound. A term g_i x_d W_i,fd passes at most D +
/// 1 roundings in the product and its bias, and K + 1 in the weighting and the sum over experts. Errors δg of
/// the gates and δx of x change the exact result by Σ δg_i |x W_iᵀ + b_i| + δx |Ŵ|ᵀ + Σ δg_i δx |W_i|ᵀ.
template <class S>
Bounded<S> mixture(const Layer<S>& layer, const Bounded<S>& x, const Gating<S>& gating, Index r) {
  using W = Wide<S>;
  const std::vector<Index>& selected = gating.selected[std::size_t(r)];
  Bounded<S> y(x.rows(), layer.out_features());
  Matrix<W> merged_weight = Matrix<W>::Zero(layer.out_features(), layer.in_features());
  Vector<W> merged_bias = Vector<W>::Zero(layer.out_features());
  for (const Index i : selected) {
    const W g = gating.gates.value(r, i), g_error = gating.gates.error(r, i);
    const Matrix<W> weight = layer.experts[std::size_t(i)].weight.template cast<W>();
    const Vector<W> bias = layer.has_bias() ? Vector<W>(layer.experts[std::size_t(i)].bias.template cast<W>())
                                            : Vector<W>(Vector<W>::Zero(layer.out_features()));
    const Matrix<W> output = test::times_transposed(x.value, weight).rowwise() + bias.transpose();
    const Matrix<W> magnitude =
        test::times_transposed(x.magnitude(), weight.cwiseAbs()).rowwise() + bias.cwiseAbs().transpose();

    merged_weight += g * weight;
    merged_bias += g * bias;
    if (layer.kind == Kind::moe) y.value += g * output;
    y.error += g_error * (output.cwiseAbs() + test::times_transposed(x.error, weight.cwiseAbs()));
    y.error += gamma<S>(layer.in_features() + layer.top_k + 2) * (g + g_error) * magnitude;
  }
  if (layer.kind == Kind::meo)
    y.value = test::times_transposed(x.value, merged_weight).rowwise() + merged_bias.transpose();
  y.error += test::times_transposed(x.error, merged_weight.cwiseAbs());
  return y;
}

/// Every gated range of rows through the experts that its gate selected.
template <class S>
Bounded<S> mixtures(const Layer<S>& layer, const Bounded<S>& x, const Gating<S>& gating,
                    const Batch<S>& batch) {
  const std::vector<Rows> ranges = gated_rows(layer, batch);
  Bounded<S> y(x.rows(), layer.out_features());
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    const Bounded<S> rows = x.middle_rows(ranges[r].begin, ranges[r].count());
    y.set_middle_rows(ranges[r].begin, mixture(layer, rows, gating, Index(r)));
  }
  return y;
}

/// x as the experts see it.
template <class S>
Bounded<S> attended(const Layer<S>& layer, const Bounded<S>& x) {
  return layer.has_attention() ? token_attention(layer, x) : x;
}

template <class S>
Gating<S> route(const Layer<S>& layer, const Bounded<S>& x, const Batch<S>& batch) {
  const Bounded<S>& seen = layer.gate_before_attention ? x : attended(layer, x);
  return gate(layer, gate_input(layer, seen, batch), batch.noise);
}

template <class S>
struct Result {
  Bounded<S> y;  // T × F
  Gating<S> gating;
};

template <class S>
Result<S> forward(const Layer<S>& layer, const Bounded<S>& x, const Batch<S>& batch) {
  Gating<S> gating = route(layer, x, batch);
  Bounded<S> y = mixtures(layer, attended(layer, x), gating, batch);
  return {std::move(y), std::move(gating)};
}

template <class S>
Result<S> forward(const Layer<S>& layer, const Matrix<S>& x, const Batch<S>& batch) {
  return forward(layer, Bounded<S>::exact(x), batch);
}

enum class Activation { relu, gelu, gelu_tanh, silu, identity };

/// Each has |f'| < 1.2 and |f(x)| ≤ |x|; a handful of operations around one exp, erf or tanh.
template <class S>
Bounded<S> activate(Activation activation, const Bounded<S>& x) {
  using W = Wide<S>;
  const Index roundings = 2 * test::function_roundings;
  switch (activation) {
    case Activation::relu:
      return test::apply(
          x, [](W v) { return std::max(v, W(0)); }, W(1), 0);
    case Activation::gelu:
      return test::apply(
          x, [](W v) { return v * normal_cdf(v); }, W(1.2), roundings);
    case Activation::gelu_tanh:
      return test::apply(
          x,
          [](W v) {
            const W inner = std::sqrt(2 / std::numbers::pi_v<W>) * (v + W(0.044715L) * v * v * v);
            return v / 2 * (1 + std::tanh(inner));
          },
          W(1.2), roundings);
    case Activation::silu:
      return test::apply(
          x, [](W v) { return v / (1 + std::exp(-v)); }, W(1.2), roundings);
    case Activation::identity:
      return x;
  }
  return {};
}

/// down(activation(up(x)) ⊙ gate_up(x)), the middle factor in gated blocks only.
template <class S>
struct Block {
  Layer<S> up, gate_up, down;
  bool gated = false;
  bool shared_gate = false;  // up's gate decides for all projections, from the block's input
  Activation activation = Activation::gelu;
};

template <class S>
struct BlockResult {
  Bounded<S> y, hidden;  // hidden: the input of down; of a shared gate's MoE, which has one per expert: empty
  Bounded<S> loss;       // 1 × 1
  Gating<S> up, gate_up, down;
};

/// activation(a) ⊙ b, or activation(a) where the block is not gated.
template <class S>
Bounded<S> hidden_of(const Block<S>& block, const Bounded<S>& a, const Bounded<S>& b) {
  const Bounded<S> activated = activate(block.activation, a);
  return block.gated ? test::multiply(activated, b) : activated;
}

/// Every projection with a gate of its own; the loss is the sum of theirs.
template <class S>
BlockResult<S> forward_with_own_gates(const Block<S>& block, const Bounded<S>& x, const Batch<S>& batch) {
  BlockResult<S> result;
  Result<S> up = forward(block.up, x, batch), gate_up;
  if (block.gated) gate_up = forward(block.gate_up, x, batch);
  result.hidden = hidden_of(block, up.y, gate_up.y);
  Result<S> down = forward(block.down, result.hidden, batch);
  result.loss = test::add(up.gating.loss, down.gating.loss);
  if (block.gated) result.loss = test::add(result.loss, gate_up.gating.loss);
  result.y = std::move(down.y);
  result.up = std::move(up.gating);
  result.gate_up = std::move(gate_up.gating);
  result.down = std::move(down.gating);
  return result;
}

/// One gate: MEO merges every projection with its weights, MoE runs whole blocks and adds them:
/// Σ g_i down_i(activation(up_i x) ⊙ gate_up_i x).
template <class S>
BlockResult<S> forward_with_shared_gate(const Block<S>& block, const Bounded<S>& x, const Batch<S>& batch) {
  using W = Wide<S>;
  BlockResult<S> result;
  result.up = route(block.up, x, batch);
  result.loss = result.up.loss;
  const auto merged = [&](const Layer<S>& layer, const Bounded<S>& input) {
    return mixtures(layer, attended(layer, input), result.up, batch);
  };
  if (block.up.kind == Kind::meo) {
    const Bounded<S> gate_up = block.gated ? merged(block.gate_up, x) : Bounded<S>();
    result.hidden = hidden_of(block, merged(block.up, x), gate_up);
    result.y = merged(block.down, result.hidden);
    return result;
  }
  const std::vector<Rows> ranges = gated_rows(block.up, batch);
  result.y = Bounded<S>(x.rows(), block.down.out_features());
  for (Index r = 0; r < Index(ranges.size()); ++r) {
    const Rows range = ranges[std::size_t(r)];
    const Bounded<S> rows = x.middle_rows(range.begin, range.count());
    Bounded<S> y(range.count(), block.down.out_features());
    for (const Index i : result.up.selected[std::size_t(r)]) {
      const auto expert = std::size_t(i);
      const Bounded<S> gate_up = block.gated ? block.gate_up.experts[expert](rows) : Bounded<S>();
      const Bounded<S> output =
          block.down.experts[expert](hidden_of(block, block.up.experts[expert](rows), gate_up));
      const W g = result.up.gates.value(r, i), g_error = result.up.gates.error(r, i);
      y.value += g * output.value;
      y.error += g_error * output.value.cwiseAbs() + (g + g_error) * output.error +
                 gamma<S>(block.up.top_k + 1) * (g + g_error) * output.magnitude();
    }
    result.y.set_middle_rows(range.begin, y);
  }
  return result;
}

template <class S>
BlockResult<S> forward(const Block<S>& block, const Matrix<S>& x, const Batch<S>& batch) {
  const Bounded<S> input = Bounded<S>::exact(x);
  return block.shared_gate ? forward_with_shared_gate(block, input, batch)
                           : forward_with_own_gates(block, input, batch);
}

// Most of what a test of the layers takes to compile; compiled once, in reference.cpp.
#define MEO_REFERENCE_INSTANCES(extern_or_none, S)                                                  \
  extern_or_none template Bounded<S> attended(const Layer<S>&, const Bounded<S>&);                  \
  extern_or_none template Gating<S> gate(const Layer<S>&, const Bounded<S>&, const Matrix<S>&);     \
  extern_or_none template Gating<S> route(const Layer<S>&, const Bounded<S>&, const Batch<S>&);     \
  extern_or_none template Bounded<S> mixtures(const Layer<S>&, const Bounded<S>&, const Gating<S>&, \
                                              const Batch<S>&);                                     \
  extern_or_none template Result<S> forward(const Layer<S>&, const Bounded<S>&, const Batch<S>&);   \
  extern_or_none template Result<S> forward(const Layer<S>&, const Matrix<S>&, const Batch<S>&);    \
  extern_or_none template BlockResult<S> forward(const Block<S>&, const Matrix<S>&, const Batch<S>&)

#if defined(MEO_TEST_INSTANCES)
MEO_REFERENCE_INSTANCES(extern, float);
MEO_REFERENCE_INSTANCES(extern, double);
MEO_REFERENCE_INSTANCES(extern, long double);
#endif

}  // namespace meo::reference

#pragma once

/// From a row's logits to scores, from the scores of those that are selected to their weights, and back to
/// gradients.
///
/// Letters: N num_experts, ℓ logits, τ temperature, s scores.

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>

#include <meo/errors.hpp>
#include <meo/kernels/vector_math.hpp>
#include <meo/scalar_options.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// What an expert's weight is made of.
enum class ScoreFunction {
  softmax_selected,  ///< exp(ℓ/τ) over the sum of those of the selected (Shazeer et al. 2017; Mixtral)
  softmax,           ///< exp(ℓ/τ) over the sum of those of all N (Switch, OLMoE, DeepSeek-V2, SMEAR)
  sigmoid,           ///< 1 / (1 + exp(−ℓ/τ)) (CondConv, DeepSeek-V3)
  identity           ///< ℓ/τ
};

/// The enumerator's name; "unknown" for what is none.
constexpr std::string_view to_string(ScoreFunction function) {
  switch (function) {
    case ScoreFunction::softmax_selected:
      return "softmax_selected";
    case ScoreFunction::softmax:
      return "softmax";
    case ScoreFunction::sigmoid:
      return "sigmoid";
    case ScoreFunction::identity:
      return "identity";
  }
  return "unknown";
}

/// How logits become weights.
struct ScoreOptions {
  ScoreFunction function = ScoreFunction::softmax_selected;  ///< from logits to scores
  bool normalize =
      false;  ///< a row's weights are divided by their sum; with softmax_selected they are anyway
  double temperature = 1;  ///< τ, which logits are divided by
  double scale = 1;        ///< weights are multiplied by it in the end
  bool bias = false;       ///< whether logits have a bias, a parameter of the gate (gpt-oss)

  bool operator==(const ScoreOptions&) const = default;
};

namespace detail {

/// Throws std::invalid_argument for options that make no weights.
template <class Scalar>
void check_scores(const ScoreOptions& options) {
  require(to_string(options.function) != "unknown",
          "scores.function: expected softmax_selected, softmax, sigmoid or identity, got ",
          static_cast<int>(options.function));
  require(!options.normalize || options.function != ScoreFunction::identity,
          "scores.normalize: expected false with identity, whose weights may sum to 0, got true");
  require_positive<Scalar>(options.temperature, "scores.temperature");
  require_positive<Scalar>(options.scale, "scores.scale");
}

/// Whether each row's weights sum to 1 before they are scaled.
constexpr bool are_normalized(const ScoreOptions& options) {
  return options.normalize || options.function == ScoreFunction::softmax_selected;
}

/// Whether the weight of a row's only expert is 1, whatever its logit.
constexpr bool is_single_weight_one(const ScoreOptions& options) {
  return are_normalized(options) && options.scale == 1;
}

/// Where a function's scores are the logits over τ.
constexpr bool scores_are_logits(ScoreFunction function) {
  return function == ScoreFunction::softmax_selected || function == ScoreFunction::identity;
}

/// Experts that a call leaves out, whose logits count as −∞. A view; null: there are none.
struct AllowedExperts {
  const unsigned char* allowed = nullptr;

  bool has(Index expert) const { return allowed == nullptr || allowed[expert] != 0; }
};

/// 1 / (1 + exp(−x)), without overflow.
template <class Scalar>
Scalar sigmoid(const Scalar& x) {
  using std::exp;
  if (x < Scalar(0)) {
    const Scalar e = exp(x);
    return e / (Scalar(1) + e);
  }
  return Scalar(1) / (Scalar(1) + exp(-x));
}

/// p = softmax(ℓ/τ) over a row's N logits, 0 for those left out. Returns log Σ exp(ℓ/τ).
template <class Scalar>
Sum<Scalar> softmax_row(const Scalar* logits, Index num_experts, AllowedExperts experts, double temperature,
                        Sum<Scalar>* p) {
  using std::log1p;
  using S = Sum<Scalar>;
  Index first = 0;
  while (!experts.has(first)) ++first;
  S largest = static_cast<S>(logits[first]);
  for (Index j = first + 1; j < num_experts; ++j) {
    if (experts.has(j) && static_cast<S>(logits[j]) > largest) largest = static_cast<S>(logits[j]);
  }
  const auto divisor = static_cast<S>(temperature);
  for (Index j = 0; j < num_experts; ++j) {
    const S exponent = (static_cast<S>(logits[j]) - largest) / divisor;
    p[j] = experts.has(j) ? exponent : S(0);
  }
  exponentials(p, num_experts);
  S sum(0);
  for (Index j = 0; j < num_experts; ++j) {
    if (!experts.has(j)) p[j] = S(0);
    sum += p[j];
  }
  for (Index j = 0; j < num_experts; ++j) p[j] = p[j] / sum;
  return S(largest / divisor) + S(log1p(sum - S(1)));  // the largest is 1 of the sum
}

/// A row's scores where they are no logits, and p where they are; 0 for experts that are left out.
template <class Scalar>
void score_row(const ScoreOptions& options, const Scalar* logits, Index num_experts, AllowedExperts experts,
               Sum<Scalar>* scores) {
  using S = Sum<Scalar>;
  if (options.function != ScoreFunction::sigmoid) {
    softmax_row(logits, num_experts, experts, options.temperature, scores);
    return;
  }
  // σ(−a) = e / (1 + e) and σ(a) = 1 / (1 + e) with e = exp(−a) do not overflow.
  const auto divisor = static_cast<S>(options.temperature);
  for (Index j = 0; j < num_experts; ++j) {
    const S logit = static_cast<S>(logits[j]) / divisor;
    scores[j] = logit > S(0) ? S(-logit) : logit;
  }
  exponentials(scores, num_experts);
  for (Index j = 0; j < num_experts; ++j) {
    const S numerator = static_cast<S>(logits[j]) < S(0) ? scores[j] : S(1);
    scores[j] = experts.has(j) ? S(numerator / (S(1) + scores[j])) : S(0);
  }
}

/// Is added to a sum of scores that is divided by, as in DeepSeek-V3's code: all of them may be 0.
inline constexpr double least_score_sum = 1e-20;

template <class Scalar>
Scalar normalizer(const Scalar* scores, std::span<const Index> selected) {
  auto sum = static_cast<Scalar>(least_score_sum);
  for (const Index expert : selected) sum += scores[expert];
  return sum;
}

/// The weights of a row's selected experts, before they are scaled. logits, scores: of all N; of the scores
/// only those that are not logits are read.
template <class Scalar>
void weigh_row(const ScoreOptions& options, const Scalar* logits, const Sum<Scalar>* scores,
               std::span<const Index> selected, Sum<Scalar>* weights) {
  using S = Sum<Scalar>;
  const auto count = static_cast<Index>(selected.size());
  if (count == 0) return;
  if (!scores_are_logits(options.function)) {
    const S divisor = options.normalize ? normalizer(scores, selected) : S(1);
    for (const Index expert : selected) *weights++ = scores[expert] / divisor;
    return;
  }
  const auto divisor = static_cast<S>(options.temperature);
  for (std::size_t i = 0; i < selected.size(); ++i) weights[i] = static_cast<S>(logits[selected[i]]);
  if (options.function == ScoreFunction::identity) {
    for (Index i = 0; i < count; ++i) weights[i] = weights[i] / divisor;
    return;
  }
  const S largest = *std::max_element(weights, weights + count);
  for (Index i = 0; i < count; ++i) weights[i] = (weights[i] - largest) / divisor;
  exponentials(weights, count);
  S sum(0);
  for (Index i = 0; i < count; ++i) sum += weights[i];
  for (Index i = 0; i < count; ++i) weights[i] = weights[i] / sum;
}

/// From the gradients of a row's weights before they were scaled: where scores are the logits, those of the
/// logits, else those of the scores, added to `to`, N. A single weight that is 1 whatever its logit has none,
/// also where the weight's is not finite.
template <class Scalar>
void weights_to_scores(const ScoreOptions& options, const Scalar* scores, const Scalar* weights,
                       std::span<const Index> selected, const Scalar* d_weights, Scalar* to) {
  Scalar mean(0), divisor(1);
  if (are_normalized(options)) {
    if (selected.size() == 1) return;
    for (std::size_t i = 0; i < selected.size(); ++i) mean += weights[i] * d_weights[i];
    if (!scores_are_logits(options.function)) divisor = normalizer(scores, selected);
  }
  const bool is_softmax = options.function == ScoreFunction::softmax_selected;
  if (scores_are_logits(options.function)) divisor = static_cast<Scalar>(options.temperature);
  for (std::size_t i = 0; i < selected.size(); ++i) {
    const Scalar factor = is_softmax ? weights[i] : Scalar(1);
    to[selected[i]] += factor * (d_weights[i] - mean) / divisor;
  }
}

/// Adds to d_logits what comes from gradients of p = softmax(ℓ/τ).
template <class Scalar>
void add_softmax_gradient(const Scalar* p, const Scalar* d_p, Index num_experts, double temperature,
                          Scalar* d_logits) {
  Scalar mean(0);
  for (Index j = 0; j < num_experts; ++j) mean += p[j] * d_p[j];
  for (Index j = 0; j < num_experts; ++j)
    d_logits[j] += p[j] * (d_p[j] - mean) / static_cast<Scalar>(temperature);
}

/// Adds to d_logits what comes from the gradients of scores that are not logits.
template <class Scalar>
void add_scores_gradient(const ScoreOptions& options, const Scalar* scores, const Scalar* d_scores,
                         Index num_experts, Scalar* d_logits) {
  if (options.function == ScoreFunction::softmax)
    return add_softmax_gradient(scores, d_scores, num_experts, options.temperature, d_logits);
  for (Index j = 0; j < num_experts; ++j) {
    d_logits[j] +=
        scores[j] * (Scalar(1) - scores[j]) * d_scores[j] / static_cast<Scalar>(options.temperature);
  }
}

}  // namespace detail
}  // namespace meo

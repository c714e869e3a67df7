#pragma once

/// What a layer or a BERT-like model costs in floating-point operations (FLOPs), item by item, at compile
/// time if wanted.
///
/// Source: He et al., "Merging Experts into One", EMNLP 2023, the figure "GFLOPs against the number of
/// selected experts".
///
/// Letters: T tokens, B sequences, R rows that are gated, D in_features, F out_features, N num_experts, K
/// top_k, S task_features, r reduce_factor.
///
/// Counted are the multiply-adds that the layers execute, two operations each. Not counted, because they are
/// no multiply-adds: means over tokens, residual and bias additions, activations, softmax, selection, the
/// element-wise arithmetic of the noise, and the auxiliary loss. Nor is the padding of packed panels, nor
/// what MeoLayer merges again for a batch of more than 8 MiB of inputs, which it works on in parts, where a
/// merge has tokens of several parts.

#include <cstdint>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// dense: y = x Wᵀ. moe: K products a token, then their weighted sum. meo: K experts merged into one, then
/// one product.
enum class Method { dense, moe, meo };

/// exact: a multiply-add is 2 everywhere. paper: as the paper's figure counts, a merge is 1 per parameter and
/// selected expert; everything else as in exact.
enum class Convention { exact, paper };

/// One layer and the batch it sees; layers/layer_shape.hpp makes one from a layer's options and a batch.
/// Fields that LayerOptions has too mean the same here; none is checked.
struct LayerShape {
  Index in_features = 0;          ///< D
  Index out_features = 0;         ///< F
  Index num_experts = 1;          ///< N
  Index top_k = 1;                ///< K
  Level level = Level::sequence;  ///< what a decision covers
  Index tokens = 1;               ///< of all sequences together
  Index sequences = 1;            ///< at segment level the segments of all sequences together
  Index merges = -1;              ///< MEO: merged experts that are formed; -1: see flops
  Index combined_tokens = 0;      ///< MEO: those of sequences whose outputs are combined; see merge_order.hpp
  bool bias = true;               ///< whether experts have biases
  bool noise = false;             ///< training: the gate has a second product, for the noise's scale
  Index reduce_factor = 64;       ///< at least 1
  Index task_features = 0;        ///< task level only
  bool has_router = true;         ///< else somebody else decides: neither gate nor task projection
  Index shared_experts = 0;       ///< that every row has beside its K
  bool weighs_shared = false;     ///< whether their weight is σ(z · s): SharedWeight::sigmoid
};

/// What the experts of a layer have to do for an assignment, of whatever numbers of experts and tokens a row;
/// layers/layer_shape.hpp makes one from an assignment.
struct AssignmentShape {
  std::int64_t merged_experts = 0;    ///< MEO: the experts of each merge that is formed, over all merges
  std::int64_t products = 0;          ///< tokens times experts that they go through, merged ones as one
  std::int64_t combined_outputs = 0;  ///< of those products, the ones that are weighed and summed

  friend constexpr bool operator==(const AssignmentShape&, const AssignmentShape&) = default;
};

/// FLOPs of one layer's forward pass over a batch, by item. With an AssignmentShape, merge is 2·(F·D, and F
/// with a bias) a merged expert, product 2·F·D a product and combine 2·F a combined output.
struct LayerFlops {
  std::int64_t gate = 0;  ///< 2·R·D_g·N, twice that with noise; D_g = D, or max(1, ⌊S/r⌋) at task level
  std::int64_t shared_expert_gate = 0;  ///< 2·R·D_g where shared experts are weighed
  std::int64_t token_attention = 0;     ///< MEO at token level: 4·D·max(1, ⌊D/r⌋) a token
  std::int64_t task_projection = 0;     ///< task level: 2·S·max(1, ⌊S/r⌋) a sequence
  std::int64_t merge = 0;  ///< MEO: 2·K·F·D a merge, and 2·K·F with a bias; half of both in Convention::paper
  /// 2·F·D a token, K times that for MoE and MEO's combined tokens; a bias is the accumulator's start and
  /// free
  std::int64_t product = 0;
  std::int64_t combine = 0;  ///< MoE and MEO's combined tokens: 2·K·F a token

  /// Of all items.
  constexpr std::int64_t total() const {
    return gate + shared_expert_gate + token_attention + task_projection + merge + product + combine;
  }
  friend constexpr bool operator==(const LayerFlops&, const LayerFlops&) = default;
};

namespace detail {

constexpr std::int64_t flops_per_merged_multiply_add(Convention convention) {
  return convention == Convention::paper ? 1 : 2;
}

/// Of a layer all of whose rows have top_k experts and the shared ones.
constexpr AssignmentShape uniform_assignment(Method method, const LayerShape& shape, Convention convention) {
  const std::int64_t tokens = shape.tokens, top_k = shape.top_k + shape.shared_experts;
  if (method == Method::dense) return {.products = tokens};
  if (method == Method::moe) return {.products = top_k * tokens, .combined_outputs = top_k * tokens};
  const bool merges_by_default = top_k > 1 || convention == Convention::paper;
  const std::int64_t merges = shape.merges >= 0 ? shape.merges : merges_by_default ? shape.sequences : 0;
  return {.merged_experts = merges * top_k,
          .products = tokens + (top_k - 1) * shape.combined_tokens,
          .combined_outputs = top_k * shape.combined_tokens};
}

}  // namespace detail

/// FLOPs of one forward pass of a layer of the given shape with the given assignment, which says it all of
/// the experts: of the shape, top_k, merges and combined_tokens do not count, nor how many are shared. The
/// gate's rows R are the
/// tokens for MoE at token level, else the sequences, or segments.
constexpr LayerFlops flops(Method method, const LayerShape& shape, const AssignmentShape& assignment,
                           Convention convention = Convention::exact) {
  LayerFlops count;
  if (method != Method::dense && shape.has_router) {
    const bool gates_tokens = method == Method::moe && shape.level == Level::token;
    const std::int64_t rows = gates_tokens ? shape.tokens : shape.sequences;
    std::int64_t gate_features = shape.in_features;
    if (shape.level == Level::task) {
      gate_features = detail::reduced_features(shape.task_features, shape.reduce_factor);
      count.task_projection = 2 * rows * shape.task_features * gate_features;
    }
    count.gate = 2 * rows * gate_features * shape.num_experts * (shape.noise ? 2 : 1);
    if (shape.shared_experts > 0 && shape.weighs_shared) count.shared_expert_gate = 2 * rows * gate_features;
  }
  if (method == Method::meo && shape.level == Level::token) {
    const std::int64_t hidden_features = detail::reduced_features(shape.in_features, shape.reduce_factor);
    count.token_attention = 4 * shape.in_features * hidden_features * shape.tokens;
  }
  const std::int64_t parameters = std::int64_t{shape.in_features} * shape.out_features;
  const std::int64_t merged_parameters = parameters + (shape.bias ? shape.out_features : 0);
  count.merge =
      detail::flops_per_merged_multiply_add(convention) * assignment.merged_experts * merged_parameters;
  count.product = 2 * parameters * assignment.products;
  count.combine = 2 * assignment.combined_outputs * shape.out_features;
  return count;
}

/// The same where every row has top_k experts. Shared ones count into the K of what follows.
///
/// A merge counts K multiply-adds a parameter, as MeoLayer executes them; 2K − 1 operations would be the
/// minimum. Where `merges` is −1, every sequence counts as a merge; for K = 1 none does, since MeoLayer uses
/// the one expert where it lies, except in Convention::paper, whose figure counts it. MeoLayer also merges
/// once for all sequences with the same selection and weights, and never for a sequence of fewer tokens than
/// fewest_tokens_to_merge, which `merges` has to leave out and `combined_tokens` to count, nor for one
/// without tokens.
///
///     constexpr auto cost = meo::flops(meo::Method::meo, {.in_features = 768, .out_features = 3072,
///                                                         .num_experts = 8, .top_k = 2, .tokens = 128});
///     static_assert(cost.product == 2 * 768 * 3072 * 128);
constexpr LayerFlops flops(Method method, const LayerShape& shape,
                           Convention convention = Convention::exact) {
  return flops(method, shape, detail::uniform_assignment(method, shape, convention), convention);
}

/// FLOPs of merging experts that are kept (layers/merged_expert.hpp): `merge` alone. merged_experts: of all
/// rows together; layers/layer_shape.hpp counts them.
constexpr LayerFlops merging_flops(const LayerShape& shape, std::int64_t merged_experts,
                                   Convention convention = Convention::exact) {
  return {.merge = flops(Method::dense, shape, {.merged_experts = merged_experts}, convention).merge};
}

/// FLOPs of a step with them, `product` and `token_attention`, which is a dense layer's whatever K was: of
/// shape.tokens tokens, all of rows with experts. method: of the layer that they are from.
///
///     constexpr auto cost = meo::step_flops(meo::Method::meo, {.in_features = 768, .out_features = 3072});
///     static_assert(cost.total() == 2 * 768 * 3072);
constexpr LayerFlops step_flops(Method method, LayerShape shape) {
  shape.has_router = false;
  return flops(method, shape, AssignmentShape{.products = shape.tokens});
}

/// A BERT-like encoder with a language-model head; every feed-forward projection is a dense, MoE or MEO
/// layer.
struct ModelShape {
  Index layers = 0;           ///< l
  Index features = 0;         ///< d
  Index hidden_features = 0;  ///< h
  Index vocabulary = 30522;   ///< V
  Index tokens = 128;         ///< of the one sequence
};

/// The three models of the paper's figure.
inline constexpr ModelShape bert_small{.layers = 4, .features = 512, .hidden_features = 2048};
inline constexpr ModelShape bert_base{.layers = 12, .features = 768, .hidden_features = 3072};
inline constexpr ModelShape bert_large{.layers = 24, .features = 1024, .hidden_features = 4096};

/// FLOPs of one forward pass of a model over one sequence, by item. As in the paper's figure, gates, token
/// attention, MoE's combine and everything with biases are left out: `flops` of the layers gives them. MEO
/// merges for K = 1 as well, in both conventions.
///
/// Letters: l layers, d features, h hidden_features, V vocabulary, s tokens.
struct ModelFlops {
  std::int64_t attention_projections = 0;  ///< query, key, value, output: 8·l·d²·s
  std::int64_t attention_scores = 0;       ///< scores and weighted values: 4·l·s²·d
  std::int64_t language_model_head = 0;    ///< 2·s·(V·d + d²)
  std::int64_t feed_forward = 0;           ///< 4·l·d·h·s, MoE K times that
  std::int64_t merge = 0;  ///< MEO: K·l·2·d·h in Convention::paper, twice that in Convention::exact

  /// Of all items.
  constexpr std::int64_t total() const {
    return attention_projections + attention_scores + language_model_head + feed_forward + merge;
  }
  friend constexpr bool operator==(const ModelFlops&, const ModelFlops&) = default;
};

/// FLOPs of one forward pass of a model whose feed-forward layers select `top_k` experts (dense: ignored).
constexpr ModelFlops flops(Method method, const ModelShape& shape, Index top_k,
                           Convention convention = Convention::exact) {
  const std::int64_t layers = shape.layers;
  const std::int64_t features = shape.features;
  const std::int64_t tokens = shape.tokens;
  const std::int64_t feed_forward_parameters = layers * 2 * features * shape.hidden_features;

  ModelFlops count;
  count.attention_projections = 8 * layers * features * features * tokens;
  count.attention_scores = 4 * layers * tokens * tokens * features;
  count.language_model_head = 2 * tokens * (shape.vocabulary * features + features * features);
  count.feed_forward = (method == Method::moe ? top_k : 1) * 2 * feed_forward_parameters * tokens;
  if (method == Method::meo)
    count.merge = detail::flops_per_merged_multiply_add(convention) * top_k * feed_forward_parameters;
  return count;
}

}  // namespace meo

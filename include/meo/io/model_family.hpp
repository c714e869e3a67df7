#pragma once

/// Public families of models with mixtures of experts: one table each, of the names that tensors of a block
/// have in their checkpoints and of the fields of their configs. What is not here yet is another table.
///
/// Sources: the families' published checkpoints, their configs and the code that came with them.
///
/// Letters: N experts, D features, I hidden features of an expert, I_s those of the shared one.

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <span>
#include <string>
#include <string_view>

#include <meo/compiled.hpp>
#include <meo/io/error.hpp>
#include <meo/routing/scores.hpp>
#include <meo/routing/selection.hpp>
#include <meo/routing/shared_experts.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::io {

/// What of a block a tensor holds; y = Down(act(Gate(x)) · Up(x)) or, where it is not gated,
/// Down(act(Gate(x))), for each expert. FeedForward's names are `up` for Gate and `gate_up` for Up.
enum class BlockPart {
  router,            ///< N × D
  router_bias,       ///< N
  correction_bias,   ///< N
  gate,              ///< I × D
  up,                ///< I × D
  gate_and_up,       ///< 2I × D, the outputs of Gate before those of Up
  down,              ///< D × I
  gate_and_up_bias,  ///< 2I
  down_bias,         ///< D
  shared_gate,       ///< I_s × D, from here on of the shared expert
  shared_up,         ///< I_s × D
  shared_down,       ///< D × I_s
  shared_weight      ///< 1 × D: s of its weight σ(x · s)
};

/// A tensor of a block, or one of each of its experts.
struct FamilyTensor {
  /// What follows the block's prefix. With {}, which stands for an expert's number, there is one for each;
  /// else the tensors of experts are one, with N as its first dimension.
  std::string_view name;
  BlockPart part;            ///< what it holds
  bool input_major = false;  ///< its last two dimensions are turned: inputs × outputs
  bool interleaved = false;  ///< outputs of Gate and Up take turns

  /// Whether there is one for each expert.
  bool is_per_expert() const { return name.find("{}") != name.npos; }
};

/// All tensors of a block, the router's first: one of the forms that a family's files have.
using FamilyLayout = std::span<const FamilyTensor>;

/// A config's field and what it has to be, in JSON.
struct FieldValue {
  std::string_view field;  ///< its name
  std::string_view value;  ///< as "\"silu\"" or "false"
};

/// What is to be known of a family. Fields are named as in config.json; an empty name stands for none.
struct ModelFamily {
  /// What metadata call it in `family`, and config.json in `model_type`.
  std::array<std::string_view, 2> names;

  // Sizes. Of two fields the first that is there counts.
  std::string_view features = "hidden_size";                                        ///< D
  std::array<std::string_view, 2> hidden_features{"moe_intermediate_size"};         ///< I
  std::array<std::string_view, 2> num_experts{"num_experts", "num_local_experts"};  ///< N
  std::string_view top_k = "num_experts_per_tok";                                   ///< K; none: 1

  // Routing
  ScoreFunction scores = ScoreFunction::softmax_selected;  ///< how weights are made
  std::string_view normalize = {};                         ///< whether they are divided by their sum
  bool normalizes = false;                                 ///< where the field is not there
  std::string_view scale = {};                             ///< what they are multiplied by; has to be there
  std::string_view groups = {};                            ///< G
  std::string_view top_groups = {};                        ///< the groups that a row selects from
  FieldValue ungrouped = {};                               ///< where groups do not count
  std::string_view grouped = {};                           ///< what that field says else, in JSON
  GroupScore group_score = GroupScore::largest;            ///< what groups are judged by
  bool correction_bias = false;                            ///< whether there is one
  bool router_bias = false;                                ///< whether logits have a bias
  std::string_view capacity = {};                          ///< tokens that an expert takes

  // Experts
  bool gated = true;                                      ///< whether there is an Up
  bool bias = false;                                      ///< whether experts have biases
  std::string_view activation = "silu";                   ///< or relu or gpt_oss
  FieldValue activation_field{"hidden_act", "\"silu\""};  ///< what says so
  std::string_view alpha = {};                            ///< of gpt_oss: α, where it is not the usual one
  std::string_view limit = {};                            ///< the same of its limit

  // The shared expert, where there is one: either of its sizes, I_s over I or I_s
  std::string_view shared_experts = {};            ///< I_s / I
  std::string_view shared_features = {};           ///< I_s
  SharedWeight shared_weight = SharedWeight::one;  ///< of what it gives

  std::span<const FieldValue> required = {};  ///< what else has to be so where it is said
  std::span<const FamilyLayout> layouts;      ///< the first is that of the published checkpoints
};

namespace detail {

/// The tensors of several tables, one after another.
template <std::size_t... Sizes>
constexpr std::array<FamilyTensor, (Sizes + ...)> joined(const FamilyTensor (&... tables)[Sizes]) {
  std::array<FamilyTensor, (Sizes + ...)> all{};
  auto end = all.begin();
  ((end = std::copy(std::begin(tables), std::end(tables), end)), ...);
  return all;
}

inline constexpr FamilyTensor plain_router[] = {{"gate.weight", BlockPart::router}};
inline constexpr FamilyTensor corrected_router[] = {
    {"gate.weight", BlockPart::router}, {"gate.e_score_correction_bias", BlockPart::correction_bias}};
inline constexpr FamilyTensor of_w1_w3_w2[] = {{"experts.{}.w1.weight", BlockPart::gate},
                                               {"experts.{}.w3.weight", BlockPart::up},
                                               {"experts.{}.w2.weight", BlockPart::down}};
inline constexpr FamilyTensor of_projections[] = {{"experts.{}.gate_proj.weight", BlockPart::gate},
                                                  {"experts.{}.up_proj.weight", BlockPart::up},
                                                  {"experts.{}.down_proj.weight", BlockPart::down}};
inline constexpr FamilyTensor of_fused_projections[] = {{"experts.gate_up_proj", BlockPart::gate_and_up},
                                                        {"experts.down_proj", BlockPart::down}};
inline constexpr FamilyTensor qwen2_shared[] = {{"shared_expert.gate_proj.weight", BlockPart::shared_gate},
                                                {"shared_expert.up_proj.weight", BlockPart::shared_up},
                                                {"shared_expert.down_proj.weight", BlockPart::shared_down},
                                                {"shared_expert_gate.weight", BlockPart::shared_weight}};
inline constexpr FamilyTensor deepseek_shared[] = {
    {"shared_experts.gate_proj.weight", BlockPart::shared_gate},
    {"shared_experts.up_proj.weight", BlockPart::shared_up},
    {"shared_experts.down_proj.weight", BlockPart::shared_down}};

inline constexpr auto mixtral_experts = joined(plain_router, of_w1_w3_w2);
inline constexpr auto named_experts = joined(plain_router, of_projections);
inline constexpr auto fused_experts = joined(plain_router, of_fused_projections);
inline constexpr auto qwen2_experts = joined(plain_router, of_projections, qwen2_shared);
inline constexpr auto qwen2_fused = joined(plain_router, of_fused_projections, qwen2_shared);
inline constexpr auto deepseek_v2_experts = joined(plain_router, of_projections, deepseek_shared);
inline constexpr auto deepseek_v2_fused = joined(plain_router, of_fused_projections, deepseek_shared);
inline constexpr auto deepseek_v3_experts = joined(corrected_router, of_projections, deepseek_shared);
inline constexpr auto deepseek_v3_fused = joined(corrected_router, of_fused_projections, deepseek_shared);
inline constexpr FamilyTensor granite_experts[] = {{"router.layer.weight", BlockPart::router},
                                                   {"input_linear.weight", BlockPart::gate_and_up},
                                                   {"output_linear.weight", BlockPart::down}};
inline constexpr FamilyTensor switch_experts[] = {{"router.classifier.weight", BlockPart::router},
                                                  {"experts.expert_{}.wi.weight", BlockPart::gate},
                                                  {"experts.expert_{}.wo.weight", BlockPart::down}};
inline constexpr FamilyTensor gpt_oss_experts[] = {
    {.name = "router.weight", .part = BlockPart::router},
    {.name = "router.bias", .part = BlockPart::router_bias},
    {.name = "experts.gate_up_proj",
     .part = BlockPart::gate_and_up,
     .input_major = true,
     .interleaved = true},
    {.name = "experts.gate_up_proj_bias", .part = BlockPart::gate_and_up_bias, .interleaved = true},
    {.name = "experts.down_proj", .part = BlockPart::down, .input_major = true},
    {.name = "experts.down_proj_bias", .part = BlockPart::down_bias}};

inline constexpr FamilyLayout mixtral_layouts[] = {mixtral_experts, fused_experts};
inline constexpr FamilyLayout named_layouts[] = {named_experts, fused_experts};
inline constexpr FamilyLayout qwen2_layouts[] = {qwen2_experts, qwen2_fused};
inline constexpr FamilyLayout deepseek_v2_layouts[] = {deepseek_v2_experts, deepseek_v2_fused};
inline constexpr FamilyLayout deepseek_v3_layouts[] = {deepseek_v3_experts, deepseek_v3_fused};
inline constexpr FamilyLayout gpt_oss_layouts[] = {gpt_oss_experts};
inline constexpr FamilyLayout granite_layouts[] = {granite_experts};
inline constexpr FamilyLayout switch_layouts[] = {switch_experts};

// The makers' code of V2 scales no weights that it normalizes.
inline constexpr FieldValue deepseek_v2_required[] = {{"scoring_func", "\"softmax\""},
                                                      {"norm_topk_prob", "false"}};
inline constexpr FieldValue deepseek_v3_required[] = {{"scoring_func", "\"sigmoid\""},
                                                      {"topk_method", "\"noaux_tc\""}};
inline constexpr FieldValue switch_required[] = {{"router_bias", "false"}};

}  // namespace detail

/// The families that are known.
inline constexpr ModelFamily model_families[] = {
    {.names = {"mixtral", "mixtral"},
     .hidden_features = {"intermediate_size"},
     .num_experts = {"num_local_experts"},
     .layouts = detail::mixtral_layouts},
    {.names = {"olmoe", "olmoe"},
     .hidden_features = {"moe_intermediate_size", "intermediate_size"},
     .scores = ScoreFunction::softmax,
     .normalize = "norm_topk_prob",
     .layouts = detail::named_layouts},
    {.names = {"qwen3_moe", "qwen3_moe"},
     .scores = ScoreFunction::softmax,
     .normalize = "norm_topk_prob",
     .layouts = detail::named_layouts},
    {.names = {"qwen2_moe", "qwen2_moe"},
     .scores = ScoreFunction::softmax,
     .normalize = "norm_topk_prob",
     .shared_features = "shared_expert_intermediate_size",
     .shared_weight = SharedWeight::sigmoid,
     .layouts = detail::qwen2_layouts},
    {.names = {"deepseek_v2", "deepseek_v2"},
     .num_experts = {"n_routed_experts"},
     .scores = ScoreFunction::softmax,
     .scale = "routed_scaling_factor",
     .groups = "n_group",
     .top_groups = "topk_group",
     .ungrouped = {"topk_method", "\"greedy\""},
     .grouped = "\"group_limited_greedy\"",
     .shared_experts = "n_shared_experts",
     .required = detail::deepseek_v2_required,
     .layouts = detail::deepseek_v2_layouts},
    {.names = {"deepseek_v3", "deepseek_v3"},
     .num_experts = {"n_routed_experts"},
     .scores = ScoreFunction::sigmoid,
     .normalize = "norm_topk_prob",
     .normalizes = true,
     .scale = "routed_scaling_factor",
     .groups = "n_group",
     .top_groups = "topk_group",
     .group_score = GroupScore::two_largest,
     .correction_bias = true,
     .shared_experts = "n_shared_experts",
     .required = detail::deepseek_v3_required,
     .layouts = detail::deepseek_v3_layouts},
    {.names = {"gpt_oss", "gpt_oss"},
     .hidden_features = {"intermediate_size"},
     .num_experts = {"num_local_experts"},
     .router_bias = true,
     .bias = true,
     .activation = "gpt_oss",
     .alpha = "swiglu_alpha",
     .limit = "swiglu_limit",
     .layouts = detail::gpt_oss_layouts},
    {.names = {"granitemoe", "granite_moe"},
     .hidden_features = {"intermediate_size"},
     .num_experts = {"num_local_experts"},
     .layouts = detail::granite_layouts},
    {.names = {"switch", "switch_transformers"},
     .features = "d_model",
     .hidden_features = {"d_ff"},
     .num_experts = {"num_experts"},
     .top_k = {},
     .scores = ScoreFunction::softmax,
     .capacity = "expert_capacity",
     .gated = false,
     .activation = "relu",
     .activation_field = {"dense_act_fn", "\"relu\""},
     .required = detail::switch_required,
     .layouts = detail::switch_layouts},
};

/// The family of one of its names. Throws Error, which names the file and the field, for another.
MEO_IO_INLINE const ModelFamily& model_family(std::string_view name, std::string_view file,
                                              std::string_view field = "family");

#if defined(MEO_DEFINES_IO)

MEO_IO_INLINE const ModelFamily& model_family(std::string_view name, std::string_view file,
                                              std::string_view field) {
  std::string known;
  for (const ModelFamily& family : model_families) {
    if (name == family.names[0] || name == family.names[1]) return family;
    known += (known.empty() ? "" : ", ") + std::string(family.names[0]);
  }
  throw Error(file, detail::text_of({field, ": expected one of ", known, ", got ", detail::in_quotes(name)}));
}

#endif

}  // namespace meo::io

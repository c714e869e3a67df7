#pragma once

/// What meo_bench measures: the sizes, and the ways to compute each.

#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <meo/mixing/merge_order.hpp>
#include <meo/types.hpp>

namespace bench {

using meo::Index;
using meo::Level;

/// The number of experts that the types of fixed cases have.
inline constexpr int fixed_experts = 8;

/// One layer, or one feed-forward block, and the batch it sees.
struct Case {
  std::string name;
  Index sequences = 8;
  Index tokens = 128;  ///< of each sequence
  Index in_features = 768;
  Index out_features = 3072;
  Index num_experts = 8;
  std::vector<Index> top_k = {8};
  Level level = Level::sequence;
  bool block = false;  ///< in_features → out_features → in_features with GELU between, instead of a layer
  bool in_double = false;
  bool backward = false;  ///< a layer's backward is timed, beside the two products of a dense layer's
  bool peak = false;      ///< no layer, but the most operations that this machine can do
  bool reads = false;     ///< with so few tokens that reading the experts is the least it can take
  bool orders = false;    ///< MEO alone, in the order that it chooses and in either that can be chosen
  bool fixed = false;  ///< layers and gates alone, with the number of experts in the options and in the type
  bool storage = false;  ///< one layer alone, whose experts are stored as its scalar and in fewer bits
  bool kept = false;     ///< experts that are merged once and kept: merging them, and a step with them
  std::vector<Index> lengths = {};  ///< of the sequences, where they are not all `tokens`
  bool sampled = false;     ///< too large for every value to be drawn by itself, and every element verified
  bool routers = false;     ///< routers alone, and a gated block of experts with out_features hidden features
  std::string router = {};  ///< with `routers`: not these, but the block with this one beside its products

  Index all_tokens() const {
    return lengths.empty() ? sequences * tokens : std::accumulate(lengths.begin(), lengths.end(), Index{0});
  }
};

/// Cases around the number of tokens from which on merging pays.
inline std::vector<Case> order_cases() {
  std::vector<Case> cases;
  for (const Index sequences : {1, 8}) {
    for (const Index tokens : {1, 2, 3, 4, 6, 8, 12, 16, 24})
      cases.push_back({.name = "orders_b" + std::to_string(sequences) + "_t" + std::to_string(tokens),
                       .sequences = sequences,
                       .tokens = tokens,
                       .top_k = {2, 4, 8},
                       .orders = true});
  }
  return cases;
}

/// Few tokens, which are bound by the experts' bytes, to many, which are not; of MEO, and of MoE with many
/// experts.
inline std::vector<Case> storage_cases() {
  std::vector<Case> cases;
  for (const auto& [sequences, tokens] : {std::pair<Index, Index>{8, 128}, {1, 128}, {1, 1}})
    cases.push_back({.name = "storage_b" + std::to_string(sequences) + "_t" + std::to_string(tokens),
                     .sequences = sequences,
                     .tokens = tokens,
                     .storage = true});
  for (const Index tokens : {1, 16, 128, 1024})
    cases.push_back({.name = "storage_moe_t" + std::to_string(tokens),
                     .sequences = 1,
                     .tokens = tokens,
                     .in_features = 2048,
                     .out_features = 1024,
                     .num_experts = 64,
                     .level = Level::token,
                     .storage = true});
  return cases;
}

/// Blocks of many small experts as today's models have them: OLMoE's, and one of the shape of DeepSeek's.
inline std::vector<Case> routed_cases() {
  std::vector<Case> cases;
  for (const auto& [experts, hidden, router] :
       {std::tuple<Index, Index, const char*>{64, 1024, "olmoe"}, {256, 512, "deepseek_v3"}}) {
    for (const Index tokens : {1, 16, 128, 1024})
      cases.push_back({.name = "routed_n" + std::to_string(experts) + "_t" + std::to_string(tokens),
                       .sequences = 1,
                       .tokens = tokens,
                       .in_features = 2048,
                       .out_features = hidden,
                       .num_experts = experts,
                       .level = Level::token,
                       .reads = tokens == 1,
                       .routers = true,
                       .router = router});
  }
  return cases;
}

/// Layers so small that the gate is a part of their time.
inline std::vector<Case> fixed_cases() {
  std::vector<Case> cases;
  for (const auto& [tokens, features] : {std::pair<Index, Index>{1, 8}, {1, 64}, {64, 16}, {1024, 64}})
    cases.push_back({.name = "fixed_t" + std::to_string(tokens) + "_d" + std::to_string(features),
                     .sequences = 1,
                     .tokens = tokens,
                     .in_features = features,
                     .out_features = features,
                     .num_experts = fixed_experts,
                     .top_k = {2},
                     .level = Level::token,
                     .fixed = true});
  return cases;
}

inline const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = [] {
    std::vector<Case> all{
        {.name = "peak",
         .sequences = 1,
         .tokens = 1,
         .in_features = 1,
         .out_features = 1,
         .num_experts = 1,
         .peak = true},
        {.name = "peak",
         .sequences = 1,
         .tokens = 1,
         .in_features = 1,
         .out_features = 1,
         .num_experts = 1,
         .in_double = true,
         .peak = true},
        {.name = "b8_t128", .top_k = {1, 2, 4, 8}},
        {.name = "b8_t128_3072_768", .in_features = 3072, .out_features = 768},
        {.name = "b32_t128", .sequences = 32},
        {.name = "b1_t128", .sequences = 1, .top_k = {1, 2, 4, 8}},
        {.name = "b1_t128_3072_768", .sequences = 1, .in_features = 3072, .out_features = 768},
        {.name = "b1_t128_1024_4096", .sequences = 1, .in_features = 1024, .out_features = 4096},
        {.name = "b1_t8", .sequences = 1, .tokens = 8},
        {.name = "b1_t32", .sequences = 1, .tokens = 32},
        {.name = "b1_t512", .sequences = 1, .tokens = 512},
        {.name = "b16_t128", .sequences = 16},
        {.name = "b8_t32", .tokens = 32},
        {.name = "b8_t128_n32", .num_experts = 32, .top_k = {32}},
        {.name = "b1_t1", .sequences = 1, .tokens = 1, .top_k = {1, 2, 4, 8}, .reads = true},
        {.name = "b1_t77_1000_1003", .sequences = 1, .tokens = 77, .in_features = 1000, .out_features = 1003},
        {.name = "task_b8_t128", .level = Level::task},
        {.name = "token_b8_t128", .top_k = {1, 8}, .level = Level::token},
        {.name = "token_b1_t1", .sequences = 1, .tokens = 1, .level = Level::token, .reads = true},
        {.name = "block_b8_t128", .block = true},
        {.name = "double_b8_t128", .in_double = true},
        {.name = "backward_b8_t128", .top_k = {1, 4, 8}, .backward = true},
        {.name = "kept", .sequences = 1, .tokens = 1, .top_k = {1, 2, 4, 8}, .kept = true},
        {.name = "kept_3072_768",
         .sequences = 1,
         .tokens = 1,
         .in_features = 3072,
         .out_features = 768,
         .top_k = {1, 2, 4, 8},
         .kept = true},
        {.name = "kept_t16", .sequences = 1, .tokens = 16, .kept = true},
        // OLMoE's block, and one of the shape of DeepSeek's.
        {.name = "routers_n64",
         .sequences = 1,
         .tokens = 1024,
         .in_features = 2048,
         .out_features = 1024,
         .num_experts = 64,
         .level = Level::token,
         .routers = true},
        {.name = "routers_n256",
         .sequences = 1,
         .tokens = 1024,
         .in_features = 2048,
         .out_features = 512,
         .num_experts = 256,
         .level = Level::token,
         .routers = true},
    };
    for (Case& c : order_cases()) all.push_back(std::move(c));
    for (Case& c : fixed_cases()) all.push_back(std::move(c));
    for (Case& c : storage_cases()) all.push_back(std::move(c));
    for (Case& c : routed_cases()) all.push_back(std::move(c));
    return all;
  }();
  return cases;
}

/// dense: one expert's product, by one of the libraries in baselines.hpp. naive: the experts merged in memory
/// and then multiplied with, both by Eigen. meo_gate, moe_gate: what a layer does before its experts, the
/// gate and token attention. read: the experts' bytes, and nothing else. peak: multiply-adds of registers,
/// and nothing else. linear, step: a product with a dense layer and with a merged expert that is kept; merge:
/// K experts into one that is kept; read_write: the bytes of K are read, and those of one written. router: a
/// router of another model; routed_block: what one routes to; gathered, read_routed: the least that it can
/// take.
enum class Kind {
  dense,
  meo,
  moe,
  meo_gate,
  moe_gate,
  naive,
  read,
  peak,
  linear,
  step,
  merge,
  read_write,
  router,
  routed_block,
  gathered,
  read_routed
};

/// What experts are stored as.
enum class Storage { scalars, bfloat16, half, int8 };

/// A way to compute a case; `name` follows the case's in the name of the benchmark.
struct Method {
  std::string name;
  Kind kind;
  std::size_t product = 0;  ///< dense: which of dense_products()
  Index top_k = 1;          ///< the others
  meo::MergeOrder merge_order = meo::MergeOrder::automatic;
  bool fixed = false;  ///< the number of experts is in the type
  Storage storage = Storage::scalars;
  std::size_t router = 0;  ///< which of routers()
};

}  // namespace bench

#pragma once

/// What a model is made from.

#include <string_view>

#include <meo/experts/any_activation.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/types.hpp>

#include "require.hpp"
#include "storage.hpp"

namespace transformer {

using meo::Index;

enum class Family { bert, gpt2 };

/// What a model is for. BERT: the first three; GPT-2: next_word; both: hidden_states, the last of them.
enum class Task { classification, regression, masked_words, next_word, hidden_states };

/// What the two projections of a feed-forward block are.
enum class Mixture { none, moe, meo };

struct MixtureConfig {
  Mixture kind = Mixture::none;
  // The rest has a meaning for mixtures only.
  meo::Level level = meo::Level::sequence;  ///< task: BERT only; segment: GPT-2 only
  Index segment_tokens = 0;  ///< segment level: tokens of a segment, of which a text's last may have fewer
  Index experts = 8;
  Index top_k = 2;
  Index reduce_factor = 64;
  bool bias = true;                  ///< whether experts have biases; BERT's of the MEO authors have none
  const Storage* storage = nullptr;  ///< of experts, in fewer bits; null: as the rest. No part of config.json
};

struct Config {
  Family family = Family::bert;
  Task task = Task::classification;
  Index vocabulary = 0;
  Index width = 0;
  Index layers = 0;
  Index heads = 0;
  Index hidden = 0;  ///< width of the feed-forward blocks within
  Index positions = 0;
  Index types = 2;         ///< BERT: kinds of tokens
  Index padding_word = 0;  ///< BERT: its embedding has no gradient as an input's; −1 for none
  Index labels = 2;        ///< classification: classes; regression: values
  meo::AnyActivation activation = meo::AnyActivation::Kind::gelu;
  double norm_epsilon = 1e-12;
  double embedding_dropout = 0.1;
  double hidden_dropout = 0.1;  ///< of what attention and the feed-forward block add
  double attention_dropout = 0.1;
  double classifier_dropout = 0.1;
  MixtureConfig mixture = {};
  Index description_size = 128;  ///< task level: width of the tasks' embedded descriptions

  bool has_tasks() const { return mixture.kind != Mixture::none && mixture.level == meo::Level::task; }
};

/// What published names of a family's parameters may begin with.
inline std::string_view prefix_of(Family family) { return family == Family::bert ? "bert." : "transformer."; }

/// Throws std::invalid_argument for a config that no model can have. (Layers check the rest.)
inline void check_config(const Config& config) {
  const auto require_positive = [](Index value, std::string_view name) {
    require(value >= 1, name, ": expected at least 1, got ", value);
  };
  require_positive(config.vocabulary, "vocabulary");
  require_positive(config.width, "width");
  require_positive(config.layers, "layers");
  require_positive(config.heads, "heads");
  require_positive(config.hidden, "hidden");
  require_positive(config.positions, "positions");
  require_positive(config.labels, "labels");
  if (config.family == Family::bert) require_positive(config.types, "types");
  require(config.width % config.heads == 0, "width: expected a multiple of heads = ", config.heads, ", got ",
          config.width);
  for (const double dropout : {config.embedding_dropout, config.hidden_dropout, config.attention_dropout,
                               config.classifier_dropout}) {
    require(dropout >= 0 && dropout < 1, "dropout: expected 0 to below 1, got ", dropout);
  }
  require(config.norm_epsilon > 0, "norm_epsilon: expected a number above 0, got ", config.norm_epsilon);
  require((config.family == Family::gpt2) == (config.task == Task::next_word) ||
              config.task == Task::hidden_states,
          "task: expected next_word for GPT-2 and another for BERT");
  if (config.mixture.kind == Mixture::none) {
    require(config.mixture.storage == nullptr, "storage: expected none without a mixture, got one");
    return;
  }
  const bool is_bert = config.family == Family::bert;
  const meo::Level level = config.mixture.level;
  require(level != (is_bert ? meo::Level::segment : meo::Level::task), "level: expected token, sequence or ",
          is_bert ? "task for BERT" : "segment for GPT-2", ", got ", to_string(level));
  require(level != meo::Level::segment || config.mixture.segment_tokens >= 1,
          "segment_tokens: expected at least 1 at segment level, got ", config.mixture.segment_tokens);
}

/// Throws std::invalid_argument unless models of the config can be trained.
inline void require_trainable(const Config& config) {
  const Storage* const storage = config.mixture.storage;
  require(storage == nullptr, "training: expected experts that are stored as what is computed with, got ",
          storage == nullptr ? "" : storage->name(),
          ": train a model of those, and load what is saved in fewer bits");
}

/// Of one projection of a feed-forward block.
inline meo::LayerOptions layer_options(const Config& config, Index in_features, Index out_features) {
  const MixtureConfig& mixture = config.mixture;
  return {.in_features = in_features,
          .out_features = out_features,
          .num_experts = mixture.experts,
          .top_k = mixture.top_k,
          .bias = mixture.bias,
          .routing = {.level = mixture.level,
                      .task_features = config.has_tasks() ? config.description_size : 0,
                      .segment_tokens = mixture.segment_tokens,
                      .reduce_factor = mixture.reduce_factor,
                      .gate_before_attention = config.family == Family::gpt2}};
}

}  // namespace transformer

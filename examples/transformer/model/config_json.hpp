#pragma once

/// config.json: sizes under the names of published BERT and GPT-2 models, mixtures under the MEO authors'.
///
///     use_moe         none, MoE or MEO; GPT-2's are called Conv1D_MoE and Conv1D_MEO       (default none)
///     moe_level       token, sequence, task (BERT) or segment (GPT-2)
///     segment_tokens  segment level: tokens of a segment; gates decide for one by the one before it
///     num_experts, top_k
///     reduce_factor   of token attention and task projection      (default 64 for MEO, 16 for MoE)
///     description_size
///     expert_bias     whether experts have biases          (default as the authors': GPT-2's have some)

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include <meo/io/error.hpp>

#include "config.hpp"

namespace transformer {

/// The fields of a config.json. Errors, meo::io::Error, name the file, the field, what was expected and what
/// came.
class ConfigFields {
 public:
  /// Both have to live as long.
  ConfigFields(const nlohmann::json& json, const std::string& file) : json_(json), file_(file) {}

  bool has(const char* name) const { return json_.contains(name) && !json_[name].is_null(); }

  const nlohmann::json& at(const char* name) const {
    if (!has(name)) throw meo::io::Error(file_, std::string(name) + ": expected a value, got none");
    return json_[name];
  }

  Index count(const char* name) const {
    const nlohmann::json& value = at(name);
    if (!value.is_number_integer() || value < 1 || value > std::numeric_limits<std::int32_t>::max())
      fail(name, "a whole number of at least 1");
    return value.get<Index>();
  }
  Index count(const char* name, Index otherwise) const { return has(name) ? count(name) : otherwise; }

  double number(const char* name, double otherwise) const {
    if (!has(name)) return otherwise;
    if (!at(name).is_number()) fail(name, "a number");
    return at(name).get<double>();
  }
  double dropout(const char* name, double otherwise) const {
    const double value = number(name, otherwise);
    if (!(value >= 0 && value < 1)) fail(name, "a number from 0 to below 1");
    return value;
  }
  double epsilon(const char* name, double otherwise) const {
    const double value = number(name, otherwise);
    if (!(value > 0)) fail(name, "a number above 0");
    return value;
  }

  bool flag(const char* name, bool otherwise) const {
    if (!has(name)) return otherwise;
    if (!at(name).is_boolean()) fail(name, "true or false");
    return at(name).get<bool>();
  }

  std::string text(const char* name) const {
    if (!at(name).is_string()) fail(name, "a text");
    return at(name).get<std::string>();
  }
  std::string text(const char* name, const char* otherwise) const {
    return has(name) ? text(name) : otherwise;
  }

  /// Throws where the field asks for what no model here does.
  template <class Value>
  void require(const char* name, const Value& expected) const {
    if (has(name) && at(name) != expected) fail(name, nlohmann::json(expected).dump());
  }

  [[noreturn]] void fail(const char* name, const std::string& expected) const {
    throw meo::io::Error(file_, std::string(name) + ": expected " + expected + ", got " + at(name).dump());
  }

 private:
  const nlohmann::json& json_;
  const std::string& file_;
};

/// An activation and what configs call it, the first when they are written.
inline constexpr std::array<std::pair<std::string_view, meo::AnyActivation::Kind>, 6> activation_names{
    {{"gelu", meo::AnyActivation::Kind::gelu},
     {"gelu_new", meo::AnyActivation::Kind::gelu_tanh},
     {"gelu_pytorch_tanh", meo::AnyActivation::Kind::gelu_tanh},
     {"relu", meo::AnyActivation::Kind::relu},
     {"silu", meo::AnyActivation::Kind::silu},
     {"swish", meo::AnyActivation::Kind::silu}}};

inline meo::AnyActivation activation_of(const ConfigFields& fields, const char* name, const char* otherwise) {
  const std::string text = fields.text(name, otherwise);
  for (const auto& [known, kind] : activation_names) {
    if (text == known) return kind;
  }
  fields.fail(name, "gelu, gelu_new, gelu_pytorch_tanh, relu, silu or swish");
}

inline std::string activation_name(const meo::AnyActivation& activation) {
  for (const auto& [name, kind] : activation_names) {
    if (activation.kind() == kind) return std::string(name);
  }
  return "linear";
}

inline meo::Level level_of(const ConfigFields& fields, const char* name, Family family) {
  const bool is_bert = family == Family::bert;
  const std::string text = fields.text(name);
  for (const meo::Level level :
       {meo::Level::token, meo::Level::sequence, is_bert ? meo::Level::task : meo::Level::segment}) {
    if (text == to_string(level)) return level;
  }
  fields.fail(name, is_bert ? "token, sequence or task" : "token, sequence or segment");
}

inline MixtureConfig mixture_of(const ConfigFields& fields, Family family) {
  MixtureConfig mixture;
  std::string kind = fields.text("use_moe", "none");
  if (kind == "none") return mixture;
  if (family == Family::gpt2 && kind.starts_with("Conv1D_"))
    kind.erase(0, std::string_view("Conv1D_").size());
  if (kind == "MoE") mixture.kind = Mixture::moe;
  else if (kind == "MEO") mixture.kind = Mixture::meo;
  else fields.fail("use_moe", family == Family::gpt2 ? "none, Conv1D_MoE or Conv1D_MEO" : "none, MoE or MEO");
  mixture.level = level_of(fields, "moe_level", family);
  if (mixture.level == meo::Level::segment) mixture.segment_tokens = fields.count("segment_tokens");
  mixture.experts = fields.count("num_experts");
  mixture.top_k = fields.count("top_k");
  if (mixture.top_k > mixture.experts)
    fields.fail("top_k", "at most num_experts = " + std::to_string(mixture.experts));
  mixture.reduce_factor = fields.count("reduce_factor", mixture.kind == Mixture::meo ? 64 : 16);
  mixture.bias = fields.flag("expert_bias", family == Family::gpt2);
  return mixture;
}

/// By the class of the model that is said to have been saved.
inline Task task_of(const ConfigFields& fields, Family family) {
  if (family == Family::gpt2) return Task::next_word;
  if (!fields.has("architectures")) return Task::masked_words;
  const nlohmann::json& names = fields.at("architectures");
  const std::string name =
      names.is_array() && !names.empty() && names[0].is_string() ? names[0].get<std::string>() : "";
  if (name == "BertForMaskedLM" || name == "BertForPreTraining") return Task::masked_words;
  if (name == "BertModel") return Task::hidden_states;
  if (name != "BertForSequenceClassification") {
    fields.fail("architectures",
                R"(["BertForMaskedLM"], ["BertForPreTraining"], ["BertForSequenceClassification"] or )"
                R"(["BertModel"])");
  }
  const std::string problem = fields.text("problem_type", "");
  if (problem == "regression") return Task::regression;
  if (problem != "" && problem != "single_label_classification")
    fields.fail("problem_type", "regression or single_label_classification");
  return Task::classification;
}

inline Index labels_of(const ConfigFields& fields) {
  if (!fields.has("num_labels") && fields.has("id2label")) {
    if (!fields.at("id2label").is_object() || fields.at("id2label").empty())
      fields.fail("id2label", "an object of labels");
    return static_cast<Index>(fields.at("id2label").size());
  }
  return fields.count("num_labels", 2);
}

inline Index padding_of(const ConfigFields& fields) {
  const nlohmann::json& value = fields.at("pad_token_id");
  if (!value.is_number_integer() || value < -1 || value >= fields.count("vocab_size"))
    fields.fail("pad_token_id", "-1 to below vocab_size");
  return value.get<Index>();
}

inline Config bert_config(const ConfigFields& fields) {
  fields.require("position_embedding_type", "absolute");
  fields.require("is_decoder", false);
  Config config{.family = Family::bert,
                .task = task_of(fields, Family::bert),
                .vocabulary = fields.count("vocab_size"),
                .width = fields.count("hidden_size"),
                .layers = fields.count("num_hidden_layers"),
                .heads = fields.count("num_attention_heads"),
                .hidden = fields.count("intermediate_size"),
                .positions = fields.count("max_position_embeddings"),
                .types = fields.count("type_vocab_size", 2),
                .padding_word = fields.has("pad_token_id") ? padding_of(fields) : 0,
                .labels = labels_of(fields),
                .activation = activation_of(fields, "hidden_act", "gelu"),
                .norm_epsilon = fields.epsilon("layer_norm_eps", 1e-12)};
  config.embedding_dropout = config.hidden_dropout = fields.dropout("hidden_dropout_prob", 0.1);
  config.attention_dropout = fields.dropout("attention_probs_dropout_prob", 0.1);
  config.classifier_dropout = fields.dropout("classifier_dropout", config.hidden_dropout);
  if (config.task == Task::classification && config.labels == 1) config.task = Task::regression;
  if (config.width % config.heads != 0)
    fields.fail("hidden_size", "a multiple of num_attention_heads = " + std::to_string(config.heads));
  return config;
}

inline Config gpt2_config(const ConfigFields& fields) {
  fields.require("scale_attn_weights", true);
  fields.require("scale_attn_by_inverse_layer_idx", false);
  fields.require("add_cross_attention", false);
  const Index width = fields.count("n_embd");
  Config config{.family = Family::gpt2,
                .task = Task::next_word,
                .vocabulary = fields.count("vocab_size"),
                .width = width,
                .layers = fields.count("n_layer"),
                .heads = fields.count("n_head"),
                .hidden = fields.count("n_inner", 4 * width),
                .positions = fields.count("n_positions"),
                .activation = activation_of(fields, "activation_function", "gelu_new"),
                .norm_epsilon = fields.epsilon("layer_norm_epsilon", 1e-5)};
  config.embedding_dropout = fields.dropout("embd_pdrop", 0.1);
  config.hidden_dropout = fields.dropout("resid_pdrop", 0.1);
  config.attention_dropout = fields.dropout("attn_pdrop", 0.1);
  if (width % config.heads != 0)
    fields.fail("n_embd", "a multiple of n_head = " + std::to_string(config.heads));
  return config;
}

/// file: what messages call it. Throws meo::io::Error for fields that are missing or wrong, or ask for a
/// model that is not here.
inline Config config_from_json(const nlohmann::json& json, const std::string& file) {
  const ConfigFields fields(json, file);
  const std::string type = fields.text("model_type");
  if (type != "bert" && type != "gpt2") fields.fail("model_type", "bert or gpt2");
  fields.require("tie_word_embeddings", true);
  Config config = type == "bert" ? bert_config(fields) : gpt2_config(fields);
  config.mixture = mixture_of(fields, config.family);
  config.description_size = fields.count("description_size", config.description_size);
  return config;
}

inline nlohmann::json to_json(const Config& config) {
  nlohmann::json json;
  const bool is_bert = config.family == Family::bert;
  json["model_type"] = is_bert ? "bert" : "gpt2";
  json["vocab_size"] = config.vocabulary;
  if (is_bert) {
    const bool classifies = config.task == Task::classification || config.task == Task::regression;
    json["architectures"] = {classifies                          ? "BertForSequenceClassification"
                             : config.task == Task::masked_words ? "BertForMaskedLM"
                                                                 : "BertModel"};
    json["hidden_size"] = config.width;
    json["num_hidden_layers"] = config.layers;
    json["num_attention_heads"] = config.heads;
    json["intermediate_size"] = config.hidden;
    json["max_position_embeddings"] = config.positions;
    json["type_vocab_size"] = config.types;
    json["pad_token_id"] = config.padding_word;
    json["hidden_act"] = activation_name(config.activation);
    json["layer_norm_eps"] = config.norm_epsilon;
    json["hidden_dropout_prob"] = config.hidden_dropout;
    json["attention_probs_dropout_prob"] = config.attention_dropout;
    json["classifier_dropout"] = config.classifier_dropout;
    if (classifies) {
      json["num_labels"] = config.labels;
      // The package knows the number by these alone.
      for (Index i = 0; i < config.labels; ++i)
        json["id2label"][std::to_string(i)] = "LABEL_" + std::to_string(i);
      json["problem_type"] = config.task == Task::regression ? "regression" : "single_label_classification";
    }
  } else {
    json["architectures"] = {config.task == Task::next_word ? "GPT2LMHeadModel" : "GPT2Model"};
    json["n_embd"] = config.width;
    json["n_layer"] = config.layers;
    json["n_head"] = config.heads;
    json["n_inner"] = config.hidden;
    json["n_positions"] = config.positions;
    json["activation_function"] = activation_name(config.activation);
    json["layer_norm_epsilon"] = config.norm_epsilon;
    json["embd_pdrop"] = config.embedding_dropout;
    json["resid_pdrop"] = config.hidden_dropout;
    json["attn_pdrop"] = config.attention_dropout;
  }
  const MixtureConfig& mixture = config.mixture;
  if (mixture.kind == Mixture::none) return json;
  json["use_moe"] = std::string(is_bert ? "" : "Conv1D_") + (mixture.kind == Mixture::moe ? "MoE" : "MEO");
  json["moe_level"] = std::string(to_string(mixture.level));
  if (mixture.level == meo::Level::segment) json["segment_tokens"] = mixture.segment_tokens;
  json["num_experts"] = mixture.experts;
  json["top_k"] = mixture.top_k;
  json["reduce_factor"] = mixture.reduce_factor;
  json["expert_bias"] = mixture.bias;
  if (config.has_tasks()) json["description_size"] = config.description_size;
  return json;
}

}  // namespace transformer

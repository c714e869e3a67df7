// Folders of models of examples/transformer: what is saved is loaded, published names are found, and what is
// wrong is named.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../../examples/transformer/model/model_folder.hpp"
#include "../../examples/transformer/model/small_storage.hpp"
#include "examples/transformer_models.hpp"
#include "io/files.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {
namespace transformer_folder_test {

using namespace transformer;
using namespace transformer::test;
using meo::Matrix;
using meo::io::SafetensorsReader;
using meo::io::SafetensorsWriter;
using meo::test::Folder;
using Path = std::filesystem::path;

Matrix<float> logits_of(const Model<float>& model, const Batch& batch) {
  Model<float>::Context context;
  return model.forward(batch, nullptr, context);
}

Model<float> load(const Path& folder, const Storage* storage = nullptr) {
  return load_model<float>(folder, load_config_with(folder, std::nullopt, storage));
}

/// Writes the folder's tensors anew, under other names: file → tensors. What gets an empty name is left out.
void rename(const Path& folder, const std::function<std::string(const std::string&)>& other_name,
            const std::function<void(SafetensorsWriter&)>& add = {}) {
  const SafetensorsReader file(folder / tensors_file);
  SafetensorsWriter writer;
  for (const std::string& name : file.names()) {
    if (const std::string other = other_name(name); !other.empty())
      writer.add(other, file.info(name).shape, file.read<float>(name));
  }
  if (add) add(writer);
  writer.write(folder / tensors_file);
}

std::string replaced(std::string text, const std::string& part, const std::string& other) {
  const std::size_t place = text.find(part);
  return place == std::string::npos ? text : text.replace(place, part.size(), other);
}

TEST_CASE("a saved model is loaded as it was", "[transformer][folder]") {
  const Folder folder;
  for_each_mixture([&](const MixtureConfig& mixture) {
    for_each_task<float>(mixture, [&](auto model) {
      CAPTURE(name_of(model.config()));
      randomize(model, 61);
      save_model(model, folder / "model");
      const Model<float> loaded = load(folder / "model");
      const Batch batch = random_batch(model.config(), {3, 9, 1}, 62);
      CHECK(meo::test::bit_difference(logits_of(loaded, batch), logits_of(model, batch)) == "");
      CHECK(to_json(load_config(folder / "model")) == to_json(model.config()));
      CHECK(meo::test::names_in(folder / "model") ==
            std::vector<std::string>{"config.json", "model.safetensors"});
    });
  });
}

TEST_CASE("published names are found in all their forms", "[transformer][folder]") {
  const Folder folder;
  Model<float> bert(small_config(Task::masked_words));
  Model<float> gpt2(small_config(Task::next_word));
  randomize(bert, 71);
  randomize(gpt2, 72);
  const auto check = [&](const auto& model) {
    const Batch batch = random_batch(model.config(), {3, 9}, 73);
    CHECK(meo::test::bit_difference(logits_of(load(folder / "m"), batch), logits_of(model, batch)) == "");
  };
  const auto as_bert_base = [](const std::string& name) {
    return replaced(replaced(name, "LayerNorm.weight", "LayerNorm.gamma"), "LayerNorm.bias",
                    "LayerNorm.beta");
  };
  save_model(bert, folder / "m");
  rename(folder / "m", as_bert_base, [](SafetensorsWriter& writer) {
    writer.add("bert.pooler.dense.weight", Matrix<float>(12, 12));
    writer.add("cls.seq_relationship.bias", std::vector<Index>{2}, std::vector<float>(2));
    writer.add("cls.predictions.decoder.weight", Matrix<float>(11, 12));
    writer.add("bert.embeddings.position_ids", std::vector<Index>{1, 2}, std::vector<Index>{0, 1});
  });
  check(bert);
  rename(folder / "m", [](const std::string& name) { return replaced(name, "bert.", ""); });
  check(bert);

  save_model(gpt2, folder / "m");
  rename(
      folder / "m", [](const std::string& name) { return replaced(name, "transformer.", ""); },
      [](SafetensorsWriter& writer) {
        writer.add("h.0.attn.bias", std::vector<Index>{1, 1, 2, 2}, std::vector<float>(4));
        writer.add("lm_head.weight", Matrix<float>(11, 12));
      });
  check(gpt2);
  // In × out, as GPT-2's files have them.
  CHECK(SafetensorsReader(folder / "m/model.safetensors").info("h.0.attn.c_attn.weight").shape ==
        std::vector<Index>{12, 36});
  CHECK(SafetensorsReader(folder / "m/model.safetensors").info("h.0.mlp.c_fc.weight").shape ==
        std::vector<Index>{12, 20});
}

/// Splits the folder's tensors over two files with an index, of which change makes another.
void split(const Path& folder, const std::function<void(nlohmann::json&)>& change = {}) {
  const SafetensorsReader file(folder / tensors_file);
  SafetensorsWriter writers[2];
  nlohmann::json index;
  int place = 0;
  for (const std::string& name : file.names()) {
    place = 1 - place;
    writers[place].add(name, file.info(name).shape, file.read<float>(name));
    index["weight_map"][name] = place == 0 ? "a.safetensors" : "b.safetensors";
  }
  writers[0].write(folder / "a.safetensors");
  writers[1].write(folder / "b.safetensors");
  if (change) change(index);
  std::ofstream(folder / index_file) << index;
}

TEST_CASE("tensors of several files are found by their index", "[transformer][folder]") {
  const Folder folder;
  Model<float> model(small_config(Task::classification));
  randomize(model, 81);
  save_model(model, folder / "m");
  split(folder / "m");
  const Path all = folder / "m/model.safetensors";
  std::filesystem::rename(all, folder / "all");
  const Batch batch = random_batch(model.config(), {3, 9}, 82);
  CHECK(meo::test::bit_difference(logits_of(load(folder / "m"), batch), logits_of(model, batch)) == "");

  const auto fault = [&](const std::function<void(nlohmann::json&)>& change) {
    std::filesystem::rename(folder / "all", all);
    split(folder / "m", change);
    std::filesystem::rename(all, folder / "all");
    return message_of([&] { load(folder / "m"); });
  };
  const std::string index = (folder / "m/model.safetensors.index.json").string();
  CHECK(fault([](nlohmann::json& json) { json["weight_map"] = 1; }) ==
        "meo: " + index + ": weight_map: expected an object of tensors' names and their files");
  CHECK(fault([](nlohmann::json& json) { json["weight_map"]["classifier.bias"] = "../a.safetensors"; }) ==
        "meo: " + index + ": tensor \"classifier.bias\": expected the name of a file beside the index");
  CHECK(fault([](nlohmann::json& json) { json["weight_map"].erase("classifier.bias"); }) ==
        "meo: " + index + ": tensor \"classifier.bias\": is not in the file");
  CHECK(fault([](nlohmann::json& json) { json["weight_map"]["more"] = "a.safetensors"; }) ==
        "meo: " + (folder / "m/a.safetensors").string() + ": tensor \"more\": is not in the file");
}

TEST_CASE("a new classifier and new mixtures start what a checkpoint lacks", "[transformer][folder]") {
  const Folder folder;
  Model<float> words(small_config(Task::masked_words));
  randomize(words, 91);
  save_model(words, folder / "m");
  rename(
      folder / "m", [](const std::string& name) { return name; },
      [](SafetensorsWriter& writer) {
        writer.add("bert.pooler.dense.weight", Matrix<float>::Identity(12, 12).eval());
        writer.add("bert.pooler.dense.bias", std::vector<Index>{12}, std::vector<float>(12));
      });
  Config config = load_config(folder / "m");
  config.task = Task::classification;
  config.labels = 4;
  config.mixture = small_mixture(Mixture::meo, meo::Level::task);
  CHECK(message_of([&] {
          load_model<float>(folder / "m", config);
        }).ends_with("tensor \"classifier.weight\": is not in the file"));
  std::mt19937_64 rng(92);
  const Model<float> model = load_model<float>(folder / "m", config, {.training = &rng});
  model.visit([](std::string_view name, auto&& part) {
    CAPTURE(std::string(name));
    if constexpr (requires { part.linear; }) {
      CHECK_FALSE(part.linear.weight().isZero(0));
    } else if constexpr (requires { part.matrix; }) {
      CHECK_FALSE(part.matrix.isZero(0));
    } else if (name.ends_with("w_gate") || name.ends_with("experts")) {
      CHECK(std::any_of(part.values().begin(), part.values().end(), [](float value) { return value != 0; }));
    }
  });
}

/// How far a weight may be off: half a unit of the last place of bfloat16, of 8 bits, and of half, of 11,
/// whose smallest number is 2⁻²⁴; in 8 bits half the scale, the largest of its row over 127 rounded up to 17
/// bits.
float most_off(const Storage* storage, float weight, float largest_of_row) {
  if (storage->name() == "bf16") return std::abs(weight) * 0x1p-8f;
  if (storage->name() == "half") return std::max(std::abs(weight) * 0x1p-11f, 0x1p-25f);
  return largest_of_row / 127 * (1 + 0x1p-15f) / 2;
}

TEST_CASE("a model whose experts are loaded into fewer bits has their rounded values",
          "[transformer][storage]") {
  const Folder folder;
  for_each_mixture([&](const MixtureConfig& mixture) {
    if (mixture.kind == Mixture::none) return;
    for_each_task<float>(mixture, [&](auto model) {
      if (model.config().task == Task::regression) return;
      randomize(model, 11);
      save_model(model, folder / "floats");
      for (const Storage* storage : small_storages()) {
        CAPTURE(name_of(model.config()), std::string(storage->name()));
        const Model<float> small = load(folder / "floats", storage);
        save_model(small, folder / "rounded");
        const Batch batch = random_batch(model.config(), {3, 9, 1}, 12);
        // Products with stored weights are those with floats of their values.
        CHECK(meo::test::bit_difference(logits_of(small, batch),
                                        logits_of(load(folder / "rounded"), batch)) == "");

        const SafetensorsReader floats(folder / "floats/model.safetensors"),
            rounded(folder / "rounded/model.safetensors");
        int experts = 0;
        for (const std::string& name : floats.names()) {
          const std::vector<float> before = floats.read<float>(name), after = rounded.read<float>(name);
          std::vector<std::string> dense;
          const std::vector<Index> shape = floats.info(name).shape;
          const bool is_expert = name.find(".experts.") != std::string::npos || shape.size() == 3;
          if (!is_expert || !name.ends_with("weight")) {
            CHECK(before == after);
            continue;
          }
          ++experts;
          CHECK(before != after);
          const auto cols = static_cast<std::size_t>(shape.back());
          for (std::size_t row = 0; row < before.size(); row += cols) {
            float largest = 0;
            for (std::size_t i = row; i < row + cols; ++i) largest = std::max(largest, std::abs(before[i]));
            bool is_near = true;
            for (std::size_t i = row; i < row + cols; ++i)
              is_near &= std::abs(after[i] - before[i]) <= most_off(storage, before[i], largest);
            CHECK(is_near);
          }
        }
        CHECK(experts == (mixture.kind == Mixture::meo ? 4 : 4 * 3));
      }
    });
  });
}

TEST_CASE("dense checkpoints become experts in fewer bits, too", "[transformer][storage]") {
  const Folder folder;
  Model<float> dense(small_config(Task::next_word));
  randomize(dense, 21);
  save_model(dense, folder / "dense");
  const MixtureConfig mixture = small_mixture(Mixture::meo, meo::Level::segment);
  const Batch batch = random_batch(dense.config(), {3, 9}, 22);
  const Matrix<float> expected = logits_of(dense, batch);
  for (const Storage* storage : small_storages()) {
    CAPTURE(std::string(storage->name()));
    const Config config = load_config_with(folder / "dense", mixture, storage);
    const Matrix<float> actual = logits_of(load_model<float>(folder / "dense", config), batch);
    const float largest = expected.lpNorm<Eigen::Infinity>();
    CHECK((actual - expected).lpNorm<Eigen::Infinity>() < 0.05f * largest);
  }
}

TEST_CASE("a model of experts in fewer bits is not trained", "[transformer][storage]") {
  const Folder folder;
  Model<float> floats(small_config(Task::classification));
  randomize(floats, 31);
  save_model(floats, folder / "m");
  Config config = floats.config();
  config.mixture = small_mixture(Mixture::meo, meo::Level::sequence);
  config.mixture.storage = small_storages()[0];
  const std::string error =
      "training: expected experts that are stored as what is computed with, got bf16: train a model of "
      "those, "
      "and load what is saved in fewer bits";
  Model<float> model(config), gradients(config);
  std::mt19937_64 rng(32);
  CHECK(message_of([&] { model.initialize(rng); }) == error);
  CHECK(message_of([&] { load_model<float>(folder / "m", config, {.training = &rng}); }) == error);
  const Batch batch = random_batch(config, {3, 2}, 33);
  const Training<float> training;
  Model<float>::Context context;
  model.forward(batch, &training, context);
  CHECK(message_of([&] { model.backward(batch, &training, context, gradients); }) == error);

  CHECK(message_of([&] { Model<double> other(config); }) ==
        "storage: expected none in a model of other scalars than float, got one");
  CHECK(message_of([&] { load(folder / "m", small_storages()[1]); }) ==
        "meo: " + (folder / "m/config.json").string() +
            ": use_moe: expected a mixture, whose experts are to be stored in fewer bits, got none");
  config.mixture.kind = Mixture::none;
  CHECK(message_of([&] { Model<float> other(config); }) ==
        "storage: expected none without a mixture, got one");
}

TEST_CASE("a copy of a model of experts in fewer bits has experts of its own", "[transformer][storage]") {
  Config config = small_config(Task::next_word);
  config.mixture = small_mixture(Mixture::moe, meo::Level::token);
  config.mixture.storage = small_storages()[2];
  Model<float> model(config), copy = model, assigned(config);
  assigned = model;
  const Index out = config.hidden, in = config.width;
  model.visit_projections([&](std::string_view, auto& projection) {
    if (projection.mixture_options().in_features == in)
      projection.initialize_from_dense(Matrix<float>::Ones(out, in), meo::Vector<float>::Ones(out));
  });
  for (const Model<float>* const other : {&copy, &assigned}) {
    other->visit_projections([&](const std::string& name, const auto& projection) {
      for (const auto& tensor : projection.mixture_tensors(name)) {
        std::vector<float> values(static_cast<std::size_t>(tensor.size()));
        tensor.read(0, values);
        CHECK(values == std::vector<float>(values.size()));
      }
    });
  }
}

// As they are published, but for fields that say nothing about the model.
const char* const bert_base = R"({
  "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": false,
  "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
  "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
  "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
  "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522})";
const char* const gpt2_small = R"({
  "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
  "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
  "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
  "n_positions": 1024, "resid_pdrop": 0.1, "vocab_size": 50257})";

TEST_CASE("config.json of published models", "[transformer][folder]") {
  const Config bert = config_from_json(nlohmann::json::parse(bert_base), "c");
  CHECK(bert.family == Family::bert);
  CHECK(bert.task == Task::masked_words);
  CHECK(bert.vocabulary == 30522);
  CHECK(bert.width == 768);
  CHECK(bert.layers == 12);
  CHECK(bert.heads == 12);
  CHECK(bert.hidden == 3072);
  CHECK(bert.positions == 512);
  CHECK(bert.types == 2);
  CHECK(bert.padding_word == 0);
  CHECK(bert.activation.kind() == meo::AnyActivation::Kind::gelu);
  CHECK(bert.norm_epsilon == 1e-12);
  CHECK(bert.hidden_dropout == 0.1);
  CHECK(bert.mixture.kind == Mixture::none);

  const Config gpt2 = config_from_json(nlohmann::json::parse(gpt2_small), "c");
  CHECK(gpt2.family == Family::gpt2);
  CHECK(gpt2.task == Task::next_word);
  CHECK(gpt2.vocabulary == 50257);
  CHECK(gpt2.hidden == 3072);
  CHECK(gpt2.positions == 1024);
  CHECK(gpt2.activation.kind() == meo::AnyActivation::Kind::gelu_tanh);
  CHECK(gpt2.norm_epsilon == 1e-5);

  const auto with = [](const char* text, const nlohmann::json& fields) {
    nlohmann::json json = nlohmann::json::parse(text);
    json.update(fields);
    return config_from_json(json, "c");
  };
  const nlohmann::json classifier{{"architectures", {"BertForSequenceClassification"}}};
  nlohmann::json fields = classifier;
  CHECK(with(bert_base, fields).task == Task::classification);
  CHECK(with(bert_base, fields).labels == 2);
  fields["id2label"] = {{"0", "a"}, {"1", "b"}, {"2", "c"}};
  fields["classifier_dropout"] = 0.3;
  CHECK(with(bert_base, fields).labels == 3);
  CHECK(with(bert_base, fields).classifier_dropout == 0.3);
  fields["classifier_dropout"] = nullptr;
  CHECK(with(bert_base, fields).classifier_dropout == 0.1);
  fields["id2label"] = {{"0", "a"}};
  CHECK(with(bert_base, fields).task == Task::regression);

  fields = {{"architectures", {"BertModel"}}};
  CHECK(with(bert_base, fields).task == Task::hidden_states);
  CHECK(to_json(with(bert_base, fields)).at("architectures") == fields["architectures"]);

  const nlohmann::json moe{{"use_moe", "MoE"}, {"moe_level", "task"}, {"num_experts", 8}, {"top_k", 4}};
  const MixtureConfig mixture = with(bert_base, moe).mixture;
  CHECK(mixture.kind == Mixture::moe);
  CHECK(mixture.level == meo::Level::task);
  CHECK(mixture.experts == 8);
  CHECK(mixture.top_k == 4);
  CHECK(mixture.reduce_factor == 16);
  CHECK_FALSE(mixture.bias);
  fields = moe;
  fields["use_moe"] = "Conv1D_MEO";
  fields["moe_level"] = "token";
  CHECK(with(gpt2_small, fields).mixture.kind == Mixture::meo);
  CHECK(with(gpt2_small, fields).mixture.reduce_factor == 64);
  CHECK(with(gpt2_small, fields).mixture.bias);

  const auto fault = [&](const char* text, const nlohmann::json& changed) {
    const std::string message = message_of([&] { with(text, changed); });
    CHECK(message.starts_with("meo: c: "));
    return message.substr(std::string("meo: c: ").size());
  };
  CHECK(fault(bert_base, {{"model_type", "t5"}}) == R"(model_type: expected bert or gpt2, got "t5")");
  CHECK(fault(bert_base, {{"hidden_size", nullptr}}) == "hidden_size: expected a value, got none");
  CHECK(fault(bert_base, {{"hidden_size", 0}}) ==
        "hidden_size: expected a whole number of at least 1, got 0");
  CHECK(fault(bert_base, {{"hidden_size", 1.5}}) ==
        "hidden_size: expected a whole number of at least 1, got 1.5");
  CHECK(fault(bert_base, {{"vocab_size", 1e30}}) ==
        "vocab_size: expected a whole number of at least 1, got 1e+30");
  CHECK(fault(bert_base, {{"hidden_size", 770}}) ==
        "hidden_size: expected a multiple of num_attention_heads = 12, got 770");
  CHECK(fault(gpt2_small, {{"n_embd", 770}}) == "n_embd: expected a multiple of n_head = 12, got 770");
  CHECK(fault(bert_base, {{"hidden_act", "tanh"}}) ==
        R"(hidden_act: expected gelu, gelu_new, gelu_pytorch_tanh, relu, silu or swish, got "tanh")");
  CHECK(fault(bert_base, {{"hidden_act", 3}}) == "hidden_act: expected a text, got 3");
  CHECK(fault(bert_base, {{"layer_norm_eps", 0}}) == "layer_norm_eps: expected a number above 0, got 0");
  CHECK(fault(bert_base, {{"layer_norm_eps", "small"}}) ==
        R"(layer_norm_eps: expected a number, got "small")");
  CHECK(fault(bert_base, {{"hidden_dropout_prob", 1}}) ==
        "hidden_dropout_prob: expected a number from 0 to below 1, got 1");
  CHECK(fault(bert_base, {{"position_embedding_type", "relative_key"}}) ==
        R"(position_embedding_type: expected "absolute", got "relative_key")");
  CHECK(fault(bert_base, {{"pad_token_id", 30522}}) ==
        "pad_token_id: expected -1 to below vocab_size, got 30522");
  CHECK(fault(bert_base, {{"architectures", {"BertForTokenClassification"}}}) ==
        R"(architectures: expected ["BertForMaskedLM"], ["BertForPreTraining"], )"
        R"(["BertForSequenceClassification"] or ["BertModel"], got ["BertForTokenClassification"])");
  fields = classifier;
  fields["problem_type"] = "multi_label_classification";
  CHECK(fault(bert_base, fields) ==
        "problem_type: expected regression or single_label_classification, got "
        R"("multi_label_classification")");
  CHECK(fault(gpt2_small, {{"scale_attn_by_inverse_layer_idx", true}}) ==
        "scale_attn_by_inverse_layer_idx: expected false, got true");
  CHECK(fault(gpt2_small, {{"tie_word_embeddings", false}}) ==
        "tie_word_embeddings: expected true, got false");
  const auto mixture_fault = [&](const char* text, const char* name, const nlohmann::json& value) {
    nlohmann::json changed = moe;
    changed[name] = value;
    return fault(text, changed);
  };
  CHECK(mixture_fault(bert_base, "use_moe", "Conv1D_MoE") ==
        R"(use_moe: expected none, MoE or MEO, got "Conv1D_MoE")");
  CHECK(mixture_fault(bert_base, "moe_level", "word") ==
        R"(moe_level: expected token, sequence or task, got "word")");
  CHECK(mixture_fault(bert_base, "num_experts", nullptr) == "num_experts: expected a value, got none");
  CHECK(mixture_fault(bert_base, "top_k", 9) == "top_k: expected at most num_experts = 8, got 9");
  CHECK(mixture_fault(bert_base, "expert_bias", 1) == "expert_bias: expected true or false, got 1");
  CHECK(mixture_fault(gpt2_small, "use_moe", "Conv1D_MEO") ==
        R"(moe_level: expected token, sequence or segment, got "task")");
  CHECK(mixture_fault(bert_base, "moe_level", "segment") ==
        R"(moe_level: expected token, sequence or task, got "segment")");
  fields = moe;
  fields["use_moe"] = "Conv1D_MEO";
  fields["moe_level"] = "segment";
  CHECK(fault(gpt2_small, fields) == "segment_tokens: expected a value, got none");
  fields["segment_tokens"] = 0;
  CHECK(fault(gpt2_small, fields) == "segment_tokens: expected a whole number of at least 1, got 0");
  fields["segment_tokens"] = 128;
  CHECK(with(gpt2_small, fields).mixture.level == meo::Level::segment);
  CHECK(with(gpt2_small, fields).mixture.segment_tokens == 128);
}

TEST_CASE("what is wrong with a folder's tensors is named", "[transformer][folder]") {
  const Folder folder;
  const Path model_folder = folder / "m";
  const std::string file = (model_folder / tensors_file).string();
  Model<float> model(small_config(Task::classification));
  const auto fault = [&](const std::function<std::string(const std::string&)>& other_name,
                         const std::function<void(SafetensorsWriter&)>& add = {}) {
    save_model(model, model_folder);
    rename(model_folder, other_name, add);
    return message_of([&] { load(model_folder); });
  };
  const auto same = [](const std::string& name) { return name; };
  const auto without = [](const std::string& part) {
    return [part](const std::string& name) { return name == part ? "" : name; };
  };
  const auto at = [&](const std::string& name) { return "meo: " + file + ": tensor \"" + name + "\": "; };
  const std::string value = "bert.encoder.layer.1.attention.self.value.weight";
  CHECK(fault(without(value)) == at(value) + "is not in the file");
  CHECK(fault(without(value), [&](SafetensorsWriter& writer) { writer.add(value, Matrix<float>(12, 13)); }) ==
        at(value) + "expected shape [12, 12], got [12, 13]");
  const std::string third = "bert.encoder.layer.2.output.dense.bias";
  CHECK(fault(same, [&](SafetensorsWriter& writer) {
          writer.add(third, std::vector<Index>{12}, std::vector<float>(12));
        }) == at(third) + "is no parameter of the model");
  CHECK(fault(without("classifier.bias"), [](SafetensorsWriter& writer) {
          writer.add("classifier.bias", std::vector<Index>{3}, std::vector<float>{1, NAN, 2});
        }) == at("classifier.bias") + "element 1: expected a finite number, got nan");

  save_model(model, model_folder);
  std::ofstream(model_folder / config_file) << "[1]";
  CHECK(message_of([&] { load(model_folder); }) ==
        "meo: " + (model_folder / config_file).string() + ": expected a JSON object");
  std::filesystem::remove(model_folder / config_file);
  CHECK(message_of([&] { load(model_folder); }) ==
        "meo: " + (model_folder / config_file).string() + ": cannot be opened");
  std::ofstream(folder / "file") << "";
  CHECK(message_of([&] {
          save_model(model, folder / "file");
        }).starts_with("meo: " + (folder / "file").string() + ": cannot be created: "));

  // A dense projection of another shape than the mixture's, and a mixture with an expert too many.
  Config config = model.config();
  config.mixture = small_mixture(Mixture::moe, meo::Level::sequence);
  save_model(model, model_folder);
  const std::string up = "bert.encoder.layer.0.intermediate.dense.weight";
  rename(model_folder, without(up),
         [&](SafetensorsWriter& writer) { writer.add(up, Matrix<float>(20, 13)); });
  CHECK(message_of([&] { load_model<float>(model_folder, config); }) ==
        at(up) + "expected shape [20, 12], got [20, 13]");
  // One that is not finite, which no copy of it may be either.
  const std::string down = "bert.encoder.layer.1.output.dense";
  for (const auto& [name, shape] : {std::pair(down + ".weight", std::vector<Index>{12, 20}),
                                    std::pair(down + ".bias", std::vector<Index>{12})}) {
    for (const float bad : {NAN, -INFINITY}) {
      save_model(model, model_folder);
      rename(model_folder, without(name), [&, &name = name, &shape = shape](SafetensorsWriter& writer) {
        std::vector<float> values(static_cast<std::size_t>(shape[0] * (shape.size() > 1 ? shape[1] : 1)));
        values[7] = bad;
        writer.add(name, shape, values);
      });
      for (std::mt19937_64 rng; const bool trains : {false, true}) {
        const LoadOptions options{.training = trains ? &rng : nullptr};
        CHECK(message_of([&] { load_model<float>(model_folder, config, options); }) ==
              at(name) + "element 7: expected a finite number, got " + (std::isnan(bad) ? "nan" : "-inf"));
      }
    }
  }
  save_model(Model<float>(config), model_folder);
  config.mixture.experts = 2;
  CHECK(message_of([&] {
          load_model<float>(model_folder, config);
        }).starts_with(at("bert.encoder.layer.0.intermediate.dense.w_gate")));
}

}  // namespace transformer_folder_test
}  // namespace

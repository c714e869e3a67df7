// Blocks of public model families, from files under their names to outputs, and back to files.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <meo/io/family_block.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

#include "io/files.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/golden_files.hpp"

namespace {
namespace families_test {

using namespace meo;
using io::BlockFormat;
using io::DType;
using io::FamilyModel;
using io::SafetensorsReader;
using io::SafetensorsWriter;
using test::Bytes;
using test::error_of;
using test::Folder;
using Path = std::filesystem::path;

using Block = FeedForward<MoeLayer<float>, AnyActivation>;
using GptOssBlock = FeedForward<MoeLayer<float>, GptOssSwiglu>;

Path golden(const std::string& name) {
  return MEO_TEST_DATA_DIR "/goldens_families/" + name + ".safetensors";
}

/// What becomes of a file's tensors and metadata.
struct Changes {
  std::function<std::string(const std::string&)> rename = [](const std::string& name) { return name; };
  std::map<std::string, std::string> metadata = {};  ///< an empty value takes the key away
  std::function<void(const std::string&, std::vector<float>&)> values = [](const std::string&,
                                                                           std::vector<float>&) {};
  std::function<void(SafetensorsWriter&)> add = [](SafetensorsWriter&) {};
  DType dtype = DType::F32;  ///< of the parameters
};

bool is_parameter(const std::string& name) { return name.find('.') != std::string::npos; }

/// The file anew; a tensor whose name becomes empty is left out.
Bytes changed(const Path& path, const Changes& changes = {}) {
  const SafetensorsReader file(path);
  SafetensorsWriter writer;
  std::map<std::string, std::string> metadata = file.metadata();
  for (const auto& [key, value] : changes.metadata) metadata[key] = value;
  for (const auto& [key, value] : metadata) {
    if (!value.empty()) writer.set_metadata(key, value);
  }
  for (const std::string& name : file.names()) {
    const std::string new_name = changes.rename(name);
    if (new_name.empty()) continue;
    std::vector<float> values = file.read<float>(name);
    changes.values(name, values);
    writer.add(new_name, file.info(name).shape, values, is_parameter(name) ? changes.dtype : DType::F32);
  }
  changes.add(writer);
  return writer.bytes();
}

Changes renamed(const std::string& from, const std::string& to) {
  return {.rename = [=](const std::string& name) { return name == from ? to : name; }};
}

Matrix<float> read_matrix(const FamilyModel& model, const std::string& name) {
  const SafetensorsReader& file = model.tensors().file_of(name);
  return file.read_matrix<float>(name, file.info(name).shape[0], file.info(name).shape[1]);
}

/// f(block) of the model's only one.
template <class Function>
auto with_block(const FamilyModel& model, const Function& f) {
  if (model.activation() == "gpt_oss") return f(io::load_block<GptOssBlock>(model, model.block()));
  return f(io::load_block<Block>(model, model.block()));
}

/// Of that one on the model's x.
FeedForwardOutput<float> run(const FamilyModel& model) {
  return with_block(model, [&](const auto& block) { return block.forward(read_matrix(model, "x")); });
}
Matrix<float> output_of(const FamilyModel& model) { return run(model).y; }
Matrix<float> output_of(const Bytes& bytes) { return output_of(FamilyModel(SafetensorsReader(bytes, "f"))); }

std::string difference(const Matrix<float>& actual, const Matrix<float>& expected) {
  return test::disagreement_in_max_norm(actual, expected, 2e-6f);
}

std::string fault(const Bytes& bytes) {
  return error_of([&] { output_of(bytes); });
}

std::vector<Path> goldens() { return test::golden_files("", "goldens_families"); }

TEST_CASE("blocks of public families compute what their makers' code does", "[families][golden]") {
  CHECK(goldens().size() == 11);
  for (const Path& path : goldens()) {
    CAPTURE(path.filename().string());
    const FamilyModel model(path);
    const Matrix<float> x = read_matrix(model, "x");
    const FeedForwardOutput<float> output = run(model);
    CHECK(difference(output.y, read_matrix(model, "y")) == "");
    CHECK(output.loss == 0);
    if (model.tensors().contains("router_logits")) {
      const Matrix<float> logits = with_block(model, [&](const auto& block) {
        Matrix<float> product = x * block.up().gate().weight();
        if (block.options().routing.scores.bias) product.rowwise() += block.up().gate().bias().transpose();
        return product;
      });
      CHECK(difference(logits, read_matrix(model, "router_logits")) == "");
    }
    if (!model.tensors().contains("indices")) continue;
    // In the order of their code, which need not be that of the weights.
    const Matrix<float> weights = read_matrix(model, "weights"), indices = read_matrix(model, "indices");
    Matrix<float> expected = Matrix<float>::Zero(x.rows(), model.options().num_experts), actual = expected;
    for (Index row = 0; row < x.rows(); ++row) {
      for (Index i = 0; i < weights.cols(); ++i)
        expected(row, static_cast<Index>(indices(row, i))) = weights(row, i);
      // Shared experts come after them.
      const auto selected = static_cast<std::size_t>(weights.cols());
      CHECK(output.up.row_experts(row).size() ==
            selected + static_cast<std::size_t>(model.options().shared_experts.count));
      for (std::size_t i = 0; i < selected; ++i)
        actual(row, output.up.row_experts(row)[i]) = output.up.row_weights(row)[i];
    }
    CHECK(difference(actual, expected) == "");
  }
}

TEST_CASE("parameters of 16 bits are loaded as the numbers that they are", "[families]") {
  for (const Path& path : goldens()) {
    CAPTURE(path.filename().string());
    const auto round_to = []<class Small>(Small) {
      return [](const std::string& name, std::vector<float>& values) {
        if (!is_parameter(name)) return;
        for (float& value : values) value = static_cast<float>(static_cast<Small>(value));
      };
    };
    for (const auto& [dtype, round] : {std::pair{DType::BF16, Changes{.values = round_to(Eigen::bfloat16())}},
                                       std::pair{DType::F16, Changes{.values = round_to(Eigen::half())}}}) {
      const Matrix<float> small = output_of(changed(path, {.dtype = dtype}));
      CHECK(test::bit_difference(small, output_of(changed(path, round))) == "");
      CHECK(test::bit_difference(small, output_of(changed(path))) != "");
    }
  }
}

/// Writes a file as a folder: config.json of its metadata and three files of tensors with their index.
void write_folder(const SafetensorsReader& file, const Path& folder, const std::string& model_type) {
  std::filesystem::create_directories(folder);
  std::string config = "{\"model_type\": \"" + model_type + "\"", map;
  for (const auto& [key, value] : file.metadata()) {
    const std::string json = value == "True"    ? "true"
                             : value == "False" ? "false"
                             : value.find_first_not_of("0123456789.") == std::string::npos
                                 ? value
                                 : "\"" + value + "\"";
    config += ", \"" + key + "\": " + json;
  }
  SafetensorsWriter writers[3];
  std::size_t shard = 0;
  for (const std::string& name : file.names()) {
    shard = (shard + 1) % 3;
    writers[shard].add(name, file.info(name).shape, file.read<float>(name), file.info(name).dtype);
    map += (map.empty() ? "\"" : ", \"") + name + "\": \"shard-" + std::to_string(shard) + ".safetensors\"";
  }
  for (std::size_t i = 0; i < 3; ++i)
    writers[i].write(folder / ("shard-" + std::to_string(i) + ".safetensors"));
  test::save(folder / io::config_file, test::to_bytes(config + "}"));
  test::save(folder / io::index_file, test::to_bytes("{\"weight_map\": {" + map + "}}"));
}

TEST_CASE("a folder of several files and their index is a model", "[families]") {
  for (const Path& path : goldens()) {
    CAPTURE(path.filename().string());
    const Folder folder;
    const Bytes bytes = changed(path, {.dtype = DType::BF16});
    const SafetensorsReader file(bytes, "f");
    write_folder(file, folder / "m", std::string(FamilyModel(file).family().names[1]));
    const FamilyModel model(folder / "m");
    CHECK(test::bit_difference(output_of(model), output_of(bytes)) == "");
    const Index layer = path.filename().string().starts_with("switch") ? 1 : 0;
    CHECK(model.layer(layer).prefix == model.block().prefix);
    CHECK(error_of([&] { model.layer(7); }) ==
          "meo: " + (folder / "m" / io::index_file).string() + ": expected one block of " +
              std::string(model.family().names[0]) + " of layer 7, found none");
  }
}

TEST_CASE("a block is saved under the names and in the shapes that it was loaded from", "[families]") {
  for (const Path& path : goldens()) {
    CAPTURE(path.filename().string());
    const FamilyModel model(path);
    const BlockFormat format = model.block();
    const auto bytes_of = [&](DType dtype) {
      return with_block(model, [&](const auto& block) {
        SafetensorsWriter writer;
        io::save(block, format, writer, dtype);
        return writer.bytes();
      });
    };
    const Bytes bytes = bytes_of(DType::F32);
    const SafetensorsReader saved(bytes, "saved"), file(path);
    std::size_t parameters = 0;
    for (const std::string& name : file.names()) parameters += is_parameter(name) ? 1 : 0;
    CHECK(saved.names().size() == parameters);
    for (const std::string& name : saved.names()) {
      CAPTURE(name);
      CHECK(saved.info(name).shape == file.info(name).shape);
      CHECK(saved.read<float>(name) == file.read<float>(name));
    }
    // Rounded as it is written.
    const Bytes small_bytes = bytes_of(DType::BF16), expected = changed(path, {.dtype = DType::BF16});
    const SafetensorsReader small_file(small_bytes, "small"), expected_file(expected, "expected");
    for (const std::string& name : small_file.names())
      CHECK(small_file.read<float>(name) == expected_file.read<float>(name));
  }
}

TEST_CASE("every layout of a family holds the same block", "[families]") {
  for (const Path& path : goldens()) {
    CAPTURE(path.filename().string());
    const SafetensorsReader file(path);
    const FamilyModel model(file);
    const Matrix<float> x = read_matrix(model, "x"), y = output_of(model);
    for (const io::FamilyLayout& layout : model.family().layouts) {
      BlockFormat format = model.block();
      format.layout = layout;
      format.prefix = "h.3.";
      SafetensorsWriter writer;
      for (const auto& [key, value] : file.metadata()) writer.set_metadata(key, value);
      writer.add("x", x);
      const Bytes bytes = with_block(model, [&](const auto& block) {
        io::save(block, format, writer);
        return writer.bytes();
      });
      const FamilyModel saved{SafetensorsReader(bytes, "f")};
      CHECK(saved.block().layout.data() == layout.data());
      CHECK(saved.layer(3).prefix == "h.3.");
      CHECK(test::bit_difference(output_of(saved), y) == "");
    }
  }
}

TEST_CASE("a block that has had other parameters is that of its file", "[families]") {
  const FamilyModel model(golden("mixtral"));
  Block block(model.options(), AnyActivation::Kind::silu);
  std::mt19937_64 rng(1);
  block.initialize(rng);
  block.up().gate().set_noise_weight(Matrix<float>::Ones(32, 8));
  SafetensorsWriter writer;
  CHECK(error_of([&] { io::save(block, model.block(), writer); }) ==
        "meo: expected a gate without noise, which no family has a tensor for, got w_noise that is not 0");
  io::load(block, model.block(), model.tensors());
  io::save(block, model.block(), writer);
  CHECK(test::bit_difference(block.forward(read_matrix(model, "x")).y, output_of(model)) == "");
}

TEMPLATE_TEST_CASE("experts are stored as the block's type says", "[families]", Eigen::bfloat16,
                   std::int8_t) {
  using Small = FeedForward<MoeLayer<float, Eigen::Dynamic, TestType>, AnyActivation>;
  // Per expert, fused, input-major, and with a shared expert that is filled up.
  for (const char* const name : {"mixtral", "mixtral_fused", "gpt_oss", "qwen2_moe"}) {
    CAPTURE(name);
    const FamilyModel model{golden(name)};
    Small small(model.options(), AnyActivation::Kind::silu);
    io::load(small, model.block(), model.tensors());
    Block block(model.options(), AnyActivation::Kind::silu);
    io::load(block, model.block(), model.tensors());
    const Small expected(block);
    for (Index expert = 0; expert < block.up().experts().num_experts(); ++expert) {
      CHECK(small.up().experts().weight(expert) == expected.up().experts().weight(expert));
      CHECK(small.gate_up().experts().weight(expert) == expected.gate_up().experts().weight(expert));
      CHECK(small.down().experts().weight(expert) == expected.down().experts().weight(expert));
    }
    if (block.options().bias) CHECK(small.up().bias(7) == block.up().bias(7));
  }
}

TEST_CASE("a shared expert that is no multiple of the others is filled up with zeros", "[families]") {
  // 28 hidden features in two experts of 20.
  const FamilyModel model(golden("qwen2_moe"));
  CHECK(model.shared_features() == 28);
  CHECK(model.options().shared_experts == SharedExpertOptions{2, SharedWeight::sigmoid});
  Block block(model.options(), AnyActivation::Kind::silu);
  std::mt19937_64 rng(3);
  block.initialize(rng);
  SafetensorsWriter writer;
  CHECK(error_of([&] { io::save(block, model.block(), writer); }) ==
        "meo: expected a shared expert of 28 hidden features, got one with weights for more");
  io::load(block, model.block(), model.tensors());
  CHECK(block.up().experts().weight(9).bottomRows(12).isZero(0));
  CHECK(block.gate_up().experts().weight(9).bottomRows(12).isZero(0));
  CHECK(block.down().experts().weight(9).rightCols(12).isZero(0));
  CHECK_FALSE(block.up().experts().weight(9).row(7).isZero(0));
  CHECK_FALSE(block.down().experts().weight(9).col(7).isZero(0));
  io::save(block, model.block(), writer);
  CHECK(test::bit_difference(block.forward(read_matrix(model, "x")).y, output_of(model)) == "");

  // Without one there are no tensors of it.
  const std::string prefix = "model.layers.0.mlp.shared_expert";
  for (const std::string value : {"0", ""}) {
    const Bytes none =
        changed(golden("qwen2_moe"),
                {.rename = [&](const std::string& name) { return name.starts_with(prefix) ? "" : name; },
                 .metadata = {{"shared_expert_intermediate_size", value}}});
    const Bytes olmoe =
        changed(golden("qwen2_moe"),
                {.rename = [&](const std::string& name) { return name.starts_with(prefix) ? "" : name; },
                 .metadata = {{"family", "olmoe"}}});
    CHECK(test::bit_difference(output_of(none), output_of(olmoe)) == "");
  }
  CHECK(fault(changed(golden("qwen2_moe"), {.metadata = {{"shared_expert_intermediate_size", "0"}}})) ==
        "meo: f: tensor \"" + prefix + ".down_proj.weight\": is no parameter of what is loaded");
}

TEST_CASE("a block of another form than its file is refused", "[families]") {
  const auto fault_of = [](const char* name, const std::function<void(FeedForwardOptions&)>& change) {
    const FamilyModel model{golden(name)};
    FeedForwardOptions options = model.options();
    change(options);
    Block block(options, AnyActivation::Kind::silu);
    try {
      io::load(block, model.block(), model.tensors());
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  using Options = FeedForwardOptions;
  const std::string wanted = ": expected true, as the format of the file has it, got false",
                    unwanted = ": expected false, as the format of the file has it, got true";
  CHECK(fault_of("mixtral", [](Options&) {}) == "no error");
  CHECK(fault_of("mixtral", [](Options& options) { options.gated = false; }) == "meo: gated" + wanted);
  CHECK(fault_of("mixtral", [](Options& options) { options.bias = true; }) == "meo: bias" + unwanted);
  CHECK(fault_of("mixtral", [](Options& options) { options.shared_gate = false; }) ==
        "meo: shared_gate" + wanted);
  CHECK(fault_of("mixtral", [](Options& options) { options.has_router = false; }) ==
        "meo: shared_gate" + wanted);
  CHECK(fault_of("mixtral", [](Options& options) {
          options.routing.level = Level::task;
          options.routing.task_features = 64;
        }) == "meo: routing.level: expected one whose gate sees the tokens' features, got task");
  CHECK(fault_of("gpt_oss", [](Options& options) { options.routing.scores.bias = false; }) ==
        "meo: routing.scores.bias" + wanted);
  CHECK(fault_of("deepseek_v3", [](Options& options) {
          options.routing.selection.correction_bias = false;
        }) == "meo: routing.selection.correction_bias" + wanted);
  CHECK(fault_of("mixtral", [](Options& options) { options.shared_experts.count = 1; }) ==
        "meo: shared experts" + unwanted);
  CHECK(fault_of("qwen2_moe", [](Options& options) { options.shared_experts.weight = SharedWeight::one; }) ==
        "meo: the shared experts' weight sigmoid" + wanted);
  CHECK(fault_of("qwen2_moe", [](Options& options) { options.shared_experts.count = 3; }) ==
        "meo: shared_experts.count: expected 2 of 20 features for 28, got 3");
}

TEST_CASE("families that differ in names alone compute the same", "[families]") {
  const Matrix<float> mixtral = output_of(FamilyModel(golden("mixtral")));
  const auto granite = [](const std::string& name) {
    const std::string prefix = "model.layers.0.block_sparse_moe.";
    return name.ends_with("gate.weight")    ? prefix + "router.layer.weight"
           : name.ends_with("gate_up_proj") ? prefix + "input_linear.weight"
           : name.ends_with("down_proj")    ? prefix + "output_linear.weight"
                                            : name;
  };
  for (const char* const family : {"granitemoe", "granite_moe"}) {
    const Bytes bytes =
        changed(golden("mixtral_fused"), {.rename = granite, .metadata = {{"family", family}}});
    CHECK(test::bit_difference(output_of(bytes), mixtral) == "");
  }
  const Bytes qwen3 = changed(golden("olmoe_norm"), {.metadata = {{"family", "qwen3_moe"}}});
  CHECK(test::bit_difference(output_of(qwen3), output_of(FamilyModel(golden("olmoe_norm")))) == "");
  // Groups count for nothing in DeepSeek-V2-Lite.
  const Matrix<float> grouped = output_of(FamilyModel(golden("deepseek_v2")));
  const Bytes greedy = changed(golden("deepseek_v2"), {.metadata = {{"topk_method", "greedy"}}}),
              one_group =
                  changed(golden("deepseek_v2"), {.metadata = {{"n_group", "1"}, {"topk_group", "1"}}}),
              no_group =
                  changed(golden("deepseek_v2"), {.metadata = {{"n_group", "None"}, {"topk_group", "None"}}});
  CHECK(test::bit_difference(output_of(greedy), grouped) != "");
  CHECK(test::bit_difference(output_of(greedy), output_of(one_group)) == "");
  CHECK(test::bit_difference(output_of(greedy), output_of(no_group)) == "");
  // DeepSeek-V3 normalizes unless it is said otherwise, the others do not.
  const Bytes v3 = changed(golden("deepseek_v3"), {.metadata = {{"norm_topk_prob", ""}}}),
              unnormalized = changed(golden("deepseek_v3"), {.metadata = {{"norm_topk_prob", "False"}}});
  CHECK(test::bit_difference(output_of(v3), output_of(FamilyModel(golden("deepseek_v3")))) == "");
  CHECK(test::bit_difference(output_of(v3), output_of(unnormalized)) != "");
  // gpt-oss' older configs have no alpha.
  const Bytes usual = changed(golden("gpt_oss"), {.metadata = {{"swiglu_alpha", ""}, {"swiglu_limit", ""}}}),
              other = changed(golden("gpt_oss"), {.metadata = {{"swiglu_alpha", "1.5"}}}),
              narrow = changed(golden("gpt_oss"), {.metadata = {{"swiglu_limit", "0.01"}}});
  const Matrix<float> gpt_oss = output_of(FamilyModel(golden("gpt_oss")));
  CHECK(test::bit_difference(output_of(usual), gpt_oss) == "");
  CHECK(test::bit_difference(output_of(other), gpt_oss) != "");
  CHECK(test::bit_difference(output_of(narrow), gpt_oss) != "");
  // OLMoE's own config has the experts' size in another field.
  const Bytes olmoe = changed(
      golden("olmoe"),
      {.metadata = {{"moe_intermediate_size", ""}, {"intermediate_size", "20"}, {"norm_topk_prob", ""}}});
  CHECK(test::bit_difference(output_of(olmoe), output_of(FamilyModel(golden("olmoe")))) == "");
}

TEST_CASE("a block is found by its prefix, by its layer or by itself", "[families]") {
  // Layers 1, 10 and a dense one; the layers differ.
  SafetensorsWriter writer;
  const SafetensorsReader file(golden("olmoe"));
  for (const auto& [key, value] : file.metadata()) writer.set_metadata(key, value);
  for (const std::string& name : file.names()) {
    if (!is_parameter(name)) continue;
    const std::string rest = name.substr(std::string("model.layers.0.").size());
    std::vector<float> values = file.read<float>(name);
    writer.add("model.layers.1." + rest, file.info(name).shape, values);
    for (float& value : values) value *= 2;
    writer.add("model.layers.10." + rest, file.info(name).shape, values);
  }
  for (const char* const name : {"model.layers.0.mlp.gate_proj.weight",
                                 "model.layers.1.self_attn.gate.weight", "model.layers.2.mlp.gate.weight"})
    writer.add(name, Matrix<float>(8, 32));
  const Bytes bytes = writer.bytes();
  const FamilyModel model{SafetensorsReader(bytes, "f")};
  std::vector<std::string> prefixes;
  for (const BlockFormat& format : model.blocks()) prefixes.push_back(format.prefix);
  CHECK(prefixes == std::vector<std::string>{"model.layers.1.mlp.", "model.layers.10.mlp."});
  for (const char* const prefix :
       {"model.layers.1", "model.layers.1.", "model.layers.1.mlp", "model.layers.1.mlp."})
    CHECK(model.block(prefix).prefix == "model.layers.1.mlp.");
  CHECK(model.layer(10).prefix == "model.layers.10.mlp.");
  CHECK(model.layer(10, "model").prefix == "model.layers.10.mlp.");
  const Block one = io::load_block<Block>(model, model.layer(1)),
              ten = io::load_block<Block>(model, model.layer(10));
  CHECK(ten.down().weight(7) == 2 * one.down().weight(7));
  CHECK(error_of([&] { model.block(); }) ==
        "meo: f: expected one block of olmoe whose names begin with \"\", found 2: model.layers.1.mlp., "
        "model.layers.10.mlp.");
  CHECK(error_of([&] { model.block("model.layers"); }).find("found 2") != std::string::npos);
  CHECK(error_of([&] { model.block("model.layers.2"); }) ==
        "meo: f: expected one block of olmoe whose names begin with \"model.layers.2\", found none");
  CHECK(error_of([&] { model.layer(1, "encoder"); }) ==
        "meo: f: expected one block of olmoe of layer 1 whose names begin with \"encoder\", found none");

  // A block's own state_dict.
  const Bytes bare = changed(
      golden("mixtral"), {.rename = [](const std::string& name) {
        return is_parameter(name) ? name.substr(std::string("model.layers.0.block_sparse_moe.").size())
                                  : name;
      }});
  const FamilyModel bare_model{SafetensorsReader(bare, "f")};
  CHECK(bare_model.block().prefix.empty());
  CHECK(bare_model.block().layer() == -1);
  CHECK(test::bit_difference(output_of(bare_model), output_of(FamilyModel(golden("mixtral")))) == "");
}

TEST_CASE("tensors that make no block are refused by name, and nothing is loaded", "[families]") {
  const Path mixtral = golden("mixtral"), fused = golden("mixtral_fused");
  const std::string prefix = "model.layers.0.block_sparse_moe.", last = prefix + "experts.7.w2.weight";
  for (const std::string& name : {last, prefix + "gate.weight"}) {
    CHECK(fault(changed(mixtral, renamed(name, ""))) ==
          "meo: f: tensor \"" + name + "\": is not in the file");
  }
  CHECK(fault(changed(fused, renamed("model.layers.0.mlp.experts.down_proj", ""))) ==
        "meo: f: tensor \"model.layers.0.mlp.experts.down_proj\": is not in the file");
  // One too many: an expert, the other layout, a scale, a bias.
  for (const std::string extra : {"experts.8.w1.weight", "experts.down_proj", "experts.0.w1.weight_scale_inv",
                                  "experts.0.w1.bias", "shared_expert.up_proj.weight", "noise"}) {
    CHECK(
        fault(changed(mixtral, {.add = [&](SafetensorsWriter& writer) {
                        writer.add(prefix + extra, Matrix<float>(1, 1));
                      }})) == "meo: f: tensor \"" + prefix + extra + "\": is no parameter of what is loaded");
  }
  const auto reshaped = [&](const std::string& name, const std::vector<Index>& shape) {
    return changed(mixtral,
                   {.rename = [&](const std::string& old) { return old == name ? "" : old; },
                    .add =
                        [&](SafetensorsWriter& writer) {
                          const auto size =
                              std::accumulate(shape.begin(), shape.end(), Index{1}, std::multiplies<>());
                          writer.add(name, shape, std::vector<float>(static_cast<std::size_t>(size)));
                        }});
  };
  CHECK(fault(reshaped(last, {20, 32})) ==
        "meo: f: tensor \"" + last + "\": expected shape [32, 20], got [20, 32]");
  CHECK(fault(reshaped(prefix + "gate.weight", {9, 32})) ==
        "meo: f: tensor \"" + prefix + "gate.weight\": expected shape [8, 32], got [9, 32]");

  // The last of all to be looked at, in a block that has other parameters.
  const FamilyModel model(mixtral);
  Block block(model.options(), AnyActivation::Kind::silu);
  std::mt19937_64 rng(2);
  block.initialize(rng);
  const Matrix<float> x = read_matrix(model, "x"), before = block.forward(x).y;
  const auto load_fault = [&](const Bytes& bytes, const io::LoadOptions& options = {}) {
    const FamilyModel other{SafetensorsReader(bytes, "f")};
    const std::string message = error_of([&] { io::load(block, other.block(), other.tensors(), options); });
    CHECK(test::bit_difference(block.forward(x).y, before) == "");
    return message;
  };
  CHECK(load_fault(changed(mixtral, renamed(last, ""))) ==
        "meo: f: tensor \"" + last + "\": is not in the file");
  CHECK(load_fault(reshaped(last, {20, 32})).find("expected shape [32, 20]") != std::string::npos);
  CHECK(load_fault(changed(mixtral, renamed("y", prefix + "y"))) ==
        "meo: f: tensor \"" + prefix + "y\": is no parameter of what is loaded");
  const Changes infinite{.values = [&](const std::string& name, std::vector<float>& values) {
    if (name == last) values[3] = std::numeric_limits<float>::infinity();
  }};
  CHECK(load_fault(changed(mixtral, infinite), {.require_finite = true}) ==
        "meo: f: tensor \"" + last + "\": element 3: expected a finite number, got inf");
}

TEST_CASE("a config that says no block is refused by the field's name", "[families]") {
  const auto config_fault = [](const char* name, const std::string& key, const std::string& value) {
    return fault(changed(golden(name), {.metadata = {{key, value}}}));
  };
  for (const std::string key :
       {"hidden_size", "intermediate_size", "num_local_experts", "num_experts_per_tok"}) {
    CHECK(config_fault("mixtral", key, "") == "meo: f: " + key + ": expected a value, got none");
    for (const std::string value : {"many", "True", "2.5", "0", "-3", "3000000000"}) {
      const bool is_text = value == "many";
      CHECK(config_fault("mixtral", key, value) ==
            "meo: f: " + key + ": expected a whole number from 1 to 2147483647, got " +
                (is_text           ? "\"many\""
                 : value == "True" ? "true"
                                   : value));
    }
  }
  CHECK(config_fault("mixtral", "hidden_act", "gelu") ==
        "meo: f: hidden_act: expected \"silu\", got \"gelu\"");
  CHECK(config_fault("olmoe", "norm_topk_prob", "2") ==
        "meo: f: norm_topk_prob: expected true or false, got 2");
  CHECK(config_fault("switch", "dense_act_fn", "gated-gelu") ==
        "meo: f: dense_act_fn: expected \"relu\", got \"gated-gelu\"");
  CHECK(config_fault("switch", "router_bias", "True") == "meo: f: router_bias: expected false, got true");
  CHECK(config_fault("switch", "expert_capacity", "0") ==
        "meo: f: expert_capacity: expected a whole number from 1 to 2147483647, got 0");
  CHECK(config_fault("mixtral", "family", "") == "meo: f: family: expected a value, got none");
  CHECK(config_fault("mixtral", "family", "7") == "meo: f: family: expected a text, got 7");
  CHECK(config_fault("mixtral", "family", "dbrx")
            .starts_with("meo: f: family: expected one of mixtral, olmoe, "));
  CHECK(config_fault("deepseek_v2", "routed_scaling_factor", "") ==
        "meo: f: routed_scaling_factor: expected a value, got none");
  CHECK(config_fault("deepseek_v2", "routed_scaling_factor", "-1") ==
        "meo: f: routed_scaling_factor: expected a number above 0, got -1");
  CHECK(config_fault("deepseek_v2", "norm_topk_prob", "True") ==
        "meo: f: norm_topk_prob: expected false, got true");
  CHECK(config_fault("deepseek_v2", "topk_method", "noaux_tc") ==
        "meo: f: topk_method: expected \"greedy\" or \"group_limited_greedy\", got \"noaux_tc\"");
  CHECK(config_fault("deepseek_v3", "scoring_func", "softmax") ==
        "meo: f: scoring_func: expected \"sigmoid\", got \"softmax\"");
  CHECK(config_fault("deepseek_v3", "n_group", "0.5") ==
        "meo: f: n_group: expected a whole number from 1 to 2147483647, got 0.5");
  CHECK(config_fault("deepseek_v3", "n_shared_experts", "-1") ==
        "meo: f: n_shared_experts: expected a whole number from 0 to 2147483647, got -1");
  CHECK(config_fault("deepseek_v3", "n_shared_experts", "3") ==
        "meo: f: tensor \"model.layers.0.mlp.shared_experts.gate_proj.weight\": expected shape [60, 32], got "
        "[40, 32]");
  CHECK(config_fault("gpt_oss", "swiglu_limit", "wide") ==
        "meo: f: swiglu_limit: expected a number above 0, got \"wide\"");
  // No memory is taken for experts that are not there.
  CHECK(config_fault("mixtral", "num_local_experts", "2000000000") ==
        "meo: f: tensor \"model.layers.0.block_sparse_moe.gate.weight\": expected shape [2000000000, 32], "
        "got [8, 32]");
  CHECK_THROWS_WITH(output_of(changed(golden("mixtral"), {.metadata = {{"num_experts_per_tok", "9"}}})),
                    "meo: top_k: expected 1 to num_experts = 8, got 9");

  const Folder folder;
  const std::string config = (folder / "config.json").string();
  const auto folder_fault = [&](const std::string& text) {
    test::save(config, test::to_bytes(text));
    return error_of([&] { FamilyModel{Path(folder)}.options(); });
  };
  std::filesystem::copy_file(golden("mixtral"), folder / "model.safetensors");
  CHECK(error_of([&] { FamilyModel{Path(folder)}; }) == "meo: " + config + ": cannot be opened");
  CHECK(folder_fault("[]") == "meo: " + config + ": expected a JSON object");
  CHECK(folder_fault("{") == "meo: " + config + ": expected a JSON object");
  CHECK(folder_fault("{}") == "meo: " + config + ": model_type: expected a value, got none");
  CHECK(folder_fault(R"({"model_type": "dbrx"})")
            .starts_with("meo: " + config + ": model_type: expected one of "));
  CHECK(folder_fault(R"({"model_type": "mixtral", "hidden_size": "32"})") ==
        "meo: " + config + ": hidden_size: expected a whole number from 1 to 2147483647, got \"32\"");
  CHECK(folder_fault(R"({"model_type": "mixtral", "hidden_size": null})") ==
        "meo: " + config + ": hidden_size: expected a value, got none");
  const Path missing = folder / "missing";
  CHECK(error_of([&] { FamilyModel{missing}; }) ==
        "meo: " + missing.string() + ": cannot be read: No such file or directory");

  // A block of another activation than the model's.
  const FamilyModel model(golden("switch"));
  using Gated = FeedForward<MoeLayer<float>, Silu>;
  CHECK(error_of([&] {
          io::load_block<Gated>(model, model.block());
        }).ends_with("expected a block whose activation can be relu"));
}

TEST_CASE("names of tensors that only seem to be an expert's are none", "[families]") {
  const Bytes bytes =
      changed(golden("mixtral"), {.rename = [](const std::string& name) {
                return name.find("experts.") == name.npos ? name : "x" + name.substr(name.find("experts."));
              }});
  const FamilyModel model{SafetensorsReader(bytes, "f")};
  CHECK(model.blocks().empty());
}

}  // namespace families_test
}  // namespace

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

#include "io/files.hpp"
#include "reference/library_block.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

namespace {
namespace checkpoint_test {

using meo::Index;
using meo::Level;
using meo::Matrix;
using meo::MeoLayer;
using meo::MoeLayer;
using meo::io::SafetensorsReader;
using meo::io::SafetensorsWriter;
using meo::reference::options_of;
using meo::test::Bytes;
using meo::test::error_of;
using meo::test::Folder;
using meo::test::Golden;

using Parameters = std::vector<std::pair<std::string, std::vector<double>>>;

// Every parameter of a layer in row-major order, under the authors' names.
template <class Layer>
Parameters parameters_of(const Layer& layer, const std::string& prefix = "param.") {
  Parameters all;
  const auto add = [&](const std::string& name, const auto& matrix) {
    const Matrix<double> values = matrix.template cast<double>();
    all.emplace_back(prefix + name, std::vector<double>(values.data(), values.data() + values.size()));
  };
  const auto add_linear = [&](const std::string& name, const auto& linear) {
    add(name + ".weight", linear.weight());
    add(name + ".bias", linear.bias());
  };
  add("w_gate", layer.gate().weight());
  add("w_noise", layer.gate().noise_weight());
  Parameters stacked{{prefix + "weight", {}}, {prefix + "bias", {}}};
  for (Index i = 0; i < layer.num_experts(); ++i) {
    const std::string dense = "experts." + std::to_string(i) + ".dense";
    add(dense + ".weight", layer.weight(i));
    if (layer.options().bias) add(dense + ".bias", layer.bias(i));
    if constexpr (Layer::Kind::stacks_experts) {
      for (std::size_t j = layer.options().bias ? 2 : 1; j-- > 0; all.pop_back()) {
        stacked[j].second.insert(stacked[j].second.end(), all.back().second.begin(), all.back().second.end());
      }
    }
  }
  if constexpr (Layer::Kind::stacks_experts) {
    all.push_back(stacked[0]);
    if (layer.options().bias) all.push_back(stacked[1]);
    if (layer.options().routing.level == Level::token) {
      add_linear("tokenatt.down_proj", layer.token_attention().down());
      add_linear("tokenatt.up_proj", layer.token_attention().up());
    }
  }
  if (layer.options().routing.level == Level::task) add_linear("task_proj", layer.task_projection());
  return all;
}

template <class Block>
Parameters parameters_of_block(const Block& block, const std::string& prefix = "param.") {
  Parameters all = parameters_of(block.up(), prefix + "up.");
  const Parameters down = parameters_of(block.down(), prefix + "down.");
  all.insert(all.end(), down.begin(), down.end());
  if (block.options().gated) {
    const Parameters gate_up = parameters_of(block.gate_up(), prefix + "gate_up.");
    all.insert(all.end(), gate_up.begin(), gate_up.end());
  }
  return all;
}

// Whether these are the parameters of the file, all of them and bit by bit.
bool equal(const Parameters& parameters, const SafetensorsReader& file) {
  std::size_t in_file = 0;
  for (const std::string& name : file.names()) in_file += name.starts_with("param.");
  bool same = parameters.size() == in_file;
  for (const auto& [name, values] : parameters) same = same && file.read<double>(name) == values;
  return same;
}

// Whether the layer or block is saved with the tensors of the file, names, shapes and values.
template <class Layer>
bool saved_as(const Layer& layer, const SafetensorsReader& file) {
  SafetensorsWriter writer;
  meo::io::save(layer, writer);
  const Bytes bytes = writer.bytes();
  const SafetensorsReader saved(bytes, "saved");
  std::size_t in_file = 0;
  for (const std::string& name : file.names()) in_file += name.starts_with("param.");
  bool same = saved.names().size() == in_file;
  for (const std::string& name : saved.names()) {
    same = same && file.contains(name) && saved.info(name).shape == file.info(name).shape &&
           saved.read<double>(name) == file.read<double>(name);
  }
  return same;
}

template <class S>
void check_loaded(const Golden<S>& golden) {
  if (golden.is_block()) {
    const auto check = [&]<class Layer>(std::type_identity<Layer>) {
      meo::FeedForward<Layer> block(options_of(golden.block()));
      meo::io::load(block, golden.reader());
      CHECK(equal(parameters_of_block(block), golden.reader()));
      CHECK(saved_as(block, golden.reader()));
    };
    golden.text("kind") == "MoE" ? check(std::type_identity<MoeLayer<S>>{})
                                 : check(std::type_identity<MeoLayer<S>>{});
  } else {
    const auto check = [&]<class Layer>(std::type_identity<Layer>) {
      Layer layer(options_of(golden.layer()));
      meo::io::load(layer, golden.reader());
      CHECK(equal(parameters_of(layer), golden.reader()));
      CHECK(saved_as(layer, golden.reader()));
    };
    golden.text("kind") == "MoE" ? check(std::type_identity<MoeLayer<S>>{})
                                 : check(std::type_identity<MeoLayer<S>>{});
  }
}

// A small layer with random parameters, token level, with biases.
template <class Layer>
Layer small_layer(unsigned seed, Level level = Level::token, bool bias = true) {
  Layer layer(
      {.in_features = 4,
       .out_features = 3,
       .num_experts = 2,
       .bias = bias,
       .routing = {.level = level, .task_features = level == Level::task ? 6 : 0, .reduce_factor = 2}});
  std::mt19937_64 rng(seed);
  layer.initialize(rng);
  return layer;
}

std::vector<Index> shape_of(const std::string& name, std::size_t size) {
  const auto n = static_cast<Index>(size);
  if (name.ends_with("w_gate") || name.ends_with("w_noise")) return {n / 2, 2};
  if (name.ends_with("tokenatt.down_proj.weight")) return {2, 4};
  if (name.ends_with("tokenatt.up_proj.weight")) return {4, 2};
  if (name.ends_with("task_proj.weight")) return {3, 6};
  if (name.ends_with("dense.weight")) return {3, 4};
  if (name == "param.weight") return {2, 3, 4};
  if (name == "param.bias") return {2, 3};
  return {n};
}

// What a test changes of a file: names to leave out, and what else to write.
using Change = std::function<void(SafetensorsWriter&)>;

template <class Layer>
Bytes file_of_layer(const Layer& layer, const std::string& without = "", const Change& change = {}) {
  SafetensorsWriter writer;
  for (const auto& [name, values] : parameters_of(layer)) {
    if (name != without) writer.add(name, shape_of(name, values.size()), values);
  }
  if (change) change(writer);
  return writer.bytes();
}

// The error of loading a file into a layer that has parameters of its own, which must stay.
template <class Layer>
std::string fault(Layer layer, const Bytes& bytes) {
  const Parameters before = parameters_of(layer);
  const std::string error = error_of([&] { meo::io::load(layer, SafetensorsReader(bytes, "f")); });
  CHECK((parameters_of(layer) == before) == (error != "no error"));
  return error;
}

TEST_CASE("the parameters of all golden files are loaded, each to its place, and saved again",
          "[io][checkpoint][golden]") {
  const auto paths = meo::test::golden_files();
  CHECK(paths.size() == 100);
  for (const auto& path : paths) {
    CAPTURE(path.filename().string());
    const Golden<double> golden(path);
    check_loaded(golden);
    if (golden.is_single_precision()) check_loaded(Golden<float>(path));
  }
}

TEMPLATE_TEST_CASE("a saved layer comes back at every level, with and without biases", "[io][checkpoint]",
                   MoeLayer<double>, MeoLayer<double>, (MoeLayer<double, 2>), (MeoLayer<double, 2>)) {
  for (const Level level : {Level::token, Level::sequence, Level::task}) {
    for (const bool bias : {false, true}) {
      const auto saved = small_layer<TestType>(1, level, bias);
      auto layer = small_layer<TestType>(2, level, bias);
      CHECK(parameters_of(layer) != parameters_of(saved));
      SafetensorsWriter writer;
      meo::io::save(saved, writer);
      const Bytes bytes = writer.bytes();
      CHECK(bytes == file_of_layer(saved));
      meo::io::load(layer, SafetensorsReader(bytes, "f"));
      CHECK(parameters_of(layer) == parameters_of(saved));
    }
  }
}

TEST_CASE("parameters of other types and under other prefixes", "[io][checkpoint]") {
  const auto saved = small_layer<MoeLayer<double>>(1);
  for (const std::string prefix : {"", "bert.encoder.layer.0.", "p"}) {
    SafetensorsWriter writer;
    for (const auto& [name, values] : parameters_of(saved)) {
      writer.add(prefix + name.substr(6), shape_of(name, values.size()), values, meo::io::DType::BF16);
    }
    // Another layer's, which are none of this one's business.
    if (!prefix.empty()) writer.add("other.w_gate", {1}, std::vector{1.0f});
    const Bytes bytes = writer.bytes();
    const SafetensorsReader file(bytes, "f");
    auto layer = small_layer<MoeLayer<float>>(2);
    meo::io::load(layer, file, prefix);
    for (const auto& [name, values] : parameters_of(layer)) {
      CHECK(values == file.read<double>(prefix + name.substr(6)));
    }
  }
}

TEST_CASE("the authors' constants mean and std are passed over", "[io][checkpoint]") {
  const auto saved = small_layer<MeoLayer<double>>(1);
  const Bytes bytes = file_of_layer(saved, "", [](SafetensorsWriter& writer) {
    writer.add("param.mean", {1}, std::vector{0.0f});
    writer.add("param.std", {1}, std::vector{1.0f});
  });
  CHECK(fault(small_layer<MeoLayer<double>>(2), bytes) == "no error");
}

TEMPLATE_TEST_CASE("a parameter that is missing, or has another shape or type", "[io][checkpoint]",
                   MoeLayer<double>, MeoLayer<double>) {
  for (const Level level : {Level::token, Level::task}) {
    const auto saved = small_layer<TestType>(1, level);
    const auto layer = small_layer<TestType>(2, level);
    const auto shape_fault = [&](const Bytes& bytes) {
      return error_of(
          [&] { meo::io::check_shapes<TestType>(layer.options(), SafetensorsReader(bytes, "f")); });
    };
    for (const auto& [name, values] : parameters_of(saved)) {
      const std::string at = "meo: f: tensor \"" + name + "\": ";
      const Bytes missing = file_of_layer(saved, name);
      CHECK(fault(layer, missing) == at + "is not in the file");
      CHECK(shape_fault(missing) == at + "is not in the file");

      const auto shape = shape_of(name, values.size());
      const Bytes flat = file_of_layer(saved, name, [&, name = name](SafetensorsWriter& writer) {
        writer.add(name, {1, 1, 1}, std::vector{1.0});
      });
      CHECK(fault(layer, flat) ==
            at + "expected shape " + meo::io::detail::in_brackets(shape) + ", got [1, 1, 1]");
      CHECK(shape_fault(flat) == fault(layer, flat));

      const Bytes odd =
          file_of_layer(saved, name, [&, name = name, size = values.size()](SafetensorsWriter& writer) {
            writer.add(name, shape, std::vector<int>(size), meo::io::DType::BOOL);
          });
      Bytes broken = odd;
      broken.back() = std::byte{2};
      CHECK(fault(layer, odd) == "no error");
      CHECK(shape_fault(odd) == "no error");
      CHECK(fault(layer, broken) ==
            at + "element " + std::to_string(values.size() - 1) + ": expected 0 to 1, got 2");
    }
  }
}

TEST_CASE("shapes are checked for blocks, and for layers that no memory would hold", "[io][checkpoint]") {
  const Golden<double> golden(meo::test::golden_files("099_").at(0));
  using Block = meo::FeedForward<MeoLayer<double>, meo::Silu>;
  auto options = options_of(golden.block());
  for (const bool shared_gate : {false, true}) {
    options.shared_gate = shared_gate;
    const Block block(options);
    SafetensorsWriter writer;
    meo::io::save(block, writer);
    const Bytes whole = writer.bytes();
    const SafetensorsReader file(whole, "f");
    CHECK(error_of([&] { meo::io::check_shapes<Block>(options, file); }) == "no error");
    for (const std::string& missing : file.names()) {
      SafetensorsWriter others;
      for (const std::string& name : file.names()) {
        if (name != missing) others.add(name, file.info(name).shape, file.read<double>(name));
      }
      const Bytes bytes = others.bytes();
      CHECK(error_of([&] { meo::io::check_shapes<Block>(options, SafetensorsReader(bytes, "f")); }) ==
            "meo: f: tensor \"" + missing + "\": is not in the file");
    }
  }

  const Bytes bytes = file_of_layer(small_layer<MoeLayer<double>>(1));
  const SafetensorsReader file(bytes, "f");
  meo::LayerOptions large = small_layer<MoeLayer<double>>(1).options();
  large.num_experts = std::numeric_limits<Index>::max();
  const std::string start = "meo: f: tensor \"param.";
  CHECK(error_of([&] { meo::io::check_shapes<MoeLayer<double>>(large, file); }) ==
        start + "w_gate\": expected shape [4, " + std::to_string(large.num_experts) + "], got [4, 2]");
  large.has_router = false;
  CHECK(error_of([&] { meo::io::check_shapes<MoeLayer<double>>(large, file); }) ==
        start + "experts.2.dense.weight\": is not in the file");
  large.top_k = 0;
  CHECK_THROWS_AS(meo::io::check_shapes<MoeLayer<double>>(large, file), std::invalid_argument);
}

TEMPLATE_TEST_CASE("parameters that are not finite are refused where that is asked for", "[io][checkpoint]",
                   MoeLayer<double>, MeoLayer<double>, MoeLayer<float>, MeoLayer<float>) {
  constexpr bool is_float = std::is_same_v<typename TestType::Scalar, float>;
  for (const Level level : {Level::token, Level::task}) {
    const auto saved = small_layer<TestType>(1, level);
    const auto finite_fault = [&](const Bytes& bytes) {
      auto layer = small_layer<TestType>(2, level);
      const Parameters before = parameters_of(layer);
      const std::string error = error_of(
          [&] { meo::io::load(layer, SafetensorsReader(bytes, "f"), "param.", {.require_finite = true}); });
      CHECK((parameters_of(layer) == before) == (error != "no error"));
      return error;
    };
    CHECK(finite_fault(file_of_layer(saved)) == "no error");
    for (const auto& [name, values] : parameters_of(saved)) {
      const std::size_t last = values.size() - 1;
      const auto file_with = [&, &name = name, &values = values](double value) {
        return file_of_layer(saved, name, [&](SafetensorsWriter& writer) {
          std::vector<double> changed = values;
          changed[last] = value;
          writer.add(name, shape_of(name, values.size()), changed);
        });
      };
      const std::string start =
          "meo: f: tensor \"" + name + "\": element " + std::to_string(last) + ": expected ";
      const double infinity = std::numeric_limits<double>::infinity();
      CHECK(finite_fault(file_with(std::nan(""))) == start + "a finite number, got nan");
      CHECK(finite_fault(file_with(-infinity)) == start + "a finite number, got -inf");
      CHECK(finite_fault(file_with(1e300)) ==
            (is_float ? start + "-3.40282e+38 to 3.40282e+38, got 1e+300" : "no error"));
      // Else they are loaded as they are.
      auto layer = small_layer<TestType>(2, level);
      const Bytes bytes = file_with(infinity);
      meo::io::load(layer, SafetensorsReader(bytes, "f"));
      for (const auto& [loaded, of_layer] : parameters_of(layer)) {
        if (loaded == name) CHECK(of_layer[last] == infinity);
      }
    }
  }
}

TEST_CASE("a block's parameters that are not finite are refused where that is asked for",
          "[io][checkpoint]") {
  const Golden<double> golden(meo::test::golden_files("099_").at(0));
  meo::FeedForward<MeoLayer<double>> block(options_of(golden.block()));
  const Parameters before = parameters_of_block(block);
  for (const std::string name : {"param.up.weight", "param.gate_up.w_gate", "param.down.w_noise"}) {
    SafetensorsWriter writer;
    for (const std::string& each : golden.reader().names()) {
      auto values = golden.reader().read<double>(each);
      if (each == name) values[1] = std::nan("");
      writer.add(each, golden.reader().info(each).shape, values);
    }
    const Bytes bytes = writer.bytes();
    const SafetensorsReader file(bytes, "f");
    CHECK(error_of([&] { meo::io::load(block, file, "param.", {.require_finite = true}); }) ==
          "meo: f: tensor \"" + name + "\": element 1: expected a finite number, got nan");
    CHECK(parameters_of_block(block) == before);
  }
  meo::io::load(block, golden.reader(), "param.", {.require_finite = true});
  CHECK(equal(parameters_of_block(block), golden.reader()));
}

TEST_CASE("parameters that have no place in the layer", "[io][checkpoint]") {
  const auto misfit = [](const std::string& name) {
    return "meo: f: tensor \"" + name + "\": is no parameter of what is loaded";
  };
  // Biases that would be lost.
  CHECK(fault(small_layer<MoeLayer<double>>(2, Level::sequence, false),
              file_of_layer(small_layer<MoeLayer<double>>(1, Level::sequence, true))) ==
        misfit("param.experts.0.dense.bias"));
  CHECK(fault(small_layer<MeoLayer<double>>(2, Level::sequence, false),
              file_of_layer(small_layer<MeoLayer<double>>(1, Level::sequence, true))) ==
        misfit("param.bias"));
  // Another level.
  CHECK(fault(small_layer<MeoLayer<double>>(2, Level::sequence),
              file_of_layer(small_layer<MeoLayer<double>>(1, Level::token))) ==
        misfit("param.tokenatt.down_proj.bias"));
  // An expert too many.
  const Bytes three = file_of_layer(small_layer<MoeLayer<double>>(1), "", [](SafetensorsWriter& writer) {
    writer.add("param.experts.2.dense.weight", {3, 4}, std::vector<double>(12));
  });
  CHECK(fault(small_layer<MoeLayer<double>>(2), three) == misfit("param.experts.2.dense.weight"));

  // A block that is gated, into one that is not.
  const Golden<double> golden(meo::test::golden_files("099_").at(0));
  auto options = options_of(golden.block());
  options.gated = false;
  meo::FeedForward<MeoLayer<double>> block(options);
  const Parameters before = parameters_of_block(block);
  CHECK(error_of([&] { meo::io::load(block, golden.reader()); }) ==
        "meo: " + golden.reader().file() +
            ": tensor \"param.gate_up.w_gate\": is no parameter of what is loaded");
  CHECK(parameters_of_block(block) == before);
}

TEST_CASE("tensors of other names may stand beside parameters", "[io][checkpoint]") {
  const std::vector<std::string> others{"x",
                                        "noise",
                                        "task_embeddings",
                                        "weights",
                                        "grad.x",
                                        "weight_norm",
                                        "param.weight",
                                        "biased.weight",
                                        "mean",
                                        "std",
                                        "",
                                        ".weight",
                                        "decoder",
                                        "downstream"};
  const std::vector<std::string> authors{
      "weight",           "bias",      "experts.7.dense.weight", "experts",  "tokenatt.up_proj.bias",
      "task_proj.weight", "up.w_gate", "gate_up.weight",         "down.bias"};
  const auto saved = small_layer<MoeLayer<double>>(1, Level::sequence);
  for (const std::string prefix : {"", "layer."}) {
    const auto load_beside = [&](const std::vector<std::string>& names) {
      SafetensorsWriter writer;
      meo::io::save(saved, writer, prefix);
      for (const std::string& name : names) writer.add(prefix + name, {1}, std::vector{1.0});
      const Bytes bytes = writer.bytes();
      auto layer = small_layer<MoeLayer<double>>(2, Level::sequence);
      const Parameters before = parameters_of(layer);
      const std::string error =
          error_of([&] { meo::io::load(layer, SafetensorsReader(bytes, "f"), prefix); });
      CHECK(parameters_of(layer) == (error == "no error" ? parameters_of(saved) : before));
      return error;
    };
    CHECK(load_beside(others) == "no error");
    for (const std::string& name : authors) {
      CHECK(load_beside({name}) ==
            "meo: f: tensor \"" + prefix + name + "\": is no parameter of what is loaded");
    }
  }

  // A block, with all that a golden file has.
  const Golden<double> golden(meo::test::golden_files("099_").at(0));
  SafetensorsWriter writer;
  for (const std::string& name : golden.reader().names()) {
    const auto& info = golden.reader().info(name);
    writer.add(name.starts_with("param.") ? name.substr(6) : name, info.shape,
               golden.reader().read<double>(name), info.dtype);
  }
  const Bytes bytes = writer.bytes();
  meo::FeedForward<MeoLayer<double>> block(options_of(golden.block()));
  meo::io::load(block, SafetensorsReader(bytes, "f"), "");
  CHECK(equal(parameters_of_block(block), golden.reader()));
}

TEST_CASE("MoE parameters are not taken for MEO's, nor the reverse", "[io][checkpoint]") {
  CHECK(fault(small_layer<MeoLayer<double>>(2, Level::sequence),
              file_of_layer(small_layer<MoeLayer<double>>(1, Level::sequence))) ==
        "meo: f: tensor \"param.weight\": is not in the file");
  CHECK(fault(small_layer<MoeLayer<double>>(2, Level::sequence),
              file_of_layer(small_layer<MeoLayer<double>>(1, Level::sequence))) ==
        "meo: f: tensor \"param.experts.0.dense.weight\": is not in the file");
}

TEST_CASE("a file that becomes shorter while it is loaded leaves layer and block as they were",
          "[io][checkpoint]") {
  const Folder folder;
  const auto path = folder / "f.safetensors";
  auto layer = small_layer<MeoLayer<double>>(2);
  const Bytes bytes = file_of_layer(small_layer<MeoLayer<double>>(1));
  const Parameters before = parameters_of(layer);
  // From the last byte to all of the data.
  const std::size_t data = 8 * (4 * 2 * 2 + 2 * 3 * 4 + 2 * 3 + 2 * 4 + 2 + 4 * 2 + 4);
  for (std::size_t lost = 1; lost <= data; ++lost) {
    meo::test::save(path, bytes);
    const SafetensorsReader file(path);
    std::filesystem::resize_file(path, bytes.size() - lost);
    const std::string error = error_of([&] { meo::io::load(layer, file); });
    CHECK(error.ends_with("its data cannot be read any more"));
    CHECK(parameters_of(layer) == before);
  }

  // A block, cut before the last byte of each of its parameters.
  const Golden<double> golden(meo::test::golden_files("099_").at(0));
  const Bytes whole = meo::test::load_bytes(golden.reader().file());
  std::uint64_t data_size = 0;
  for (const std::string& name : golden.reader().names()) {
    data_size = std::max(data_size, golden.reader().info(name).end);
  }
  meo::FeedForward<MeoLayer<double>> block(options_of(golden.block()));
  const Parameters block_before = parameters_of_block(block);
  for (const auto& [name, values] : block_before) {
    CAPTURE(name);
    meo::test::save(path, whole);
    const SafetensorsReader file(path);
    std::filesystem::resize_file(path, whole.size() - data_size + file.info(name).end - 1);
    CHECK(error_of([&] { meo::io::load(block, file); }).ends_with("its data cannot be read any more"));
    CHECK(parameters_of_block(block) == block_before);
  }
}

TEST_CASE("a file that fails when it is read a second time says up to where it is loaded",
          "[io][checkpoint]") {
  using Part = meo::io::TensorPart<double>;
  constexpr Index cols = 7;  // read whole rows at a time
  constexpr Index piece = meo::io::detail::load_elements / cols * cols, size = 2 * piece + cols;
  const Folder folder;
  const auto path = folder / "f.safetensors";
  SafetensorsWriter writer;
  writer.add("a", {3}, std::vector<double>(3, 1));
  writer.add("b", {size}, std::vector<double>(size, 2));
  const Bytes bytes = writer.bytes();
  // Cut off: all data, b alone, b's second piece, its last element; when one element before is written.
  for (const auto& [kept, cut_at] : {std::pair{Index{0}, Index{2}}, {3, 2}, {3 + piece, 3}, {size + 2, 3}}) {
    CAPTURE(kept);
    meo::test::save(path, bytes);
    std::vector<double> values(size + 3);
    const auto part = [&, cut_at = cut_at, kept = kept](const std::string& name, Index count, Index begin) {
      const Index in_row = (std::min)(count, cols);
      return Part(name, {count}, in_row, nullptr,
                  [&, begin, cut_at, kept, in_row](Index row, Index, std::span<const double> out) {
                    const Index first = row * in_row;
                    std::copy(out.begin(), out.end(), values.begin() + begin + first);
                    const auto end = begin + first + static_cast<Index>(out.size());
                    if (begin + first > cut_at || end <= cut_at) return;
                    const Index lost = size + 3 - kept;
                    std::filesystem::resize_file(path, bytes.size() - 8 * static_cast<std::size_t>(lost));
                  });
    };
    const std::string error = error_of([&] {
      meo::io::detail::load_parts<double>({part("a", 3, 0), part("b", size, 3)}, SafetensorsReader(path), "",
                                          {});
    });
    // What was in the same piece as the last element that can be read is lost with the piece.
    const Index of_b = kept <= 3 ? 0 : (kept - 3) / piece * piece;
    CHECK(error == "meo: " + path.string() + ": tensor \"b\": cannot be read a second time, from element " +
                       std::to_string(of_b) + " on: all before it is loaded, nothing after it");
    std::vector<double> expected(size + 3, 0);
    std::fill_n(expected.begin(), 3, 1);
    std::fill_n(expected.begin() + 3, of_b, 2);
    CHECK(values == expected);
  }
}

TEST_CASE("a loaded layer gives the authors' output", "[io][checkpoint][golden]") {
  const Golden<double> golden(meo::test::golden_files("053_").at(0));
  MeoLayer<double> layer(options_of(golden.layer()));
  meo::io::load(layer, golden.reader());
  const Matrix<double> x = golden.matrix("x");
  const auto sequences = meo::Sequences::uniform(golden.integer("batch"), golden.integer("sequence_length"));
  const Matrix<double> y = layer.forward(x, sequences).y;
  const Matrix<double> expected = golden.matrix("y");
  CHECK((y - expected).cwiseAbs().maxCoeff() < 1e-13 * expected.cwiseAbs().maxCoeff());
}

}  // namespace checkpoint_test
}  // namespace

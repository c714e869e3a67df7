// The example run_checkpoint: what it writes for the golden files, what its options do, and what it refuses.

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <meo/io/safetensors.hpp>
#include <meo/types.hpp>

#include "io/files.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/golden_files.hpp"
#include "support/program.hpp"

namespace {

using meo::Index;
using meo::io::DType;
using meo::io::SafetensorsReader;
using meo::io::SafetensorsWriter;
using meo::test::Bytes;
using meo::test::file_of;
using meo::test::Folder;
using meo::test::Outcome;
using Path = std::filesystem::path;

Path golden(const std::string& number) { return meo::test::golden_files(number).at(0); }

Outcome run(const Folder& folder, const std::vector<std::string>& arguments) {
  return meo::test::run_program(MEO_RUN_CHECKPOINT, folder, arguments);
}

using Rename = std::function<std::string(const std::string&)>;
using Metadata = std::map<std::string, std::string>;

// Writes a file anew with other metadata and other names; what gets an empty name is left out.
Path changed(
    const Folder& folder, const Path& path, const Metadata& metadata,
    const Rename& rename = [](const std::string& name) { return name; },
    const std::function<void(SafetensorsWriter&)>& add = {}) {
  const SafetensorsReader file(path);
  SafetensorsWriter writer;
  for (const auto& [key, value] : file.metadata()) {
    if (!metadata.contains(key) || !metadata.at(key).empty()) writer.set_metadata(key, value);
  }
  for (const auto& [key, value] : metadata) {
    if (!value.empty()) writer.set_metadata(key, value);
  }
  for (const std::string& name : file.names()) {
    const std::string other = rename(name);
    if (!other.empty())
      writer.add(other, file.info(name).shape, file.read<double>(name), file.info(name).dtype);
  }
  if (add) add(writer);
  const Path copy = folder / "changed.safetensors";
  writer.write(copy);
  return copy;
}

Rename without(const std::string& left_out) {
  return [=](const std::string& name) { return name == left_out ? "" : name; };
}

// The bytes of what is written for a file.
Bytes written(const Folder& folder, const Path& path, std::vector<std::string> options = {}) {
  const Path out = folder / "written.safetensors";
  std::filesystem::remove(out);
  options.insert(options.begin(), {path.string(), "--output", out.string()});
  const Outcome outcome = run(folder, options);
  CHECK(outcome.errors == "");
  REQUIRE(outcome.exit_code == 0);
  return meo::test::load_bytes(out);
}

// A tensor as one row.
meo::Matrix<long double> row(const SafetensorsReader& file, const std::string& name) {
  const auto values = file.read<long double>(name);
  return Eigen::Map<const meo::Matrix<long double>>(values.data(), 1, static_cast<Index>(values.size()));
}

// Where the authors' rounding to float is the larger error, it is the tolerance; see layers/golden_test.cpp.
long double tolerance(const SafetensorsReader& file, const std::string& tensor) {
  if (file.info("x").dtype == DType::F32) return 2 * 4e-7L;
  if (tensor == "loss") return 4e-7L;
  if (tensor == "y" && file.metadata("kind") == "MoE") return 1e-7L;
  return (file.metadata().contains("block") ? 2 : 1) * 2 * 5e-16L;
}

}  // namespace

TEST_CASE("run_checkpoint writes the golden files' results", "[run_checkpoint][golden]") {
  const Folder folder;
  const auto paths = meo::test::golden_files();
  CHECK(paths.size() == 100);
  for (const Path& path : paths) {
    CAPTURE(path.filename().string());
    const SafetensorsReader expected(path);
    const Bytes bytes = written(folder, path);
    const SafetensorsReader result(bytes, "written");
    const bool block = expected.metadata().contains("block");
    CHECK(result.names() == (block ? std::vector<std::string>{"loss", "y"}
                                   : std::vector<std::string>{"gates", "load", "loss", "y"}));
    for (const std::string& name : result.names()) {
      CAPTURE(name);
      CHECK(result.info(name).dtype == expected.info(name).dtype);
      CHECK(result.info(name).shape == expected.info(name).shape);
      CHECK(meo::test::disagreement_in_max_norm(row(result, name), row(expected, name),
                                                tolerance(expected, name)) == "");
    }
  }
}

TEST_CASE("run_checkpoint finds parameters by their prefix and the input by its name", "[run_checkpoint]") {
  const Folder folder;
  // A layer of MoE with noise and one of MEO with a task; blocks, gated or not.
  for (const char* number : {"018_", "065_", "086_", "099_"}) {
    CAPTURE(number);
    const Path path = golden(number);
    const Bytes expected = written(folder, path);
    for (const std::string prefix : {"", "bert.layer.0.", "p"}) {
      CAPTURE(prefix);
      const Path copy = changed(folder, path, {}, [&](const std::string& name) {
        if (name == "x") return std::string("hidden_states");
        return name.starts_with("param.") ? prefix + name.substr(6) : name;
      });
      CHECK(written(folder, copy, {"--prefix", prefix, "--input", "hidden_states"}) == expected);
    }
  }
}

TEST_CASE("run_checkpoint takes a matrix for one sequence", "[run_checkpoint]") {
  const Folder folder;
  const SafetensorsReader file(golden("003_"));  // gated token by token: y depends on no sequences
  const auto& shape = file.info("x").shape;
  const Index tokens = shape[0] * shape[1];
  const Path copy = changed(folder, file.file(), {}, without("x"), [&](SafetensorsWriter& writer) {
    writer.add("x", {tokens, shape[2]}, file.read<double>("x"));
  });
  const Bytes three = written(folder, file.file()), two = written(folder, copy);
  const SafetensorsReader result(two, "written");
  CHECK(result.info("y").shape == std::vector<Index>{tokens, file.info("y").shape[2]});
  CHECK(result.read<double>("y") == SafetensorsReader(three, "written").read<double>("y"));
}

TEST_CASE("run_checkpoint says when training lacks its noise", "[run_checkpoint]") {
  const Folder folder;
  const std::string note = "training is True, but there is no noise: run as inference\n";
  for (const char* number : {"018_", "054_"}) {
    const Path path = golden(number);
    CHECK_FALSE(run(folder, {path.string()}).says(note));
    const Path inference = changed(folder, path, {{"training", "False"}});
    CHECK_FALSE(run(folder, {inference.string()}).says(note));
    const Bytes expected = written(folder, inference);
    CHECK(expected != written(folder, path));
    const Path noiseless = changed(folder, path, {}, without("noise"));
    CHECK(run(folder, {noiseless.string()}).says(note));
    CHECK(written(folder, noiseless) == expected);
  }
  // Of a block too.
  CHECK(run(folder, {changed(folder, golden("086_"), {{"training", "True"}}).string()}).says(note));
}

TEST_CASE("run_checkpoint heeds the metadata, of layers and of blocks", "[run_checkpoint]") {
  const Folder folder;
  // A layer and a block of token-level MEO, both with noise.
  const SafetensorsReader block(golden("095_"));
  const Index rows = block.info("x").shape[0], experts = std::stol(block.metadata("num_experts"));
  const Path noisy_block = folder / "block.safetensors";
  std::filesystem::rename(
      changed(
          folder, block.file(), {{"training", "True"}}, [](const std::string& name) { return name; },
          [&](SafetensorsWriter& writer) {
            std::vector<double> noise;
            for (Index i = 0; i < rows * experts; ++i) noise.push_back(static_cast<double>(i % 7) / 4 - 0.75);
            writer.add("noise", {rows, experts}, noise);
          }),
      noisy_block);
  for (const Path& path : {golden("042_"), noisy_block}) {
    CAPTURE(path.filename().string());
    const Bytes as_it_is = written(folder, path);
    for (const auto& [key, value] : Metadata{{"kind", "Conv1D_MEO"},
                                             {"top_k", "1"},
                                             {"training", "False"},
                                             {"noise_epsilon", "0.5"},
                                             {"loss_coef", "0.02"}}) {
      CAPTURE(key);
      CHECK(written(folder, changed(folder, path, {{key, value}})) != as_it_is);
    }
    for (const std::string key : {"noise_epsilon", "loss_coef"}) {  // the defaults are the authors'
      CHECK(written(folder, changed(folder, path, {{key, ""}})) == as_it_is);
    }
    const Bytes doubled = written(folder, changed(folder, path, {{"loss_coef", "0.02"}}));
    CHECK(SafetensorsReader(doubled, "written").read<double>("loss")[0] ==
          2 * SafetensorsReader(as_it_is, "written").read<double>("loss")[0]);
  }
  CHECK(written(folder, changed(folder, noisy_block, {{"activation", "relu"}})) !=
        written(folder, noisy_block));

  // One gate, be the others in the file or not.
  const Bytes shared = written(folder, changed(folder, noisy_block, {{"shared_gate", "True"}}));
  CHECK(shared != written(folder, noisy_block));
  const auto without_gates = [](const std::string& name) {
    const bool is_gate = name.ends_with(".w_gate") || name.ends_with(".w_noise");
    return is_gate && !name.starts_with("param.up.") ? "" : name;
  };
  CHECK(written(folder, changed(folder, noisy_block, {{"shared_gate", "True"}}, without_gates)) == shared);
}

// A file as a folder with config.json and two files of tensors; `layers` copies of its block.
void write_folder(const Path& folder, const Path& path, int layers,
                  const std::set<std::string>& without = {}) {
  std::filesystem::create_directories(folder);
  const SafetensorsReader file(path);
  std::string config = "{\"model_type\": \"" + file.metadata("family") + "\"", map;
  for (const auto& [key, value] : file.metadata()) {
    const bool is_text = value.find_first_not_of("0123456789.") != std::string::npos;
    config += ", \"" + key + "\": " + (is_text ? "\"" + value + "\"" : value);
  }
  SafetensorsWriter writers[2];
  std::size_t place = 0;
  for (const std::string& name : file.names()) {
    if (without.contains(name)) continue;
    const auto number = name.find("layers.0.");
    for (int layer = 0; layer < (number == name.npos ? 1 : layers); ++layer) {
      std::string copy = name;
      if (number != name.npos) copy.replace(number + 7, 1, std::to_string(layer));
      writers[place % 2].add(copy, file.info(name).shape, file.read<float>(name), file.info(name).dtype);
      map += (map.empty() ? "\"" : ", \"") + copy + "\": \"" + std::to_string(place++ % 2) + ".safetensors\"";
    }
  }
  writers[0].write(folder / "0.safetensors");
  writers[1].write(folder / "1.safetensors");
  meo::test::save(folder / "config.json", meo::test::to_bytes(config + "}"));
  meo::test::save(folder / "model.safetensors.index.json",
                  meo::test::to_bytes("{\"weight_map\": {" + map + "}}"));
}

TEST_CASE("run_checkpoint runs blocks of public families", "[run_checkpoint][golden]") {
  const Folder folder;
  const auto paths = meo::test::golden_files("", "goldens_families");
  CHECK(paths.size() == 11);
  for (const Path& path : paths) {
    CAPTURE(path.filename().string());
    const SafetensorsReader expected(path);
    const Bytes bytes = written(folder, path);
    const SafetensorsReader result(bytes, "written");
    CHECK(result.names() == std::vector<std::string>{"loss", "y"});
    CHECK(result.info("y").shape == expected.info("y").shape);
    CHECK(meo::test::disagreement_in_max_norm(row(result, "y"), row(expected, "y"), 2e-6L) == "");
    // In double, the same within the roundings of float.
    const Path doubled = changed(
        folder, path, {},
        [](const std::string& name) { return name == "x" || name == "indices" ? "" : name; },
        [&](SafetensorsWriter& writer) {
          writer.add("x", expected.info("x").shape, expected.read<double>("x"));
        });
    const Bytes double_bytes = written(folder, doubled);
    const SafetensorsReader of_double(double_bytes, "written");
    CHECK(of_double.info("loss").dtype == DType::F64);
    CHECK(meo::test::disagreement_in_max_norm(row(of_double, "y"), row(expected, "y"), 2e-6L) == "");
  }
}

TEST_CASE("run_checkpoint runs a layer of a folder", "[run_checkpoint]") {
  const Folder folder;
  const Path path = MEO_TEST_DATA_DIR "/goldens_families/gpt_oss.safetensors", model = folder / "m";
  write_folder(model, path, 3);
  const Bytes expected = written(folder, path);
  CHECK(written(folder, model, {"--layer", "2"}) == expected);
  CHECK(written(folder, model, {"--prefix", "model.layers.1"}) == expected);
  CHECK(run(folder, {model.string(), "--layer", "1"}).says("\nblock: model.layers.1.mlp. of gpt_oss\n"));
  const auto fault = [&](const std::vector<std::string>& arguments) {
    const Outcome outcome = run(folder, arguments);
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.output == "");
    return outcome.errors;
  };
  const std::string start =
      "run_checkpoint: meo: " + (model / "model.safetensors.index.json").string() + ": ";
  CHECK(fault({model.string()}) ==
        start +
            "expected one block of gpt_oss whose names begin with \"\", found 3: model.layers.0.mlp., "
            "model.layers.1.mlp., model.layers.2.mlp.\n");
  CHECK(fault({model.string(), "--layer", "3"}) ==
        start + "expected one block of gpt_oss of layer 3, found none\n");
  CHECK(fault({model.string(), "--layer", "1", "--input", "z"}) ==
        start + "tensor \"z\": is not in the file\n");

  // x from another file; without one it is drawn.
  const Path other = folder / "other", x = folder / "x.safetensors";
  write_folder(other, path, 1, {"x", "y"});
  SafetensorsWriter writer;
  const SafetensorsReader file(path);
  for (const char* const name : {"x", "y"}) writer.add(name, file.info(name).shape, file.read<float>(name));
  writer.write(x);
  CHECK(written(folder, other, {"--layer", "0", "--input", x.string()}) == expected);
  const Outcome drawn = run(folder, {other.string()});
  CHECK(drawn.exit_code == 0);
  CHECK(drawn.output.starts_with(
      "x: 16 x 32\nx is drawn\nblock: model.layers.0.mlp. of gpt_oss\ny: 16 x 32\n"));
  CHECK(SafetensorsReader(written(folder, other).empty() ? x : folder / "written.safetensors")
            .info("y")
            .shape == std::vector<Index>{16, 32});

  std::filesystem::remove(model / "config.json");
  CHECK(fault({model.string(), "--layer", "1"}) ==
        "run_checkpoint: meo: " + (model / "config.json").string() + ": cannot be opened\n");
}

TEST_CASE("run_checkpoint prints shapes, the selected experts and the time", "[run_checkpoint]") {
  const Folder folder;
  const Path path = golden("053_");
  const SafetensorsReader file(path);
  const Outcome outcome = run(folder, {path.string()});
  CHECK(outcome.exit_code == 0);
  CHECK(outcome.errors == "");
  const auto shape = [&](const std::string& name) {
    std::string text = name + ":";
    for (const Index size : file.info(name).shape)
      text += (text.back() == ':' ? " " : " x ") + std::to_string(size);
    return text + "\n";
  };
  CHECK(outcome.output.starts_with(shape("x") + shape("y") + "gate, expert (weight) of each of "));
  CHECK(outcome.says("\nloss: "));
  CHECK(outcome.says("\ntime: "));
  // Every selected expert, and no other.
  const auto gates = file.read<double>("gates");
  const Index rows = file.info("gates").shape[0], experts = file.info("gates").shape[1];
  for (Index r = 0; r < rows; ++r) {
    const auto begin = outcome.output.find("row " + std::to_string(r) + ':');
    REQUIRE(begin != std::string::npos);
    const std::string line = outcome.output.substr(begin, outcome.output.find('\n', begin) - begin);
    for (Index e = 0; e < experts; ++e) {
      const bool selected = gates[static_cast<std::size_t>(r * experts + e)] != 0;
      CHECK((line.find("  " + std::to_string(e) + " (") != std::string::npos) == selected);
    }
  }
}

TEST_CASE("run_checkpoint --help", "[run_checkpoint]") {
  const Folder folder;
  for (const char* option : {"--help", "-h"}) {
    const Outcome outcome = run(folder, {option});
    CHECK(outcome.exit_code == 0);
    CHECK(outcome.errors == "");
    CHECK(outcome.output.starts_with("usage: run_checkpoint FILE.safetensors [options]\n"));
  }
}

TEST_CASE("run_checkpoint refuses wrong options", "[run_checkpoint]") {
  const Folder folder;
  const auto check = [&](const std::vector<std::string>& arguments, const std::string& reason) {
    const Outcome outcome = run(folder, arguments);
    CHECK(outcome.exit_code == 2);
    CHECK(outcome.errors == "run_checkpoint: " + reason + "\nTry --help.\n");
    CHECK(outcome.output == "");
  };
  check({}, "expected a file");
  check({"--prefix", "p"}, "expected a file");
  check({"a", "b"}, "expected one file, got also 'b'");
  check({"a", "--colour"}, "unknown option '--colour'");
  for (const std::string layer : {"one", "-1", "1.5", ""})
    check({"a", "--layer", layer}, "--layer: expected a number, got '" + layer + "'");
  check({golden("053_").string(), "--layer", "0"}, "--layer is for models of a family");
  for (const std::string option : {"--prefix", "--layer", "--input", "--output"}) {
    check({"a", option}, option + " needs a value");
  }

  // Its parameters would be lost.
  const Path model = folder / "model.safetensors";
  std::filesystem::copy_file(golden("053_"), model);
  const Bytes before = meo::test::load_bytes(model);
  const std::string other_name = (folder / "./model.safetensors").string();
  check({model.string(), "--output", other_name},
        "--output would replace the file that it runs, '" + model.string() + "'");
  CHECK(meo::test::load_bytes(model) == before);
  for (const char* const file : {"m/0.safetensors", "m/config.json"}) {
    write_folder(folder / "m", MEO_TEST_DATA_DIR "/goldens_families/mixtral.safetensors", 1);
    const Path part = folder / file;
    const Bytes kept = meo::test::load_bytes(part);
    check({(folder / "m").string(), "--output", part.string()},
          "--output would replace the file that it runs, '" + (folder / "m").string() + "'");
    CHECK(meo::test::load_bytes(part) == kept);
    const Path link = folder / "link";
    std::filesystem::create_symlink(part, link);
    check({(folder / "m").string(), "--output", link.string()},
          "--output would replace the file that it runs, '" + (folder / "m").string() + "'");
    CHECK(meo::test::load_bytes(part) == kept);
    std::filesystem::remove(link);
  }
  check({(folder / "m").string(), "--input", model.string(), "--output", model.string()},
        "--output would replace the file of --input, '" + model.string() + "'");
  CHECK(meo::test::load_bytes(model) == before);
}

TEST_CASE("run_checkpoint refuses files that do not fit", "[run_checkpoint]") {
  const Folder folder;
  const auto fault = [&](const Path& path, const std::vector<std::string>& options = {}) {
    std::vector<std::string> arguments{path.string()};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const Outcome outcome = run(folder, arguments);
    CHECK(outcome.exit_code == 1);
    return outcome.errors;
  };
  const Path moe = golden("005_"), meo = golden("053_"), block = golden("099_"), task = golden("065_");
  const std::string copy = (folder / "changed.safetensors").string();
  const std::string start = "run_checkpoint: meo: " + copy + ": ";

  const Path missing = folder / "missing.safetensors";
  CHECK(fault(missing) ==
        "run_checkpoint: meo: " + missing.string() + ": cannot be read: No such file or directory\n");
  CHECK(fault(meo, {"--input", "z"}) ==
        "run_checkpoint: meo: " + meo.string() + ": tensor \"z\": is not in the file\n");
  CHECK(fault(meo, {"--prefix", "q."}) ==
        "run_checkpoint: meo: " + meo.string() + ": tensor \"q.weight\": is not in the file\n");

  const auto metadata_fault = [&](const Path& path, const std::string& key, const std::string& value) {
    return fault(changed(folder, path, {{key, value}}));
  };
  for (const std::string key : {"kind", "level", "num_experts", "top_k"}) {
    CHECK(metadata_fault(meo, key, "") == start + "expected the metadata to have \"" + key + "\"\n");
  }
  const auto expected = [&](const std::string& key, const std::string& what, const std::string& value) {
    return start + "metadata " + key + ": expected " + what + ", got '" + value + "'\n";
  };
  CHECK(metadata_fault(meo, "kind", "dense") == expected("kind", "MoE, MEO or Conv1D_MEO", "dense"));
  CHECK(metadata_fault(meo, "level", "word") == expected("level", "token, sequence or task", "word"));
  CHECK(metadata_fault(meo, "training", "yes") == expected("training", "True or False", "yes"));
  for (const std::string key : {"num_experts", "top_k", "reduce_factor"}) {
    CHECK(metadata_fault(meo, key, "2x") == expected(key, "a number", "2x"));
    CHECK(metadata_fault(meo, key, "0") == expected(key, "a number of at least 1", "0"));
  }
  CHECK(metadata_fault(meo, "loss_coef", "much") == expected("loss_coef", "a number", "much"));
  CHECK(metadata_fault(meo, "top_k", "5") ==
        "run_checkpoint: meo: top_k: expected 1 to num_experts = 4, got 5\n");
  CHECK(metadata_fault(block, "block", "attention") == expected("block", "ffn or none", "attention"));
  CHECK(metadata_fault(block, "gated", "1") == expected("gated", "True or False", "1"));
  CHECK(metadata_fault(block, "activation", "tanh") ==
        expected("activation", "relu, gelu, gelu_tanh, silu or identity", "tanh"));

  const auto tensor_fault = [&](const Path& path, const std::string& name, const std::vector<Index>& shape) {
    std::size_t size = 1;
    for (const Index dimension : shape) size *= static_cast<std::size_t>(dimension);
    return fault(changed(folder, path, {}, without(name), [&](SafetensorsWriter& writer) {
      writer.add(name, shape, std::vector<double>(size));
    }));
  };
  const auto at = [&](const std::string& name) { return start + "tensor \"" + name + "\": "; };
  CHECK(tensor_fault(meo, "x", {4}) == at("x") + "expected a shape of two or three dimensions, got 1\n");
  CHECK(tensor_fault(meo, "param.weight", {3, 4}) ==
        at("param.weight") + "expected a shape of 3 dimensions, got 2\n");
  CHECK(tensor_fault(moe, "param.experts.0.dense.weight", {3}) ==
        at("param.experts.0.dense.weight") + "expected a shape of 2 dimensions, got 1\n");
  CHECK(tensor_fault(golden("054_"), "noise", {3}) == at("noise") + "expected a shape of two dimensions\n");
  CHECK(tensor_fault(meo, "param.experts.0.dense.weight", {1, 1}) ==
        at("param.experts.0.dense.weight") + "is no parameter of what is loaded\n");
  CHECK(fault(changed(folder, task, {}, without("task_embeddings"))) ==
        at("task_embeddings") + "is not in the file\n");
}

TEST_CASE("run_checkpoint looks whether it can write before it runs", "[run_checkpoint]") {
  const Folder folder;
  const std::string path = golden("053_").string();
  const auto fault = [&](const Path& out) {
    const Outcome outcome = run(folder, {path, "--output", out.string()});
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.output == "");  // which it prints after the run
    const std::string start = "run_checkpoint: meo: " + out.string() + ": ";
    return outcome.errors.starts_with(start) ? outcome.errors.substr(start.size()) : outcome.errors;
  };
  CHECK(fault(folder / "no/out") == "no file can be created beside it: No such file or directory\n");
  std::filesystem::create_directory(folder / "directory");
  CHECK(fault(folder / "directory") == "expected a regular file\n");

  // A run that fails for another reason leaves what is there, or nothing.
  const Path out = folder / "out";
  CHECK(run(folder, {path, "--output", out.string(), "--input", "z"}).exit_code == 1);
  CHECK_FALSE(std::filesystem::exists(out));
  meo::test::save(out, meo::test::to_bytes("old"));
  CHECK(run(folder, {path, "--output", out.string(), "--input", "z"}).exit_code == 1);
  CHECK(meo::test::load_text(out) == "old");
  CHECK(meo::test::names_in(folder) == std::vector<std::string>{"directory", "out", "stderr", "stdout"});
}

#if defined(__linux__)
TEST_CASE("run_checkpoint says when what it prints is lost", "[run_checkpoint]") {
  const Folder folder;
  const Path errors = folder / "errors";
  const std::string command = meo::test::command_of(MEO_RUN_CHECKPOINT, {golden("053_").string()}) +
                              " >/dev/full 2>'" + errors.string() + "'";
  CHECK(std::system(command.c_str()) != 0);
  CHECK(meo::test::load_text(errors) == "run_checkpoint: cannot write to standard output\n");
}
#endif

TEST_CASE("run_checkpoint refuses numbers that are not finite and says where the first is",
          "[run_checkpoint]") {
  const Folder folder;
  const Path out = folder / "out.safetensors";
  const auto fault = [&](const Path& path, const std::string& name,
                         const std::function<double(std::size_t, double)>& change) {
    const SafetensorsReader file(path);
    auto values = file.read<double>(name);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = change(i, values[i]);
    const Path copy = changed(folder, path, {}, without(name), [&](SafetensorsWriter& writer) {
      writer.add(name, file.info(name).shape, values, file.info(name).dtype);
    });
    const Outcome outcome = run(folder, {copy.string(), "--output", out.string()});
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.output == "");
    CHECK_FALSE(std::filesystem::exists(out));
    const std::string start = "run_checkpoint: meo: " + copy.string() + ": ";
    return outcome.errors.starts_with(start) ? outcome.errors.substr(start.size()) : outcome.errors;
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  constexpr double largest = std::numeric_limits<double>::max();
  // Layers of MoE and MEO and a block, in double and in float.
  for (const auto& [number, weight] : {std::pair{"005_", "param.experts.1.dense.weight"},
                                       {"006_", "param.experts.1.dense.weight"},
                                       {"053_", "param.weight"},
                                       {"054_", "param.weight"},
                                       {"099_", "param.down.weight"}}) {
    CAPTURE(number);
    const Path path = golden(number);
    CHECK(fault(path, weight, [&](std::size_t i, double value) { return i >= 2 ? nan : value; }) ==
          "tensor \"" + std::string(weight) + "\": element 2: expected a finite number, got nan\n");
    CHECK(fault(path, weight, [&](std::size_t i, double value) { return i == 0 ? nan : value; }) ==
          "tensor \"" + std::string(weight) + "\": element 0: expected a finite number, got nan\n");
  }

  // Finite parameters and a y that is not: token 9's first feature alone is so large that output 2 is
  // infinite, or it is NaN and so is all of the token's y. (At task level no gate sees x.)
  const auto fault_of_y = [&](const Path& path, double feature) {
    const SafetensorsReader file(path);
    const auto& shape = file.info("param.weight").shape;
    const auto out_features = static_cast<std::size_t>(shape[1]),
               features = static_cast<std::size_t>(shape[2]);
    auto weight = file.read<double>("param.weight"), x = file.read<double>("x");
    for (std::size_t i = 0; i < weight.size(); ++i) {
      if (i / features % out_features == 2) weight[i] = i % features == 0 ? largest / 2 : 0;
    }
    for (std::size_t i = 0; i < x.size(); i += features) x[i] = i == 9 * features ? feature : 0.5;
    const Path copy = changed(
        folder, path, {},
        [](const std::string& name) { return name == "x" || name == "param.weight" ? "" : name; },
        [&](SafetensorsWriter& writer) {
          writer.add("param.weight", shape, weight);
          writer.add("x", file.info("x").shape, x);
        });
    const Outcome outcome = run(folder, {copy.string(), "--output", out.string()});
    if (outcome.exit_code == 0) return std::string("no error");
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.output == "");
    CHECK_FALSE(std::filesystem::exists(out));
    const std::string start = "run_checkpoint: meo: " + copy.string() + ": y: expected finite numbers, got ";
    return outcome.errors.starts_with(start) ? outcome.errors.substr(start.size()) : outcome.errors;
  };
  for (const char* number : {"051_", "063_"}) {  // of one selected expert, whose infinities meet no other's
    CAPTURE(number);
    CHECK(fault_of_y(golden(number), 1) == "no error");
    std::filesystem::remove(out);
    CHECK(fault_of_y(golden(number), 5) == "inf in row 9, column 2\n");
    CHECK(fault_of_y(golden(number), -5) == "-inf in row 9, column 2\n");
  }
  CHECK(fault(golden("099_"), "param.down.weight", [&](std::size_t i, double value) {
          return i / 28 % 12 == 2 ? largest : value;
        }).starts_with("y: expected finite numbers, got "));
  CHECK(fault_of_y(golden("063_"), nan) == "nan in row 9, column 0\n");
}

TEST_CASE("run_checkpoint takes no memory for what is not in the file", "[run_checkpoint]") {
  const Folder folder;
  const Path path = folder / "f.safetensors";
  const auto fault = [&] {
    const Outcome outcome = run(folder, {path.string()});
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.output == "");
    const std::string start = "run_checkpoint: meo: " + path.string() + ": ";
    return outcome.errors.starts_with(start) ? outcome.errors.substr(start.size()) : outcome.errors;
  };
  const auto fault_of = [&](const std::string& metadata, const std::string& tensors, std::size_t size) {
    meo::test::save(
        path, file_of(R"({"__metadata__":{"top_k":"1",)" + metadata + "}," + tensors + "}", Bytes(size)));
    return fault();
  };
  /// The tensors are zeros of one byte each.
  using Shapes = std::vector<std::pair<std::string, std::vector<Index>>>;
  const auto fault_with = [&](const std::string& metadata, const Shapes& shapes) {
    std::string tensors;
    std::size_t end = 0;
    for (const auto& [name, shape] : shapes) {
      std::size_t size = 1;
      std::string lengths;
      for (const Index length : shape) {
        size *= static_cast<std::size_t>(length);
        lengths += (lengths.empty() ? "" : ",") + std::to_string(length);
      }
      tensors += (tensors.empty() ? "\"" : ",\"") + name + R"(":{"dtype":"U8","shape":[)" + lengths +
                 R"(],"data_offsets":[)" + std::to_string(end) + "," + std::to_string(end + size) + "]}";
      end += size;
    }
    return fault_of(metadata, tensors, end);
  };
  const std::string meo = R"("kind":"MEO","level":"sequence","num_experts":"1")";

  // Inputs.
  CHECK(fault_of(meo, R"("x":{"dtype":"F4","shape":[1,2147483648,2147483648],"data_offsets":[0,0]})", 0) ==
        "tensor \"x\": elements of type \"F4\" cannot be read\n");
  CHECK(fault_of(meo, R"("x":{"dtype":"F32","shape":[1099511627776,0,5],"data_offsets":[0,0]})", 0) ==
        "tensor \"x\": expected elements, got none\n");

  // Experts that metadata speak of, and shapes of an unknown type.
  for (const std::string experts : {"1000000000000", "9000000000000000000"}) {
    const std::string error = "tensor \"param.w_gate\": expected shape [1, " + experts + "], got [1, 1]\n";
    const std::string metadata = R"("level":"sequence","num_experts":")" + experts + '"';
    CHECK(fault_with(R"("kind":"MEO",)" + metadata,
                     {{"x", {1, 1, 1}}, {"param.weight", {1, 1, 1}}, {"param.w_gate", {1, 1}}}) == error);
    CHECK(fault_with(R"("kind":"MoE",)" + metadata, {{"x", {1, 1, 1}},
                                                     {"param.experts.0.dense.weight", {1, 1}},
                                                     {"param.w_gate", {1, 1}}}) == error);
  }
  const Shapes two{{"x", {1, 1, 1}},
                   {"param.experts.0.dense.weight", {100000, 1}},
                   {"param.w_gate", {1, 2}},
                   {"param.w_noise", {1, 2}}};
  CHECK(fault_with(R"("kind":"MoE","level":"sequence","num_experts":"2")", two) ==
        "tensor \"param.experts.1.dense.weight\": is not in the file\n");
  CHECK(fault_of(meo,
                 R"("x":{"dtype":"U8","shape":[1,1,1],"data_offsets":[0,1]},)"
                 R"("param.w_gate":{"dtype":"U8","shape":[1,1],"data_offsets":[1,2]},)"
                 R"("param.w_noise":{"dtype":"U8","shape":[1,1],"data_offsets":[2,3]},)"
                 R"("param.weight":{"dtype":"F4","shape":[1,1099511627776,1],"data_offsets":[3,3]})",
                 3) == "tensor \"param.weight\": elements of type \"F4\" cannot be read\n");

  // Projections whose size follows from reduce_factor; the gate's.
  const auto gated = [](Shapes shapes, Index gate_features) {
    shapes.push_back({"param.w_gate", {gate_features, 1}});
    shapes.push_back({"param.w_noise", {gate_features, 1}});
    return shapes;
  };
  const Shapes wide{{"x", {1, 1, 100000}}, {"param.weight", {1, 1, 100000}}};
  CHECK(fault_with(R"("kind":"MEO","level":"token","num_experts":"1","reduce_factor":"1")",
                   gated(wide, 100000)) ==
        "tensor \"param.tokenatt.down_proj.weight\": is not in the file\n");
  const Shapes task{{"x", {1, 1, 1}}, {"param.weight", {1, 1, 1}}, {"task_embeddings", {1, 1, 100000}}};
  CHECK(fault_with(R"("kind":"MEO","level":"task","num_experts":"1","reduce_factor":"1")",
                   gated(task, 100000)) == "tensor \"param.task_proj.weight\": is not in the file\n");
  CHECK(fault_with(meo, wide) == "tensor \"param.w_gate\": is not in the file\n");

  // A block's narrow up and wide down.
  const Shapes block{{"x", {1, 1, 1}},
                     {"param.up.w_gate", {1, 1}},
                     {"param.up.w_noise", {1, 1}},
                     {"param.up.weight", {1, 2, 1}},
                     {"param.down.w_gate", {2, 1}},
                     {"param.down.w_noise", {2, 1}}};
  CHECK(fault_with(meo + R"(,"block":"ffn")", block) == "tensor \"param.down.weight\": is not in the file\n");
}

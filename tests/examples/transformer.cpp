// The example transformer: what its program run_model writes for the golden files of whole models, and what
// it refuses.

#include <filesystem>
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
using meo::test::Folder;
using meo::test::Outcome;
using Path = std::filesystem::path;

std::vector<Path> golden_models(const std::string& part = "") {
  return meo::test::golden_files(part, "goldens_models");
}

Outcome run(const Folder& folder, const std::vector<std::string>& arguments) {
  return meo::test::run_program(MEO_TRANSFORMER, folder, arguments);
}

// A tensor as one row.
meo::Matrix<double> row(const SafetensorsReader& file, const std::string& name) {
  const auto values = file.read<double>(name);
  return Eigen::Map<const meo::Matrix<double>>(values.data(), 1, static_cast<Index>(values.size()));
}

// See tests/goldens_models/README.md: float where the authors computed in it, or rounded to it.
double tolerance(const SafetensorsReader& file, const std::string& name) {
  if (file.info("logits").dtype == DType::F32) return 2e-5;
  return name == "logits" ? 1e-13 : 2e-6;
}

// The tensor whose largest value the tolerance is relative to: of a key's bias the gradient is zero but for
// rounding, because a softmax does not see what all its inputs have in common.
std::string measure(std::string name) {
  const std::string key = ".key.bias";
  if (name.ends_with(key)) name.replace(name.size() - key.size(), key.size(), ".query.bias");
  return name;
}

}  // namespace

TEST_CASE("run_model writes the golden models' results", "[transformer][golden]") {
  const Folder folder;
  const Path out = folder / "out.safetensors";
  const std::vector<Path> paths = golden_models();
  CHECK(paths.size() == 16);
  for (const Path& path : paths) {
    CAPTURE(path.filename().string());
    const Outcome outcome = run(folder, {path.string(), "--output", out.string(), "--gradients"});
    CHECK(outcome.errors == "");
    REQUIRE(outcome.exit_code == 0);
    const SafetensorsReader expected(path), result(out);
    Index gradients = 0;
    for (const std::string& name : expected.names()) {
      const bool is_gradient = name.starts_with("grad.");
      if (!is_gradient && name != "logits" && name != "loss" && name != "moe_loss") continue;
      CAPTURE(name);
      gradients += is_gradient;
      REQUIRE(result.contains(name));
      CHECK(result.info(name).dtype == expected.info(name).dtype);
      CHECK(result.info(name).shape == expected.info(name).shape);
      const meo::Matrix<double> values = row(expected, name);
      const double bound = tolerance(expected, name) * row(expected, measure(name)).cwiseAbs().maxCoeff();
      CHECK(meo::test::disagreement(row(result, name), values,
                                    meo::Matrix<double>::Constant(1, values.cols(), bound)) == "");
    }
    CHECK(gradients > 20);
    // What the model has and the authors' have no gradient of is not used.
    for (const std::string& name : result.names()) CHECK((expected.contains(name) || name == "moe_loss"));
  }
}

TEST_CASE("run_model prints the losses, and writes nothing unless asked", "[transformer]") {
  const Folder folder;
  const Path path = golden_models("11_").at(0);
  const Outcome outcome = run(folder, {path.string()});
  CHECK(outcome.errors == "");
  CHECK(outcome.exit_code == 0);
  CHECK(outcome.output == "tokens: 33\nlogits: 3 x 3\nmoe_loss: 0.083157\nloss: 1.09564\n");
  CHECK(meo::test::names_in(folder) == std::vector<std::string>{"stderr", "stdout"});
}

TEST_CASE("run_model names what does not fit", "[transformer]") {
  const Folder folder;
  const auto fault = [&](const std::string& number, const std::string& key, const std::string& value) {
    const SafetensorsReader file(golden_models(number).at(0));
    SafetensorsWriter writer;
    for (const auto& [name, text] : file.metadata()) {
      if (name != key || !value.empty()) writer.set_metadata(name, name == key ? value : text);
    }
    for (const std::string& name : file.names()) {
      const auto& [shape, dtype] = std::pair(file.info(name).shape, file.info(name).dtype);
      if (name == key) continue;
      if (dtype == DType::I64) writer.add(name, shape, file.read<Index>(name), dtype);
      else writer.add(name, shape, file.read<double>(name), dtype);
    }
    const Path copy = folder / "f.safetensors";
    writer.write(copy);
    const Outcome outcome = run(folder, {copy.string(), "--gradients"});
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.output == "");
    std::string errors = outcome.errors;
    for (const std::string& start : {std::string("run_model: meo: "), copy.string() + ": "}) {
      if (errors.starts_with(start)) errors.erase(0, start.size());
    }
    return errors;
  };
  CHECK(fault("01_", "hidden_size", "") == "hidden_size: expected a value, got none\n");
  CHECK(fault("01_", "hidden_size", "65") ==
        "hidden_size: expected a multiple of num_attention_heads = 4, got 65\n");
  CHECK(fault("01_", "hidden_size", "wide") ==
        "hidden_size: expected a whole number of at least 1, got \"wide\"\n");
  CHECK(fault("01_", "num_hidden_layers", "1") ==
        "tensor \"param.bert.encoder.layer.1.attention.output.LayerNorm.bias\": is no parameter of the "
        "model\n");
  CHECK(fault("01_", "head", "lm") ==
        "metadata head: expected classification, regression or mlm of a bert, got 'lm'\n");
  CHECK(fault("22_", "head", "mlm") == "metadata head: expected lm of a gpt2, got 'mlm'\n");
  CHECK(fault("22_", "model", "t5") == "model_type: expected bert or gpt2, got \"t5\"\n");
  CHECK(fault("22_", "labels", "") == "tensor \"labels\": is not in the file, and --gradients needs them\n");
  CHECK(fault("11_", "noise.3", "") == "noise: expected a matrix for gate 3, got 3\n");
  CHECK(fault("01_", "param.classifier.weight", "") ==
        "tensor \"param.classifier.weight\": is not in the file\n");
  CHECK(fault("01_", "intermediate_size", "71") ==
        "tensor \"param.bert.encoder.layer.0.intermediate.dense.weight\": expected shape [71, 64], got [72, "
        "64]\n");
}

TEST_CASE("run_model explains its options", "[transformer]") {
  const Folder folder;
  CHECK(run(folder, {"--help"}).says("usage: run_model FILE.safetensors [options]\n"));
  const auto fault = [&](const std::vector<std::string>& arguments) {
    const Outcome outcome = run(folder, arguments);
    CHECK(outcome.exit_code == 2);
    return outcome.errors;
  };
  CHECK(fault({}) == "run_model: expected a file; --help says more\n");
  CHECK(fault({"a", "b"}) == "run_model: expected one file, got also 'b'; --help says more\n");
  CHECK(fault({"a", "--output"}) == "run_model: --output needs a value; --help says more\n");
  CHECK(fault({"a", "--gradient"}) == "run_model: unknown option '--gradient'; --help says more\n");
}

// The example transformer: what its program run_model writes for the golden files of whole models, and what
// it refuses.

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <meo/io/safetensors.hpp>
#include <meo/types.hpp>

#include "../../examples/transformer/model/model_folder.hpp"
#include "examples/transformer_models.hpp"
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
    for (const std::string& start :
         {std::string("run_model: "), std::string("meo: "), copy.string() + ": "}) {
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

TEST_CASE("run_model runs the model of a folder, upcycles and saves it", "[transformer]") {
  using namespace transformer;
  const Folder folder;
  const auto output_of = [&](const std::vector<std::string>& arguments) {
    const Outcome outcome = run(folder, arguments);
    CHECK(outcome.errors == "");
    CHECK(outcome.exit_code == 0);
    return outcome.output;
  };
  const std::string path = (folder / "m").string(), mixed = (folder / "mixed").string(),
                    out = (folder / "out.safetensors").string();

  Model<float> classifier(transformer::test::small_config(Task::classification));
  transformer::test::randomize(classifier, 1);
  save_model(classifier, path);
  const std::string printed = output_of({path, "--ids", "3 4 5", "--ids=7", "--output", out});
  Batch batch;
  batch.add(std::vector<Index>{3, 4, 5});
  batch.add(std::vector<Index>{7});
  Model<float>::Context context;
  CHECK(meo::test::bit_difference(SafetensorsReader(out).read_matrix<float>("logits", 2, 3),
                                  meo::Matrix<float>(classifier.forward(batch, nullptr, context))) == "");
  CHECK(printed.starts_with("text 0, 3 tokens, class (probability):  "));
  CHECK(printed.find("\ntext 1, 1 tokens, class (probability):  ") != std::string::npos);

  // Four experts that are copies of the dense projections, by this run and by the model that it saves.
  const std::string upcycled = output_of({path, "--ffn=meo", "--level=sequence", "--experts=4", "--top-k=3",
                                          "--ids=3 4 5", "--ids=7", "--save", mixed});
  CHECK(output_of({mixed, "--ids", "3 4 5", "--ids=7"}) == upcycled);
  CHECK(output_of({path, "--ids", "3 4 5", "--ids=7"}) == printed);
  const Config config = load_config(mixed);
  CHECK(config.mixture.kind == Mixture::meo);
  CHECK(config.mixture.experts == 4);
  CHECK(config.mixture.top_k == 3);
  const SafetensorsReader saved(folder / "mixed/model.safetensors");
  CHECK(saved.info("bert.encoder.layer.1.output.dense.weight").shape == std::vector<Index>{4, 12, 20});
  CHECK(saved.info("bert.encoder.layer.1.output.dense.bias").shape == std::vector<Index>{4, 12});

  // In 8 bits, by this run and by the rounded model that it saves.
  const std::string rounded = (folder / "rounded").string();
  const std::string of_rounded =
      output_of({mixed, "--storage=int8", "--ids", "3 4 5", "--ids=7", "--save", rounded});
  CHECK(of_rounded != upcycled);
  CHECK(output_of({rounded, "--ids", "3 4 5", "--ids=7"}) == of_rounded);

  Model<float> words(transformer::test::small_config(Task::masked_words));
  transformer::test::randomize(words, 2);
  save_model(words, path);
  const std::string of_words = output_of({path, "--mask", "2", "--ids", "3 2 5 2"});
  CHECK(of_words.starts_with("text 0, 4 tokens\n  token 1, word (probability):  "));
  CHECK(of_words.find("\n  token 3, word (probability):  ") != std::string::npos);

  Model<float> gpt2(transformer::test::small_config(Task::next_word));
  transformer::test::randomize(gpt2, 3);
  save_model(gpt2, path);
  const std::string of_next = output_of({path, "--ids", "3 2 5"});
  CHECK(of_next.starts_with("text 0, 3 tokens, next word (probability):  "));
  const std::string segments = (folder / "segments").string();
  output_of({path, "--ffn=meo", "--level=segment", "--segment-tokens=2", "--save", segments});
  CHECK(load_config(segments).mixture.level == meo::Level::segment);
  CHECK(load_config(segments).mixture.segment_tokens == 2);

  const auto fault = [&](const std::vector<std::string>& arguments) {
    const Outcome outcome = run(folder, arguments);
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.output == "");
    return outcome.errors;
  };
  CHECK(fault({path, "--ids", ""}) == "run_model: text 0: expected at least one token, got none\n");
  CHECK(fault({path, "--ids", "1 11"}) == "run_model: word 1: expected 0 to 10, got 11\n");
  std::string long_text;
  for (int i = 0; i < 81; ++i) long_text += "1 ";
  CHECK(fault({path, "--ids", long_text}) ==
        "run_model: text 0: expected at most 80 tokens, as the model has positions, got 81\n");
  CHECK(fault({mixed, "--ffn", "moe"}) ==
        "run_model: meo: " + (folder / "mixed/config.json").string() +
            ": use_moe: expected none, as a mixture is asked for, got one\n");
  CHECK(fault({path, "--storage", "half", "--ids", "1"}) ==
        "run_model: meo: " + (folder / "m/config.json").string() +
            ": use_moe: expected a mixture, whose experts are to be stored in fewer bits, got none\n");
  CHECK(fault({path, "--ffn", "moe", "--level", "task"}) ==
        "run_model: level: expected token, sequence or segment for GPT-2, got task\n");
  CHECK(fault({(folder / "nothing").string()}) ==
        "run_model: " + (folder / "nothing").string() + ": no such file or folder\n");
}

#if defined(TRANSFORMER_TEXT)

namespace {

/// run_model's words, which are ids unless it knows a vocabulary.
std::string spelled(std::string output, const std::vector<std::string>& vocabulary) {
  for (std::size_t id = 0; id < vocabulary.size(); ++id) {
    const std::string word = "  " + std::to_string(id) + " (";
    for (std::size_t at; (at = output.find(word)) != std::string::npos;)
      output.replace(at, word.size(), "  " + vocabulary[id] + " (");
  }
  return output;
}

void write(const Path& path, const std::string& text) { meo::test::save(path, meo::test::to_bytes(text)); }

}  // namespace

TEST_CASE("run_model reads texts by a folder's vocabulary", "[transformer]") {
  using namespace transformer;
  const Folder folder;
  const std::string path = (folder / "m").string(), out = (folder / "out.safetensors").string();
  const auto output_of = [&](const std::vector<std::string>& arguments) {
    const Outcome outcome = run(folder, arguments);
    CHECK(outcome.errors == "");
    CHECK(outcome.exit_code == 0);
    return outcome.output;
  };
  const auto fault = [&](const std::vector<std::string>& arguments) {
    const Outcome outcome = run(folder, arguments);
    CHECK(outcome.exit_code == 1);
    CHECK(outcome.output == "");
    return outcome.errors;
  };

  Model<float> bert(transformer::test::small_config(Task::masked_words));
  transformer::test::randomize(bert, 4);
  save_model(bert, path);
  CHECK(fault({path, "--text", "the cat"}) ==
        "run_model: meo: " + path +
            ": expected vocab.txt, or vocab.json and merges.txt, to read texts, got none of them\n");
  const std::vector<std::string> pieces{"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the",
                                        "cat",   "##s",   "sat",   ".",     "Cat"};
  std::string lines;
  for (const std::string& piece : pieces) lines += piece + "\n";
  write(folder / "m/vocab.txt", lines);
  const std::string of_ids = output_of({path, "--ids", "2 5 6 7 4 9 3", "--mask", "4"});
  CHECK(of_ids.find("  token 4, word (probability):  ") != std::string::npos);
  CHECK(output_of({path, "--text", "The Cats [MASK]."}) == spelled(of_ids, pieces));
  CHECK(output_of({path, "--text", "The Cats [MASK].", "--mask=7"}) ==
        spelled(output_of({path, "--ids", "2 5 6 7 4 9 3", "--mask", "7"}), pieces));

  output_of({path, "--text", "the cat", "--pair", "sat", "--text=dogs", "--output", out});
  Batch batch;
  batch.add(std::vector<Index>{2, 5, 6, 3, 8, 3}, std::vector<Index>{0, 0, 0, 0, 1, 1});
  batch.add(std::vector<Index>{2, 1, 3}, std::vector<Index>{0, 0, 0});
  Model<float>::Context context;
  const auto logits = [&] { return SafetensorsReader(out).read_matrix<float>("logits", batch.tokens(), 11); };
  CHECK(meo::test::bit_difference(logits(), meo::Matrix<float>(bert.forward(batch, nullptr, context))) == "");

  // do_lower_case, and what it is without it.
  batch = {};
  for (const auto& [config, id] :
       {std::pair(R"({"do_lower_case": false})", Index{10}),
        std::pair(R"({"do_lower_case": true})", Index{6}), std::pair("{}", Index{6})}) {
    CAPTURE(config);
    write(folder / "m/tokenizer_config.json", config);
    output_of({path, "--text", "Cat", "--output", out});
    batch = {};
    batch.add(std::vector<Index>{2, id, 3}, std::vector<Index>{0, 0, 0});
    CHECK(meo::test::bit_difference(logits(), meo::Matrix<float>(bert.forward(batch, nullptr, context))) ==
          "");
  }
  const std::string in_config = "run_model: meo: " + (folder / "m/tokenizer_config.json").string() + ": ";
  write(folder / "m/tokenizer_config.json", R"({"do_lower_case": 1})");
  CHECK(fault({path, "--text", "cat"}) == in_config + "do_lower_case: expected true or false, got 1\n");
  write(folder / "m/tokenizer_config.json", "[]");
  CHECK(fault({path, "--text", "cat"}) == in_config + "expected an object, got array\n");
  std::filesystem::remove(folder / "m/tokenizer_config.json");

  CHECK(fault({path, "--text", " "}) == "run_model: text: expected at least one token, got ' '\n");
  CHECK(fault({path, "--text", "cat", "--pair", ""}) ==
        "run_model: pair: expected at least one token, got ''\n");
  std::string long_text;
  for (int i = 0; i < 79; ++i) long_text += "cat ";
  CHECK(fault({path, "--text", long_text}) ==
        "run_model: text 0: expected at most 80 tokens, as the model has positions, got 81\n");
  write(folder / "m/vocab.txt", "[CLS]\n[SEP]\n");
  CHECK(fault({path, "--text", "cat"}) == "run_model: meo: " + (folder / "m/vocab.txt").string() +
                                              ": expected the vocabulary to have '[UNK]'\n");
  std::filesystem::remove(folder / "m/vocab.txt");

  Model<float> gpt2(transformer::test::small_config(Task::next_word));
  transformer::test::randomize(gpt2, 5);
  save_model(gpt2, path);
  const std::vector<std::string> tokens{"<|endoftext|>", "a", "b", "ab", "\u0120", "\u0120ab"};  // as a space
  std::string json = "{";
  for (std::size_t id = 0; id < tokens.size(); ++id)
    json += (id > 0 ? ", \"" : "\"") + tokens[id] + "\": " + std::to_string(id);
  write(folder / "m/vocab.json", json + "}");
  const Outcome without_merges = run(folder, {path, "--text", "ab"});
  CHECK(without_merges.exit_code == 1);
  CHECK(without_merges.errors.find((folder / "m/merges.txt").string() + ": cannot be read") !=
        std::string::npos);
  write(folder / "m/merges.txt", "#version: 0.2\na b\n\u0120 ab\n");
  CHECK(output_of({path, "--text", "ab ab", "--pair", "a"}) ==
        spelled(output_of({path, "--ids", "3 5 1"}), tokens));
}

#endif

TEST_CASE("run_model explains its options", "[transformer]") {
  const Folder folder;
  CHECK(run(folder, {"--help"}).says("usage: run_model DIR [options]\n"));
  const auto fault = [&](const std::vector<std::string>& arguments) {
    const Outcome outcome = run(folder, arguments);
    CHECK(outcome.exit_code == 2);
    return outcome.errors;
  };
  CHECK(fault({}) == "run_model: expected a file or a folder; --help says more\n");
  CHECK(fault({"a", "b"}) == "run_model: expected one file or folder, got also 'b'; --help says more\n");
  CHECK(fault({"a", "--output"}) == "run_model: --output needs a value; --help says more\n");
  CHECK(fault({"a", "--ffn", "dense"}) ==
        "run_model: --ffn: expected moe or meo, got 'dense'; --help says more\n");
  CHECK(fault({"a", "--storage=int4"}) ==
        "run_model: --storage: expected bf16, half or int8, got 'int4'; --help says more\n");
  CHECK(fault({"a", "--level=word"}) ==
        "run_model: --level: expected token, sequence, task or segment, got 'word'; --help says more\n");
  CHECK(fault({"a", "--ffn=meo", "--level=segment"}) ==
        "run_model: --level=segment and --segment-tokens need each other; --help says more\n");
  CHECK(fault({"a", "--ffn=meo", "--segment-tokens=4"}) ==
        "run_model: --level=segment and --segment-tokens need each other; --help says more\n");
  CHECK(fault({"a", "--pair", "b"}) ==
        "run_model: --pair needs a --text of its own before it; --help says more\n");
  CHECK(fault({"a", "--ids", "1", "--text", "b"}) ==
        "run_model: expected --text or --ids, got both; --help says more\n");
#if !defined(TRANSFORMER_TEXT)
  CHECK(fault({"a", "--text", "b"}) ==
        "run_model: --text needs utf8proc (Debian: libutf8proc-dev), without which this program was built; "
        "--help says more\n");
#endif
  CHECK(fault({"a", "--top-k=2"}) == "run_model: --top-k needs --ffn; --help says more\n");
  CHECK(fault({"a", "--experts=0"}) ==
        "run_model: --experts: expected a number of at least 1, got '0'; --help says more\n");
  CHECK(fault({"a", "--ids", "1 two"}) ==
        "run_model: --ids: expected a number of at least 0, got 'two'; --help says more\n");
  CHECK(fault({golden_models("01_").at(0).string(), "--ids", "1"}) ==
        "run_model: --ids is for a folder, not a file; --help says more\n");
  CHECK(fault({std::filesystem::path(folder).string(), "--gradients"}) ==
        "run_model: --gradients is for a file, not a folder; --help says more\n");
  CHECK(fault({"a", "--gradient"}) == "run_model: unknown option '--gradient'; --help says more\n");
}

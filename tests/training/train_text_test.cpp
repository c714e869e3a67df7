// The training of examples/train_text: that it learns, and that it is the same every time.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../../examples/train_text/data.hpp"
#include "../../examples/train_text/trainer.hpp"
#include "io/files.hpp"
#include "support/catch.hpp"

namespace {
namespace train_text_test {

using namespace meo;
using namespace train_text;

ModelOptions small_model(Level level, bool is_moe = false) {
  ModelOptions options;
  options.is_moe = is_moe;
  options.feed_forward = {.features = 12,
                          .hidden_features = 20,
                          .num_experts = 4,
                          .top_k = 2,
                          .routing = {.level = level, .reduce_factor = 4}};
  options.window = 16;
  options.classes = 4;
  return options;
}

Trainer trained(Level level, int steps, bool is_moe = false) {
  const DomainTask task(1, 16);
  Trainer trainer(small_model(level, is_moe), {}, 7);
  for (int i = 0; i < steps; ++i) {
    std::mt19937_64 rng = trainer.rng_of_step();
    trainer.step(task.training(rng, 5), rng);
  }
  return trainer;
}

std::vector<float> parameters_of(Trainer& trainer) {
  std::vector<float> all;
  for (const auto& range : trainer.parameters())
    all.insert(all.end(), range.values.begin(), range.values.end());
  return all;
}

TEST_CASE("training overfits one batch", "[train_text]") {
  const bool is_moe = GENERATE(false, true);
  CAPTURE(is_moe);
  const DomainTask task(1, 16);
  std::mt19937_64 rng(3);
  const Batch batch = task.training(rng, 8);
  Trainer trainer(small_model(Level::token, is_moe), {.learning_rate = 1e-2}, 7);
  const float first = trainer.step(batch, rng);
  float loss = first;
  for (int i = 0; i < 5; ++i) loss = trainer.step(batch, rng);
  CHECK(loss < first);
  for (int i = 0; i < 200; ++i) loss = trainer.step(batch, rng);
  CHECK(loss < 1e-2f);
  CHECK(trainer.accuracy(batch) == 1);
}

TEST_CASE("the same training gives the same bits, resumed or not", "[train_text]") {
  const bool is_moe = GENERATE(false, true);
  CAPTURE(is_moe);
  for (const Level level : {Level::token, Level::sequence}) {
    Trainer through = trained(level, 6, is_moe), again = trained(level, 6, is_moe);
    CHECK(parameters_of(through) == parameters_of(again));

    const test::Folder folder;
    const auto path = folder / "checkpoint.safetensors";
    trained(level, 4, is_moe).save(path);
    Trainer resumed(small_model(level, is_moe), {}, 7);
    resumed.load(path);
    CHECK(resumed.steps() == 4);
    CHECK(parameters_of(resumed) != parameters_of(through));
    const DomainTask task(1, 16);
    for (int i = 0; i < 2; ++i) {
      std::mt19937_64 rng = resumed.rng_of_step();
      resumed.step(task.training(rng, 5), rng);
    }
    CHECK(parameters_of(resumed) == parameters_of(through));
  }
}

TEST_CASE("a checkpoint is in PyTorch's form and comes back bit by bit", "[train_text]") {
  const bool is_moe = GENERATE(false, true);
  CAPTURE(is_moe);
  // 20 and 12 features fill no panel, so that there is padding, which the file lacks and loading leaves zero.
  const test::Folder folder;
  const auto path = folder / "checkpoint.safetensors", again = folder / "again.safetensors";
  Trainer saved = trained(Level::token, 3, is_moe);
  saved.save(path);
  const io::SafetensorsReader reader(path);
  for (const std::string part : {"model.", "first_moments.", "second_moments."}) {
    const std::string up = part + "blocks.1.feed_forward.up.";
    if (!is_moe) CHECK(reader.info(up + "weight").shape == std::vector<Index>{4, 20, 12});
    else CHECK(reader.info(up + "experts.3.dense.weight").shape == std::vector<Index>{20, 12});
    CHECK(reader.info(up + "w_gate").shape == std::vector<Index>{12, 4});
  }

  Trainer loaded(small_model(Level::token, is_moe), {}, 8);
  loaded.load(path);
  CHECK(parameters_of(loaded) == parameters_of(saved));
  loaded.save(again);
  CHECK(test::load_bytes(again) == test::load_bytes(path));

  ModelOptions options = small_model(Level::token, is_moe);
  options.feed_forward.num_experts = 3;
  Trainer other(options, {}, 7);
  const std::vector<float> before = parameters_of(other);
  CHECK_THROWS_AS(other.load(path), io::Error);
  CHECK(parameters_of(other) == before);
  CHECK(other.steps() == 0);
}

TEST_CASE("the model's gradients are the differences of its loss", "[train_text]") {
  // In float, so the loss is moved by a step that rounding does not drown; a tanh-like loss of a small model
  // leaves a few percent of the largest derivative to curvature and rounding.
  ModelOptions options = small_model(Level::sequence);
  options.feed_forward.routing.loss_coefficient = 0;
  Model model(options), gradients(options);
  std::mt19937_64 rng(5);
  model.initialize(rng);
  const Batch batch = DomainTask(1, 16).training(rng, 3);
  const Sequences sequences = Sequences::uniform(3, 16);
  const Inputs<float> inputs{.sequences = &sequences};
  Model::Context context;
  float balance_loss = 0;
  const auto loss = [&] {
    Matrix<float> logits = model.forward(batch, inputs, context, balance_loss);
    return cross_entropy(logits, batch.labels);
  };
  Matrix<float> logits = model.forward(batch, inputs, context, balance_loss);
  cross_entropy(logits, batch.labels);
  model.backward(batch, inputs, context, logits, gradients);
  const auto values = model.parameters(), slopes = gradients.parameters();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto largest = static_cast<std::size_t>(
        std::max_element(slopes[i].values.begin(), slopes[i].values.end(),
                         [](float a, float b) { return std::abs(a) < std::abs(b); }) -
        slopes[i].values.begin());
    const float slope = slopes[i].values[largest];
    if (slope == 0) continue;
    INFO(values[i].name);
    float& value = values[i].values[largest];
    const float before = value, step = 1e-2f;
    value = before + step;
    const float above = loss();
    value = before - step;
    const float below = loss();
    value = before;
    CHECK((above - below) / (2 * step) == Approx(slope).epsilon(0.02).margin(1e-4));
  }
}

TEST_CASE("every bit of a seed counts, and short seeds draw what they always have", "[train_text]") {
  const auto trainer = [](std::uint64_t seed) { return Trainer(small_model(Level::sequence), {}, seed); };
  const auto draw_of = [&](std::uint64_t seed) { return trainer(seed).rng_of_step()(); };
  for (const std::uint32_t seed : {0u, 1u, 7u, 0xffffffffu}) {
    std::seed_seq sequence{seed, 1u};
    CHECK(draw_of(seed) == std::mt19937_64(sequence)());
  }
  std::set<std::uint64_t> draws{draw_of(7)};
  for (int bit = 0; bit < 64; ++bit) draws.insert(draw_of(7 ^ std::uint64_t{1} << bit));
  CHECK(draws.size() == 65);
}

TEST_CASE("a trainer shows every gate of its last step", "[train_text]") {
  using Gates = std::vector<std::pair<std::string, const Routing<float>*>>;
  const auto names_after_step = [](const ModelOptions& options) {
    Trainer trainer(options, {}, 7);
    Gates gates;
    const auto collect = [&](const std::string& name, const Routing<float>& routing) {
      gates.emplace_back(name, &routing);
    };
    trainer.visit_gates(collect);
    CHECK(gates.empty());
    std::mt19937_64 rng(3);
    trainer.step(DomainTask(1, 16).training(rng, 5), rng);
    trainer.visit_gates(collect);
    std::vector<std::string> names;
    std::set<const Routing<float>*> routings;
    for (const auto& [name, routing] : gates) {
      names.push_back(name);
      routings.insert(routing);
      CHECK(routing->rows == 5);
      CHECK(routing->experts.size() == 10);
    }
    CHECK(routings.size() == gates.size());
    return names;
  };
  ModelOptions options = small_model(Level::sequence);
  CHECK(names_after_step(options) == std::vector<std::string>{"0.up", "0.down", "1.up", "1.down"});
  options.feed_forward.gated = true;
  options.blocks = 1;
  CHECK(names_after_step(options) == std::vector<std::string>{"0.up", "0.gate_up", "0.down"});
  options.feed_forward.shared_gate = true;
  CHECK(names_after_step(options) == std::vector<std::string>{"0.up"});
}

TEST_CASE("a checkpoint of other settings or without steps is refused and changes nothing", "[train_text]") {
  const test::Folder folder;
  const auto path = folder / "checkpoint.safetensors", other = folder / "other.safetensors";
  const Settings settings{{"layer", "meo"}, {"seed", "7"}};
  Trainer saved = trained(Level::sequence, 3);
  saved.save(path, settings);

  Trainer trainer(small_model(Level::sequence), {}, 8);
  const std::vector<float> before = parameters_of(trainer);
  const auto refusal = [&](const std::filesystem::path& of, const Settings& expected) {
    const std::string error = test::error_of([&] { trainer.load(of, expected); });
    CHECK(parameters_of(trainer) == before);
    CHECK(trainer.steps() == 0);
    return error;
  };
  const auto with_steps = [&](const std::string& steps) {
    const io::SafetensorsReader file(path);
    io::SafetensorsWriter writer;
    for (const std::string& name : file.names())
      writer.add(name, file.info(name).shape, file.read<float>(name));
    if (steps != "none") writer.set_metadata("steps", steps);
    writer.write(other);
    return refusal(other, {});
  };
  CHECK(refusal(path, {{"layer", "meo"}, {"seed", "8"}}) ==
        "meo: " + path.string() + ": seed: expected 7, with which it was trained, got 8");
  CHECK(refusal(path, {{"layer", "meo"}, {"width", "8"}}) ==
        "meo: " + path.string() + ": expected the metadata to have \"width\"");
  const std::string start = "meo: " + other.string() + ": ";
  CHECK(with_steps("none") == start + "expected the metadata to have \"steps\"");
  for (const std::string steps : {"", "x", "3x", " 3", "-1", "3.5", "9223372036854775808"}) {
    CHECK(with_steps(steps) ==
          start + "metadata steps: expected a whole number of at least 0, got '" + steps + "'");
  }
  trainer.load(path, settings);
  CHECK(trainer.steps() == 3);
  CHECK(parameters_of(trainer) == parameters_of(saved));
}

}  // namespace train_text_test
}  // namespace

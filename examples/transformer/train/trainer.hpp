#pragma once

/// A model that is trained: steps, and checkpoints from which a run goes on bit for bit.

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <meo/io/error.hpp>
#include <meo/io/safetensors_reader.hpp>
#include <meo/io/safetensors_writer.hpp>

#include "../model/batch.hpp"
#include "../model/losses.hpp"
#include "../model/model.hpp"
#include "../model/weights.hpp"
#include "optimizer.hpp"
#include "random.hpp"
#include "schedule.hpp"

namespace transformer {

/// What a model's outputs should be: the class or word of each row of its logits, or its value.
template <class Scalar>
struct Targets {
  std::vector<Index> classes;
  std::vector<Scalar> values;  ///< regression
};

/// What a step learns from.
template <class Scalar>
struct Texts {
  Batch batch;
  Targets<Scalar> targets;
};

/// The loss of outputs that the forward left, which their gradient replaces.
template <class Scalar>
Scalar loss_of(typename Model<Scalar>::Context& context, Task task, const Targets<Scalar>& targets) {
  if (task == Task::regression) return squared_error<Scalar>(context.logits(), targets.values);
  return cross_entropy<Scalar>(context.logits(), targets.classes);
}

struct TrainerOptions {
  OptimizerOptions optimizer = {};
  Schedule schedule = {};
  bool gate_noise = true;
  std::uint64_t seed = 1;
};

/// Names and values of what determines a run, in the order in which they are compared.
using Settings = std::vector<std::pair<std::string, std::string>>;

template <class Scalar>
class Trainer {
 public:
  struct Losses {
    Scalar task, balance;  ///< of the outputs; of all gates
  };

  /// Throws std::invalid_argument for options that do not fit the model.
  Trainer(Model<Scalar> model, const TrainerOptions& options)
      : options_(options),
        model_(std::move(model)),
        gradients_(model_.config()),
        optimizer_(model_, options.optimizer) {}

  const Model<Scalar>& model() const { return model_; }
  Index steps() const { return optimizer_.steps(); }
  bool done() const { return steps() >= options_.schedule.steps; }

  /// The generator of what the next step draws: its texts, noise and dropout.
  std::mt19937_64 rng_of_step() const { return generator(options_.seed, Draw::step, steps() + 1); }

  Losses step(const Texts<Scalar>& texts, std::mt19937_64& rng) {
    Training<Scalar> training{.dropout_seed = rng()};
    if (options_.gate_noise) training.noise = GateNoise<Scalar>(rng);
    model_.forward(texts.batch, &training, context_);
    const Scalar loss = loss_of<Scalar>(context_, model_.config().task, texts.targets);
    meo::set_zero(meo::parameters(gradients_));
    model_.backward(texts.batch, &training, context_, gradients_);
    optimizer_.step(model_, gradients_, options_.schedule.rate(steps() + 1));
    return {loss, context_.balance_loss};
  }

  /// Parameters, the optimiser's moments, the number of steps and the settings, which tell all that is drawn
  /// from there on; for programs compiled for any instruction set. A new file replaces an old one only when
  /// it is complete and on the disk.
  void save(const std::filesystem::path& path, const Settings& settings) {
    meo::io::SafetensorsWriter writer;
    transformer::save(model_, writer, "model.");
    // The writer reads them when it writes: both have to live until then.
    Model<Scalar> first(model_.config()), second(model_.config());
    optimizer_.copy_moments_to(first, second);
    transformer::save(first, writer, "first_moments.");
    transformer::save(second, writer, "second_moments.");
    writer.set_metadata("steps", std::to_string(steps()));
    for (const auto& [name, value] : settings) writer.set_metadata(name, value);
    writer.write(path);
  }

  /// Throws meo::io::Error for a file of other settings or of another model, and then changes nothing.
  void load(const std::filesystem::path& path, const Settings& settings) {
    const meo::io::SafetensorsReader reader(path);
    for (const auto& [name, value] : settings) {
      const std::string& expected = reader.metadata(name);
      if (value != expected) {
        throw meo::io::Error(reader.file(),
                             name + ": expected " + expected + ", with which it was trained, got " + value);
      }
    }
    const Index steps = steps_of(reader);
    Model<Scalar> model(model_.config()), first(model_.config()), second(model_.config());
    transformer::load(model, TensorFiles(reader, "model."));
    transformer::load(first, TensorFiles(reader, "first_moments."));
    transformer::load(second, TensorFiles(reader, "second_moments."));
    optimizer_.copy_moments_from(first, second);
    optimizer_.set_steps(steps);
    model_ = std::move(model);
  }

 private:
  static Index steps_of(const meo::io::SafetensorsReader& reader) {
    const std::string& text = reader.metadata("steps");
    Index steps = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), steps);
    if (error != std::errc() || end != text.data() + text.size() || steps < 0) {
      throw meo::io::Error(reader.file(),
                           "metadata steps: expected a whole number of at least 0, got '" + text + "'");
    }
    return steps;
  }

  TrainerOptions options_;
  Model<Scalar> model_, gradients_;
  Optimizer<Scalar> optimizer_;
  typename Model<Scalar>::Context context_;
};

}  // namespace transformer

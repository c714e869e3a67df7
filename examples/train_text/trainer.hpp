#pragma once

/// A model with its optimiser: steps, accuracy, checkpoints.

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

#include "model.hpp"

namespace train_text {

/// Names and values of what determines a run, in the order in which they are compared.
using Settings = std::vector<std::pair<std::string, std::string>>;

class Trainer {
 public:
  Trainer(const ModelOptions& options, const meo::AdamWOptions& optimizer_options, std::uint64_t seed)
      : seed_(seed),
        model_(options),
        gradients_(options),
        optimizer_(model_.parameters(), optimizer_options) {
    std::mt19937_64 rng(seed);
    model_.initialize(rng);
  }

  Index steps() const { return optimizer_.steps(); }

  /// The generator of the next step's windows and noise: a function of seed and step, so that resumed
  /// training draws what uninterrupted training would.
  std::mt19937_64 rng_of_step() const {
    // A seed sequence takes words of 32 bits. Zeros count in it, so that short seeds must not get a third.
    std::vector<std::uint32_t> words{static_cast<std::uint32_t>(seed_),
                                     static_cast<std::uint32_t>(steps() + 1)};
    if (seed_ >> 32 != 0) words.push_back(static_cast<std::uint32_t>(seed_ >> 32));
    std::seed_seq sequence(words.begin(), words.end());
    return std::mt19937_64(sequence);
  }

  /// One step of training. Returns the cross-entropy.
  float step(const Batch& batch, std::mt19937_64& rng) {
    const meo::Sequences sequences = meo::Sequences::uniform(batch.size(), batch.window);
    meo::Inputs<float> inputs{.sequences = &sequences};
    inputs.noise = meo::Noise<float>(rng);
    float balance_loss = 0;
    Matrix<float> logits = model_.forward(batch, inputs, context_, balance_loss);
    const float loss = cross_entropy(logits, batch.labels);
    meo::set_zero(gradients_.parameters());
    model_.backward(batch, inputs, context_, logits, gradients_);
    meo::clip_gradient_norm(gradients_.parameters(), 1.f);
    optimizer_.step(model_.parameters(), gradients_.parameters());
    return loss;
  }

  /// Part of the windows whose class gets the largest logit.
  double accuracy(const Batch& batch) const {
    constexpr Index at_a_time = 64;
    Model::Context context;
    Index right = 0;
    for (Index first = 0; first < batch.size(); first += at_a_time) {
      Batch part{batch.window, {}, {}};
      for (Index b = first; b < (std::min)(first + at_a_time, batch.size()); ++b)
        part.add(batch.bytes.data() + b * batch.window, batch.labels[static_cast<std::size_t>(b)]);
      const meo::Sequences sequences = meo::Sequences::uniform(part.size(), part.window);
      float balance_loss = 0;
      const Matrix<float> logits = model_.forward(part, {.sequences = &sequences}, context, balance_loss);
      for (Index b = 0; b < part.size(); ++b) {
        Index best = 0;
        logits.row(b).maxCoeff(&best);
        right += best == part.labels[static_cast<std::size_t>(b)] ? 1 : 0;
      }
    }
    return static_cast<double>(right) / static_cast<double>(batch.size());
  }

  /// Calls visit(name, routing) for every gate of the last step; see Model.
  template <class Visit>
  void visit_gates(Visit&& visit) const {
    model_.visit_gates(context_, visit);
  }

  meo::Parameters<float> parameters() { return model_.parameters(); }

  /// Parameters, the optimiser's moments, the number of steps and the settings; for programs compiled for any
  /// instruction set. Replaces an old file only when the new one is complete.
  void save(const std::filesystem::path& path, const Settings& settings = {}) {
    meo::io::SafetensorsWriter writer;
    model_.save(writer, "model.");
    // The writer reads them when it writes: both have to live until then.
    Model first_moments(model_.options), second_moments(model_.options);
    meo::copy_values(optimizer_.first_moments(), first_moments.parameters());
    first_moments.save(writer, "first_moments.");
    meo::copy_values(optimizer_.second_moments(), second_moments.parameters());
    second_moments.save(writer, "second_moments.");
    writer.set_metadata("steps", std::to_string(steps()));
    for (const auto& [name, value] : settings) writer.set_metadata(name, value);
    writer.write(path);
  }

  /// Throws meo::io::Error for a file of other settings or of another model, and then changes nothing.
  void load(const std::filesystem::path& path, const Settings& settings = {}) {
    const meo::io::SafetensorsReader reader(path);
    for (const auto& [name, value] : settings) {
      const std::string& expected = reader.metadata(name);
      if (value != expected) {
        throw meo::io::Error(reader.file(),
                             name + ": expected " + expected + ", with which it was trained, got " + value);
      }
    }
    const Index steps = steps_of(reader);
    Model model(model_.options), first_moments(model_.options), second_moments(model_.options);
    model.load(reader, "model.");
    first_moments.load(reader, "first_moments.");
    second_moments.load(reader, "second_moments.");
    optimizer_.set_steps(steps);
    model_ = std::move(model);
    meo::copy_values(first_moments.parameters(), optimizer_.first_moments());
    meo::copy_values(second_moments.parameters(), optimizer_.second_moments());
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

  std::uint64_t seed_;
  Model model_;
  Model gradients_;
  meo::AdamW<float> optimizer_;
  Model::Context context_;
};

}  // namespace train_text

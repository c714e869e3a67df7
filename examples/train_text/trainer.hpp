#pragma once

/// A model with its optimiser: steps, accuracy, checkpoints.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <utility>

#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

#include "model.hpp"

namespace train_text {

template <class Layer>
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
    std::seed_seq sequence{seed_, static_cast<std::uint64_t>(steps()) + 1};
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
    typename Model<Layer>::Context context;
    Index right = 0;
    for (Index first = 0; first < batch.size(); first += at_a_time) {
      Batch part{batch.window, {}, {}};
      for (Index b = first; b < std::min(first + at_a_time, batch.size()); ++b)
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

  /// The routing of the last step in the first projection of the first block.
  const meo::Routing<float>& routing() const { return context_.feed_forwards.front().up.routing; }

  meo::Parameters<float> parameters() { return model_.parameters(); }

  /// Parameters, the optimiser's moments and the number of steps; for programs compiled for any instruction
  /// set.
  void save(const std::filesystem::path& path) {
    meo::io::SafetensorsWriter writer;
    model_.save(writer, "model.");
    Model<Layer> moments(model_.options);
    meo::copy_values(optimizer_.first_moments(), moments.parameters());
    moments.save(writer, "first_moments.");
    meo::copy_values(optimizer_.second_moments(), moments.parameters());
    moments.save(writer, "second_moments.");
    writer.set_metadata("steps", std::to_string(steps()));
    writer.write(path);
  }

  /// Throws meo::io::Error for a file of another model, and then changes nothing.
  void load(const std::filesystem::path& path) {
    const meo::io::SafetensorsReader reader(path);
    Model<Layer> model(model_.options), first_moments(model_.options), second_moments(model_.options);
    model.load(reader, "model.");
    first_moments.load(reader, "first_moments.");
    second_moments.load(reader, "second_moments.");
    optimizer_.set_steps(static_cast<Index>(std::stoll(reader.metadata("steps"))));
    model_ = std::move(model);
    meo::copy_values(first_moments.parameters(), optimizer_.first_moments());
    meo::copy_values(second_moments.parameters(), optimizer_.second_moments());
  }

 private:
  std::uint64_t seed_;
  Model<Layer> model_;
  Model<Layer> gradients_;
  meo::AdamW<float> optimizer_;
  typename Model<Layer>::Context context_;
};

}  // namespace train_text

#pragma once

/// A model that is timed, and how it is made from the dense one.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <ctime>
#include <map>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meo/training/adamw.hpp>
#include <meo/training/parameters.hpp>

#include "../model/losses.hpp"
#include "../model/model.hpp"
#include "../model/parallel.hpp"

namespace transformer::bench {

/// Texts and what a step of training asks of them.
struct Work {
  Batch batch;
  std::vector<Index> labels;  ///< words
  std::vector<float> values;  ///< without a head: the hidden states that are wished for
};

/// Texts of 16 words each, so that means over texts differ as those of texts on something do. Masked words
/// are 15 % of all.
inline Work random_work(const Config& config, Index texts, Index tokens, std::mt19937_64& rng) {
  constexpr Index words_of_text = 16;
  std::uniform_int_distribution<Index> word(0, config.vocabulary - 1), pick(0, words_of_text - 1);
  Work work;
  for (Index b = 0; b < texts; ++b) {
    std::vector<Index> own(words_of_text), text(static_cast<std::size_t>(tokens));
    for (Index& id : own) id = word(rng);
    for (Index& id : text) id = own[static_cast<std::size_t>(pick(rng))];
    work.batch.add(text);
  }
  std::bernoulli_distribution is_masked(0.15);
  std::normal_distribution<float> normal;
  if (config.task == Task::hidden_states) {
    work.values.resize(static_cast<std::size_t>(texts * tokens * config.width));
    for (float& value : work.values) value = normal(rng);
  } else if (config.family == Family::gpt2) {
    work.labels = next_words(work.batch, work.batch.words);
  } else {
    for (const Index id : work.batch.words) work.labels.push_back(is_masked(rng) ? id : no_label);
  }
  return work;
}

/// Replaces the outputs by their gradient.
inline float loss_of(Rows<float> outputs, const Work& work) {
  if (!work.values.empty()) return squared_error<float>(outputs, work.values);
  return cross_entropy<float>(outputs, work.labels);
}

/// Gives all parameters random values, biases too; norms stay near one.
inline void randomize(Model<float>& model, std::mt19937_64& rng) {
  model.initialize(rng);
  std::normal_distribution<float> normal(0, 0.02f);
  model.visit([&](std::string_view, auto&& part) {
    if constexpr (requires { part.linear.set_bias(part.linear.bias()); }) {
      if (!part.linear.has_bias()) return;
      meo::Vector<float> bias(part.linear.out_features());
      for (float& value : bias) value = normal(rng);
      part.linear.set_bias(bias);
    } else if constexpr (requires { part.is_vector; }) {
      for (float& value : part.values()) value += normal(rng);
    }
  });
}

/// Makes a model of mixtures, new and so zero, compute what the dense one does: experts are copies.
inline void copy_dense(Model<float>& dense, Model<float>& model) {
  std::map<std::string, std::span<float>> values;
  for (const auto& range : meo::parameters(dense)) values[range.name] = range.values;
  for (const auto& range : meo::parameters(model)) {
    if (const auto found = values.find(range.name); found != values.end())
      std::copy(found->second.begin(), found->second.end(), range.values.begin());
  }
  std::map<std::string, const meo::Linear<float>*> projections;
  dense.visit_projections([&](std::string_view name, auto& projection) {
    projection.visit(name, [&](std::string_view, auto&& part) {
      if constexpr (requires { part.linear.bias(); }) projections[std::string(name)] = &part.linear;
    });
  });
  model.visit_projections([&](std::string_view name, auto& projection) {
    const meo::Linear<float>& from = *projections.at(std::string(name));
    projection.initialize_from_dense(from.weight(), from.bias());
  });
}

/// Makes copies of experts different ones, each weight times 1 ± 1/32 at most, and token attention random.
inline void set_apart(Model<float>& model, std::mt19937_64& rng) {
  // Half a billion draws want a fast generator.
  std::uint32_t state = static_cast<std::uint32_t>(rng());
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> row;
  model.visit_projections([&](const std::string& name, auto& projection) {
    for (const auto& tensor : projection.mixture_tensors(name + ".")) {
      if (tensor.name().ends_with(".w_gate") || tensor.name().ends_with(".w_noise")) continue;
      const bool attends = tensor.name().find(".tokenatt.") != std::string::npos;
      row.resize(static_cast<std::size_t>(tensor.cols()));
      for (Index first = 0; first < tensor.size(); first += tensor.cols()) {
        tensor.read(first, row);
        for (float& value : row) {
          state = state * 1664525u + 1013904223u;
          if (attends) value = normal(rng);
          else value *= 1 + (static_cast<float>(state >> 8) * 0x1p-23f - 1) / 32;
        }
        tensor.write(first, row);
      }
    }
  });
}

struct Seconds {
  double passes = 0;     ///< forward and, in training, backward
  double optimizer = 0;  ///< AdamW, and setting gradients to zero

  double total() const { return passes + optimizer; }
};

class Subject {
 public:
  using Context = Model<float>::Context;

  Subject(std::string name, const Config& config) : name_(std::move(name)), model_(config) {}

  const std::string& name() const { return name_; }
  Model<float>& model() { return model_; }
  /// Of prepare_training.
  Model<float>& gradients() { return *gradients_; }

  /// Takes three times the memory that the model has.
  void prepare_training() {
    gradients_.emplace(model_.config());
    optimizer_.emplace(meo::parameters(model_), meo::AdamWOptions{.learning_rate = 1e-5});
  }

  /// Adds the gradients to gradients(). The context is one for all subjects, as it keeps nothing between
  /// runs.
  void pass_both_ways(const Work& work, const Training<float>& training, Context& context) {
    model_.forward(work.batch, &training, context);
    loss_of(context.logits(), work);
    model_.backward(work.batch, &training, context, *gradients_);
  }

  /// Inference of the last `words` of a text, one by one. Returns the seconds that one takes; the outputs of
  /// the last stay in the context.
  double run_words(const Work& work, Index words, Merging merging, Context& context) {
    const auto prompt_end = work.batch.words.end() - words;
    Past<float> past(model_.config(), merging);
    Batch batch;
    batch.add(std::vector<Index>(work.batch.words.begin(), prompt_end));
    model_.forward(batch, past, context);
    const auto begin = now();
    for (auto word = prompt_end; word != work.batch.words.end(); ++word) {
      batch = {};
      batch.add(std::vector<Index>{*word});
      model_.forward(batch, past, context);
    }
    return (now() - begin) / static_cast<double>(words);
  }

  /// A step of training after prepare_training, else inference.
  Seconds run(const Work& work, std::mt19937_64& rng, Context& context) {
    const auto begin = now();
    if (!gradients_) {
      model_.forward(work.batch, nullptr, context);
      return {.passes = now() - begin};
    }
    const auto gradients = meo::parameters(*gradients_);
    meo::set_zero(gradients);
    const double zeros = now() - begin;
    const auto begin_passes = now();
    pass_both_ways(work, {.noise = GateNoise<float>(rng)}, context);
    const double passes = now() - begin_passes;
    const auto begin_step = now();
    optimizer_->step(meo::parameters(model_), gradients);
    return {.passes = passes, .optimizer = zeros + (now() - begin_step)};
  }

 private:
  /// Of one thread its own time, which does not count what other programs take from it; with more only the
  /// clock is fair.
  static double now() {
    if (max_threads() == 1) return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  std::string name_;
  Model<float> model_;
  std::optional<Model<float>> gradients_;
  std::optional<meo::AdamW<float>> optimizer_;
};

}  // namespace transformer::bench

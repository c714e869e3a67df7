#pragma once

/// Small models of examples/transformer for tests.

#include <exception>
#include <random>
#include <string>
#include <vector>

#include <meo/types.hpp>

#include "../../examples/transformer/model/model.hpp"

namespace transformer::test {

/// Two layers of two heads, whose widths are no multiples of a packet.
inline Config small_config(Task task, Index positions = 80) {
  return {.family = task == Task::next_word ? Family::gpt2 : Family::bert,
          .task = task,
          .vocabulary = 11,
          .width = 12,
          .layers = 2,
          .heads = 2,
          .hidden = 20,
          .positions = positions,
          .labels = task == Task::regression ? 1 : 3,
          .activation =
              task == Task::next_word ? meo::AnyActivation::Kind::gelu_tanh : meo::AnyActivation::Kind::gelu,
          .norm_epsilon = task == Task::next_word ? 1e-5 : 1e-12,
          .description_size = 6};
}

inline MixtureConfig small_mixture(Mixture kind, meo::Level level, bool bias = true) {
  return {.kind = kind,
          .level = level,
          .segment_tokens = level == meo::Level::segment ? 3 : 0,
          .experts = 3,
          .top_k = 2,
          .reduce_factor = 2,
          .bias = bias};
}

/// Whether models of the family can have such a mixture: BERT no segments, GPT-2 no tasks.
inline bool is_possible(Family family, const MixtureConfig& mixture) {
  const meo::Level other = family == Family::bert ? meo::Level::segment : meo::Level::task;
  return mixture.kind == Mixture::none || mixture.level != other;
}

/// Every parameter its own, biases and noise too, which start at zero.
template <class Model>
void randomize(Model& model, unsigned seed, double deviation = 0.3) {
  using Scalar = typename Model::Scalar;
  std::mt19937_64 rng(seed);
  model.initialize(rng, deviation);
  std::normal_distribution<double> normal(0, deviation);
  model.visit([&](std::string_view, auto&& part) {
    if constexpr (requires { part.linear.set_bias(part.linear.bias()); }) {
      if (!part.linear.has_bias()) return;
      meo::Vector<Scalar> bias(part.linear.out_features());
      for (Scalar& value : bias) value = static_cast<Scalar>(normal(rng));
      part.linear.set_bias(bias);
    } else if constexpr (requires { part.is_vector; }) {
      for (Scalar& value : part.values()) value += static_cast<Scalar>(normal(rng));
    } else if constexpr (requires { part.set_weight(part.weight()); }) {
      meo::Matrix<Scalar> weight = part.weight();
      for (Index i = 0; i < weight.size(); ++i) weight.data()[i] = static_cast<Scalar>(normal(rng));
      part.set_weight(weight);
    }
  });
}

/// Texts of these lengths, of words that are not the padding word.
inline Batch random_batch(const Config& config, const std::vector<Index>& lengths, unsigned seed) {
  std::mt19937_64 rng(seed);
  std::uniform_int_distribution<Index> word(1, config.vocabulary - 1), type(0, config.types - 1);
  Batch batch;
  for (const Index length : lengths) {
    std::vector<Index> text(static_cast<std::size_t>(length)), types;
    for (Index& id : text) id = word(rng);
    for (Index i = 0; i < length && config.family == Family::bert; ++i) types.push_back(type(rng));
    batch.add(text, types);
    if (!config.has_tasks()) continue;
    for (int i = 0; i < 4; ++i) batch.task_words.push_back(word(rng));
  }
  if (config.has_tasks()) batch.descriptions = meo::Sequences::uniform(static_cast<Index>(lengths.size()), 4);
  return batch;
}

/// Labels of a batch, of which some are not asked for where they are words.
struct Labels {
  std::vector<Index> classes;
  std::vector<double> values;

  Labels(const Config& config, const Batch& batch, unsigned seed) {
    std::mt19937_64 rng(seed);
    std::uniform_int_distribution<Index> label(0, config.labels - 1), word(0, config.vocabulary - 1);
    std::normal_distribution<double> normal;
    for (Index b = 0; b < batch.sequences.size(); ++b) {
      values.push_back(normal(rng));
      if (config.task == Task::classification) classes.push_back(label(rng));
    }
    for (Index i = batch.sequences.size();
         i < batch.tokens() * config.width && config.task == Task::hidden_states; ++i)
      values.push_back(normal(rng));
    if (config.task == Task::next_word) classes = next_words(batch, batch.words);
    for (Index t = 0; t < batch.tokens() && config.task == Task::masked_words; ++t)
      classes.push_back(t % 3 == 1 ? no_label : word(rng));
  }
};

/// The task's loss; its gradient replaces the logits.
inline double loss_of(const Config& config, Rows<double> logits, const Labels& labels) {
  if (config.task == Task::regression || config.task == Task::hidden_states)
    return squared_error<double>(logits, labels.values);
  return cross_entropy<double>(logits, labels.classes);
}

/// Calls test(model) with a small model of each task.
template <class Scalar, class Test>
void for_each_task(const MixtureConfig& mixture, const Test& test, Index positions = 80) {
  for (const Task task : {Task::classification, Task::regression, Task::masked_words, Task::next_word}) {
    Config config = small_config(task, positions);
    config.mixture = mixture;
    if (!is_possible(config.family, mixture)) continue;
    test(Model<Scalar>(config));
  }
}

/// Calls test(mixture) for dense blocks and mixtures of all kinds and levels.
template <class Test>
void for_each_mixture(const Test& test) {
  test(MixtureConfig{});
  for (const Mixture kind : {Mixture::moe, Mixture::meo}) {
    for (const meo::Level level :
         {meo::Level::token, meo::Level::sequence, meo::Level::task, meo::Level::segment})
      test(small_mixture(kind, level, level != meo::Level::sequence));
  }
}

/// What an exception of the action says.
template <class Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

/// For messages.
inline std::string name_of(const Config& config) {
  static const char* const tasks[] = {"classification", "regression", "masked words", "next word"};
  static const char* const kinds[] = {"dense", "MoE", "MEO"};
  return std::string(tasks[static_cast<int>(config.task)]) + ", " +
         kinds[static_cast<int>(config.mixture.kind)] + ", " + std::string(to_string(config.mixture.level));
}

}  // namespace transformer::test

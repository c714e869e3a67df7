// The training of examples/transformer: what its parts do, and that models learn with every kind of block.

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../../examples/transformer/data/corpus.hpp"
#include "../../examples/transformer/data/labelled_texts.hpp"
#include "../../examples/transformer/data/predictions.hpp"
#include "../../examples/transformer/data/word_tasks.hpp"
#include "../../examples/transformer/train/schedule.hpp"
#include "../../examples/transformer/train/trainer.hpp"
#include "examples/transformer_models.hpp"
#include "io/files.hpp"
#include "support/catch.hpp"

namespace {

using namespace transformer;
using meo::test::Folder;
using transformer::test::message_of;
using transformer::test::name_of;
using transformer::test::random_batch;
using transformer::test::small_config;
using transformer::test::small_mixture;

void write(const std::filesystem::path& path, std::string_view text) {
  meo::test::save(path, meo::test::to_bytes(text));
}

Config without_dropout(Config config) {
  config.embedding_dropout = config.hidden_dropout = config.attention_dropout = config.classifier_dropout = 0;
  return config;
}

/// 32 texts that no rule tells anything about.
template <class Model>
Texts<float> texts_by_heart(const Config& config) {
  std::vector<Index> lengths;
  for (Index i = 0; i < 32; ++i) lengths.push_back(3 + i % 5);
  Texts<float> texts{random_batch(config, lengths, 7), {}};
  std::mt19937_64 rng(8);
  if (config.task == Task::classification) {
    for (Index i = 0; i < 32; ++i) texts.targets.classes.push_back(draw_below(rng, config.labels));
  } else if (config.task == Task::regression) {
    for (Index i = 0; i < 32; ++i) texts.targets.values.push_back(static_cast<float>(draw_below(rng, 5)));
  } else if (config.task == Task::masked_words) {
    for (Index t = 0; t < texts.batch.tokens(); ++t) texts.targets.classes.push_back(draw_below(rng, 11));
  } else {
    // What begins alike goes on alike: each text has a first word of its own, or there is no way to know.
    for (Index b = 0; b < 32; ++b) {
      const Index begin = texts.batch.sequences.begin(b);
      for (Index t = begin; t < begin + 2; ++t)
        texts.batch.words[static_cast<std::size_t>(t)] = t == begin ? b / 6 : b % 6;
    }
    texts.targets.classes = next_words(texts.batch, texts.batch.words);
    for (Index b = 0; b < 32; ++b)
      texts.targets.classes[static_cast<std::size_t>(texts.batch.sequences.begin(b))] = no_label;
  }
  return texts;
}

template <class Model>
float loss_after_training(const Config& config, Index steps) {
  Model model(config);
  std::mt19937_64 start(3);
  model.initialize(start, 0.2);
  Trainer<Model> trainer(std::move(model), {.schedule = {.peak = 0.01, .steps = steps}});
  const Texts<float> texts = texts_by_heart<Model>(config);
  while (!trainer.done()) {
    std::mt19937_64 rng = trainer.rng_of_step();
    trainer.step(texts, rng);
  }
  typename Model::Context context;
  trainer.model().forward(texts.batch, nullptr, context);
  return loss_of<Model>(context, config.task, texts.targets);
}

/// Of every kind that the programs train.
std::vector<MixtureConfig> mixtures_of(Task task) {
  std::vector<MixtureConfig> mixtures{{}, small_mixture(Mixture::moe, meo::Level::token)};
  if (task == Task::next_word) {
    mixtures.push_back(small_mixture(Mixture::meo, meo::Level::segment));
    mixtures.push_back(small_mixture(Mixture::moe, meo::Level::segment));
    return mixtures;
  }
  mixtures.push_back(small_mixture(Mixture::moe, meo::Level::sequence));
  for (const meo::Level level : {meo::Level::token, meo::Level::sequence, meo::Level::task}) {
    if (task != Task::masked_words || level != meo::Level::task)
      mixtures.push_back(small_mixture(Mixture::meo, level));
  }
  return mixtures;
}

template <class Model>
void check_learns(Task task) {
  for (const MixtureConfig& mixture : mixtures_of(task)) {
    Config config = without_dropout(small_config(task));
    config.mixture = mixture;
    CAPTURE(name_of(config));
    CHECK(loss_after_training<Model>(config, 300) < 0.02f);
  }
}

}  // namespace

TEST_CASE("Models learn 32 texts by heart with every kind of block", "[training]") {
  check_learns<BertClassifier<float>>(Task::classification);
  check_learns<BertClassifier<float>>(Task::regression);
  check_learns<BertMaskedWords<float>>(Task::masked_words);
  check_learns<Gpt2NextWord<float>>(Task::next_word);
}

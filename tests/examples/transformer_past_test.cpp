// Words that follow a text, in GPT-2 of examples/transformer: each is computed once, with what is kept of
// those before it.

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../../examples/transformer/continuation.hpp"
#include "../../examples/transformer/model/small_storage.hpp"
#include "../../examples/transformer/model/weights.hpp"
#include "examples/transformer_models.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {
namespace transformer_past_test {

using namespace transformer;
using namespace transformer::test;
using meo::Matrix;
using Gpt2 = Model<float>;

/// "" if all differences are within 2⁻¹⁴ of the largest value, what some 2⁹ roundings of floats may come to;
/// a word, an expert or a key left out leaves about one.
std::string difference(const Matrix<float>& actual, const Matrix<float>& expected) {
  const float largest = expected.lpNorm<Eigen::Infinity>();
  REQUIRE(actual.rows() == expected.rows());
  REQUIRE(actual.cols() == expected.cols());
  for (Index i = 0; i < actual.size(); ++i) {
    const float off = std::abs(actual.data()[i] - expected.data()[i]);
    if (!(off <= 0x1p-14f * largest))
      return "value " + std::to_string(i) + " is off by " + std::to_string(off) + " of " +
             std::to_string(largest);
  }
  return "";
}

/// The logits of the last of `prompt` words and of each that follows, as one after another gives them.
Matrix<float> step_by_step(const Gpt2& model, const std::vector<Index>& words, Index prompt,
                           Merging merging) {
  const auto begin = words.begin();
  Continuation continuation(model, {begin, begin + prompt}, merging);
  Matrix<float> logits(static_cast<Index>(words.size()) - prompt + 1, model.config().vocabulary);
  for (Index row = 0; row < logits.rows(); ++row) {
    if (row > 0) continuation.add(words[static_cast<std::size_t>(prompt + row - 1)]);
    std::copy(continuation.logits().begin(), continuation.logits().end(), logits.row(row).data());
  }
  return logits;
}

/// The same of one forward of all.
Matrix<float> at_once(const Gpt2& model, const std::vector<Index>& words, Index prompt) {
  Batch batch;
  batch.add(words);
  Gpt2::Context context;
  const Matrix<float> logits = model.forward(batch, nullptr, context);
  return logits.bottomRows(logits.rows() - prompt + 1);
}

std::vector<Index> random_words(const Config& config, Index count, unsigned seed) {
  return random_batch(config, {count}, seed).words;
}

Gpt2 random_gpt2(const MixtureConfig& mixture, unsigned seed) {
  Config config = small_config(Task::next_word);
  config.mixture = mixture;
  Gpt2 model(config);
  randomize(model, seed);
  return model;
}

TEST_CASE("words one by one have the logits that they have at once", "[transformer][past]") {
  for (const MixtureConfig& mixture : {MixtureConfig{}, small_mixture(Mixture::moe, meo::Level::token)}) {
    const Gpt2 model = random_gpt2(mixture, 41);
    const std::vector<Index> words = random_words(model.config(), 80, 42);
    for (const Index prompt : {1, 3, 70, 80}) {
      CAPTURE(name_of(model.config()), prompt);
      CHECK(difference(step_by_step(model, words, prompt, Merging::once), at_once(model, words, prompt)) ==
            "");
    }
  }
}

/// Those of the same name and shape.
void copy_tensors(const Gpt2& from, Gpt2& to) {
  for (const auto& tensor : tensors_of_model(to)) {
    for (const auto& other : tensors_of_model(from)) {
      if (other.name() != tensor.name() || other.shape() != tensor.shape()) continue;
      std::vector<float> values(static_cast<std::size_t>(tensor.size()));
      other.read(0, values);
      tensor.write(0, values);
    }
  }
}

/// A dense model whose projections are what the prompt's decision merges.
Gpt2 merged_by_prompt(const Gpt2& model, const std::vector<Index>& prompt) {
  Batch batch;
  batch.add(prompt);
  const Training<float> keeps_routings;
  Gpt2::Context context;
  model.forward(batch, &keeps_routings, context);
  Config config = model.config();
  config.mixture = {};
  Gpt2 dense(config);
  copy_tensors(model, dense);
  std::size_t number = 0;
  std::vector<const meo::Routing<float>*> routings;
  for (const auto& layer : context.trunk.layers) {
    routings.push_back(&layer.feed_forward.up.routing);
    routings.push_back(&layer.feed_forward.down.routing);
  }
  std::vector<std::pair<Matrix<float>, meo::Vector<float>>> merged;
  model.visit_projections([&](const std::string& name, const auto& projection) {
    const meo::Routing<float>& routing = *routings[number++];
    REQUIRE(routing.rows == 1);
    const Matrix<float> weights = routing.dense();
    const Index out = projection.mixture_options().out_features,
                in = projection.mixture_options().in_features;
    Matrix<float> weight = Matrix<float>::Zero(out, in);
    meo::Vector<float> bias = meo::Vector<float>::Zero(out);
    for (const auto& tensor : projection.mixture_tensors(name + ".")) {
      if (tensor.shape().front() != weights.cols()) continue;
      std::vector<float> values(static_cast<std::size_t>(tensor.size()));
      tensor.read(0, values);
      for (Index e = 0; e < weights.cols(); ++e) {
        if (tensor.shape().size() == 3)
          weight += weights(0, e) * Eigen::Map<const Matrix<float>>(values.data() + e * out * in, out, in);
        else if (tensor.shape().size() == 2)
          bias += weights(0, e) * Eigen::Map<const meo::Vector<float>>(values.data() + e * out, out);
      }
    }
    merged.emplace_back(weight, bias);
  });
  number = 0;
  dense.visit_projections([&](const std::string&, auto& projection) {
    projection.initialize_from_dense(merged[number].first, merged[number].second);
    ++number;
  });
  return dense;
}

TEST_CASE("words that follow are a dense model's of what the prompt merges", "[transformer][past]") {
  for (const meo::Level level : {meo::Level::sequence, meo::Level::segment}) {
    MixtureConfig mixture = small_mixture(Mixture::meo, level);
    if (level == meo::Level::segment) mixture.segment_tokens = 6;
    const Gpt2 model = random_gpt2(mixture, 51);
    const std::vector<Index> words = random_words(model.config(), 30, 52);
    for (const Index prompt : {1, 4, 6}) {  // one segment
      CAPTURE(name_of(model.config()), prompt);
      const Gpt2 dense = merged_by_prompt(model, {words.begin(), words.begin() + prompt});
      CHECK(difference(step_by_step(model, words, prompt, Merging::once), at_once(dense, words, prompt)) ==
            "");
    }
  }
}

/// The words that a model adds to a prompt.
std::vector<Index> generated(const Gpt2& model, const std::vector<Index>& prompt, Merging merging,
                             const Sampling& sampling) {
  std::mt19937_64 rng(7);
  Continuation continuation(model, prompt, merging);
  std::vector<Index> words;
  while (continuation.has_room()) {
    words.push_back(draw_word(continuation.logits(), sampling, rng));
    continuation.add(words.back());
  }
  return words;
}

TEST_CASE("experts that are kept give what they give when they are mixed anew", "[transformer][past]") {
  const Storage* const no_storage = nullptr;
  for (const Storage* storage : {no_storage, small_storages().front()}) {
    for (const Mixture kind : {Mixture::meo, Mixture::moe}) {
      for (const meo::Level level : {meo::Level::segment, meo::Level::sequence, meo::Level::token}) {
        MixtureConfig mixture = small_mixture(kind, level);
        const Gpt2 floats = random_gpt2(mixture, 61);
        Config config = floats.config();
        config.mixture.storage = storage;
        Gpt2 model(config);
        copy_tensors(floats, model);
        const std::vector<Index> words = random_words(model.config(), 40, 62);
        CAPTURE(name_of(model.config()), storage == nullptr);
        for (const Index prompt : {1, 10}) {  // of four segments
          CHECK(difference(step_by_step(model, words, prompt, Merging::once),
                           step_by_step(model, words, prompt, Merging::anew)) == "");
        }
        const std::vector<Index> text(words.begin(), words.begin() + 10);
        for (const Sampling& sampling : {Sampling{}, Sampling{.temperature = 1}}) {
          const std::vector<Index> once = generated(model, text, Merging::once, sampling);
          CHECK(once.size() == 70);
          CHECK(once == generated(model, text, Merging::anew, sampling));
        }
      }
    }
  }
}

TEST_CASE("where the layer merges for one word, too, that is to the bit", "[transformer][past]") {
  MixtureConfig mixture = small_mixture(Mixture::meo, meo::Level::segment);
  mixture.experts = mixture.top_k = 20;
  const Gpt2 model = random_gpt2(mixture, 71);
  const std::vector<Index> words = random_words(model.config(), 40, 72);
  CHECK(meo::test::bit_difference(step_by_step(model, words, 10, Merging::once),
                                  step_by_step(model, words, 10, Merging::anew)) == "");
}

TEST_CASE("a past is of one text of GPT-2", "[transformer][past]") {
  const Gpt2 model = random_gpt2({}, 81);
  const Config& config = model.config();
  Gpt2::Context context;
  CHECK(message_of([&] { Past<float> past(small_config(Task::classification)); }) ==
        "past: expected GPT-2, whose words see none that follow, got BERT");
  Past<float> past(config);
  CHECK(message_of([&] {
          model.forward(random_batch(config, {3, 2}, 82), past, context);
        }) == "batch: expected one text, got 2");
  model.forward(random_batch(config, {78}, 83), past, context);
  CHECK(message_of([&] { model.forward(random_batch(config, {3}, 84), past, context); }) ==
        "text: expected at most 80 tokens, as the model has positions, got 81");
  model.forward(random_batch(config, {2}, 85), past, context);
  CHECK(past.tokens() == 80);
  Config other = config;
  other.layers = 3;
  CHECK(message_of([&] {
          Past<float> of_other(other);
          model.forward(random_batch(config, {3}, 86), of_other, context);
        }) == "past: expected one of 2 layers, got 3");
  CHECK(message_of([&] { Continuation continuation(model, {}); }) ==
        "text 0: expected at least one token, got none");
}

}  // namespace transformer_past_test
}  // namespace

// The models of examples/transformer: gradients of every head against central differences, batches that do
// not mix their texts, upcycled mixtures that equal the dense model, and what is refused.

#include <cmath>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <meo/training/adamw.hpp>

#include "../../examples/transformer/model/weights.hpp"
#include "examples/transformer_models.hpp"
#include "io/files.hpp"
#include "kernels/threads.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {
namespace transformer_model_test {

using namespace transformer;
using namespace transformer::test;
using meo::Matrix;

/// Of all parameters' gradients, or every fifth of large ones, by a fourth-order difference, whose error is
/// h⁴/30 times the fifth derivative, and roundings of the loss divided by h. h is so small that no seed here
/// has a token on the way from one selection of experts to another.
template <class Model>
void check_gradients(Model model, const Batch& batch) {
  const Config& config = model.config();
  CAPTURE(name_of(config));
  randomize(model, 11);
  const Labels labels(config, batch, 13);
  typename Model::Context context;
  const auto loss = [&] {
    std::mt19937_64 rng(14);
    const Training<double> training{.noise = GateNoise<double>(rng), .dropout_seed = 15};
    const Rows<double> logits = model.forward(batch, &training, context);
    return loss_of(config, logits, labels) + context.balance_loss;
  };
  Model gradients(config);
  meo::set_zero(meo::parameters(gradients));
  loss();
  const Training<double> training{.noise = {}, .dropout_seed = 15};
  model.backward(batch, &training, context, gradients);

  constexpr double h = 0x1p-15, tolerance = 1e-9;
  const auto values = meo::parameters(model), expected = meo::parameters(gradients);
  REQUIRE(values.size() == expected.size());
  for (std::size_t range = 0; range < values.size(); ++range) {
    INFO(values[range].name);
    const auto size = static_cast<Index>(values[range].values.size());
    const Index step = size > 100 ? 5 : 1;  // for time; no width here is a multiple of it
    Matrix<double> actual(1, (size + step - 1) / step), differences(1, actual.cols());
    for (Index i = 0; i < actual.cols(); ++i) {
      double& value = values[range].values[static_cast<std::size_t>(i * step)];
      const double at = value;
      const auto loss_at = [&](double moved) {
        value = moved;
        return loss();
      };
      const double near = loss_at(at + h) - loss_at(at - h), far = loss_at(at + 2 * h) - loss_at(at - 2 * h);
      differences(0, i) = (8 * near - far) / (12 * h);
      actual(0, i) = expected[range].values[static_cast<std::size_t>(i * step)];
      value = at;
    }
    CHECK(meo::test::disagreement(actual, differences,
                                  Matrix<double>::Constant(1, actual.cols(), tolerance)) == "");
  }
}

TEST_CASE("gradients of whole models are those of their losses", "[transformer]") {
  for_each_mixture([](const MixtureConfig& mixture) {
    // There gradients leave out first segments' decisions; layers/segment_test.cpp has them.
    if (mixture.level == meo::Level::segment) return;
    const auto check = [](const auto& model) {
      check_gradients(model, random_batch(model.config(), {4, 1, 3}, 12));
    };
    for_each_task<double>(mixture, check, 4);
  });
}

TEST_CASE("a model without a head gives the hidden states that heads read", "[transformer]") {
  for (const Task task : {Task::masked_words, Task::next_word}) {
    Config config = small_config(task), without = config;
    without.task = Task::hidden_states;
    check_gradients(Model<double>(without), random_batch(without, {4, 1, 3}, 12));
  }
  const Config config = small_config(Task::next_word);
  Config without = config;
  without.task = Task::hidden_states;
  Model<float> model(config),
      headless(without);  // GPT-2's decoder is its words: both have the same parameters
  randomize(model, 11);
  meo::copy_values(meo::parameters(model), meo::parameters(headless));
  const Batch batch = random_batch(config, {4, 1, 3}, 12);
  Model<float>::Context context, headless_context;
  const Rows<float> hidden = headless.forward(batch, nullptr, headless_context);
  Matrix<float> expected(batch.tokens(), config.vocabulary);
  model.trunk().words().decode(read<float>(hidden), {expected.data(), expected.rows(), expected.cols()});
  CHECK(meo::test::bit_difference(model.forward(batch, nullptr, context), expected) == "");
}

TEST_CASE("gradients of texts beyond a block of queries", "[transformer]") {
  Config config = small_config(Task::next_word);
  config.layers = 1;
  config.vocabulary = 5;
  config.hidden = 4;
  config.positions = 70;
  check_gradients(Model<double>(config), random_batch(config, {70}, 12));
}

TEST_CASE("gradients where one description is that of all texts", "[transformer]") {
  Config config = small_config(Task::classification, 4);
  config.mixture = small_mixture(Mixture::meo, meo::Level::task);
  Batch batch = random_batch(config, {4, 1, 3}, 12);
  batch.task_words.resize(3);
  batch.descriptions = meo::Sequences::uniform(1, 3);
  check_gradients(Model<double>(config), batch);
}

TEMPLATE_TEST_CASE("a text's outputs have the same bits alone and in a batch", "[transformer]", float,
                   double) {
  using Scalar = TestType;
  const std::vector<Index> lengths{3, 1, 70, 2, 17, 66};
  for_each_mixture([&](const MixtureConfig& mixture) {
    for_each_task<Scalar>(mixture, [&](auto model) {
      CAPTURE(name_of(model.config()));
      randomize(model, 21);
      const Batch batch = random_batch(model.config(), lengths, 22);
      typename std::decay_t<decltype(model)>::Context context, alone_context;
      const Matrix<Scalar> all = model.forward(batch, nullptr, context);
      const bool of_words = all.rows() == batch.tokens();
      for (Index b = 0; b < batch.sequences.size(); ++b) {
        const auto begin = static_cast<std::size_t>(batch.sequences.begin(b));
        const auto length = static_cast<std::size_t>(batch.sequences.length(b));
        Batch alone;
        alone.add(std::span(batch.words).subspan(begin, length),
                  batch.types.empty() ? std::span<const Index>()
                                      : std::span<const Index>(batch.types).subspan(begin, length));
        if (model.config().has_tasks()) {
          const auto first = batch.task_words.begin() + 4 * b;
          alone.task_words.assign(first, first + 4);
          alone.descriptions = meo::Sequences::uniform(1, 4);
        }
        const Matrix<Scalar> of_one = model.forward(alone, nullptr, alone_context);
        const Matrix<Scalar> in_batch =
            of_words ? Matrix<Scalar>(all.middleRows(batch.sequences.begin(b), batch.sequences.length(b)))
                     : Matrix<Scalar>(all.row(b));
        CHECK(meo::test::bit_difference(of_one, in_batch) == "");
      }
    });
  });
}

TEST_CASE("words are computed for the tokens that are asked for", "[transformer]") {
  const auto check = [](auto model) {
    using Model = decltype(model);
    const Config& config = model.config();
    if (config.task != Task::masked_words && config.task != Task::next_word) return;
    CAPTURE(name_of(config));
    randomize(model, 31);
    Batch batch = random_batch(config, {5, 2, 9}, 32);
    typename Model::Context context;
    const Training<double> training;
    Model of_all(config), of_asked(config);
    meo::set_zero(meo::parameters(of_all));
    meo::set_zero(meo::parameters(of_asked));
    const std::vector<Index> asked{1, 4, 6, 15};
    std::vector<Index> labels(16, no_label), labels_asked;
    const Matrix<double> all = model.forward(batch, &training, context);
    for (const Index token : asked)
      labels_asked.push_back(labels[static_cast<std::size_t>(token)] = token % 3);
    const double loss = cross_entropy<double>(context.logits(), labels);
    model.backward(batch, &training, context, of_all);

    batch.asked = asked;
    const Matrix<double> rows = model.forward(batch, &training, context);
    REQUIRE(rows.rows() == 4);
    for (Index i = 0; i < 4; ++i) {
      CHECK(meo::test::bit_difference(Matrix<double>(rows.row(i)),
                                      Matrix<double>(all.row(asked[static_cast<std::size_t>(i)]))) == "");
    }
    CHECK(cross_entropy<double>(context.logits(), labels_asked) == Approx(loss).epsilon(1e-14));
    model.backward(batch, &training, context, of_asked);
    const auto actual = meo::parameters(of_asked), expected = meo::parameters(of_all);
    for (std::size_t i = 0; i < actual.size(); ++i) {
      INFO(actual[i].name);
      const auto as_row = [](std::span<double> values) {
        return Matrix<double>(
            Eigen::Map<Matrix<double>>(values.data(), 1, static_cast<Index>(values.size())));
      };
      CHECK(meo::test::disagreement(
                as_row(actual[i].values), as_row(expected[i].values),
                Matrix<double>::Constant(1, static_cast<Index>(actual[i].values.size()), 1e-13)) == "");
    }
    batch.asked = {16};
    CHECK(message_of([&] { model.forward(batch, nullptr, context); }) ==
          "asked token 0: expected 0 to 15, got 16");
  };
  for_each_task<double>({}, check);
}

TEST_CASE("steps of training lower the loss", "[transformer]") {
  Config config = small_config(Task::classification);
  config.mixture = small_mixture(Mixture::meo, meo::Level::sequence);
  Model<float> model(config), gradients(config);
  std::mt19937_64 rng(35);
  model.initialize(rng, 0.1);
  const Batch batch = random_batch(config, {5, 2, 9, 4, 4, 3}, 36);
  const Labels labels(config, batch, 37);
  meo::AdamW<float> optimizer(meo::parameters(model), {.learning_rate = 1e-2});
  Model<float>::Context context;
  std::vector<float> losses;
  for (std::uint64_t step = 0; step < 100; ++step) {
    const Training<float> training{.noise = GateNoise<float>(rng), .dropout_seed = step};
    model.forward(batch, &training, context);
    losses.push_back(cross_entropy<float>(context.logits(), labels.classes));
    meo::set_zero(meo::parameters(gradients));
    model.backward(batch, &training, context, gradients);
    optimizer.step(meo::parameters(model), meo::parameters(gradients));
  }
  CHECK(losses.front() > 0.9f);  // log 3 of three classes
  CHECK(losses.back() < 0.3f);
}

TEST_CASE("a forward in training without noise or dropout is inference", "[transformer]") {
  for_each_mixture([&](const MixtureConfig& mixture) {
    for_each_task<double>(mixture, [&](auto model) {
      CAPTURE(name_of(model.config()));
      randomize(model, 31);
      const Batch batch = random_batch(model.config(), {5, 2, 66}, 32);
      typename std::decay_t<decltype(model)>::Context context;
      const Training<double> training;
      const Matrix<double> trained = model.forward(batch, &training, context);
      const Matrix<double> inferred = model.forward(batch, nullptr, context);
      CHECK(meo::test::bit_difference(trained, inferred) == "");
    });
  });
}

TEST_CASE("mixtures that start from a dense model equal it", "[transformer]") {
  for_each_task<double>({}, [](auto dense) {
    using Model = decltype(dense);
    randomize(dense, 41);
    meo::io::SafetensorsWriter writer;
    save(dense, writer);
    const meo::test::Bytes bytes = writer.bytes();
    const meo::io::SafetensorsReader file(bytes, "dense");
    typename Model::Context context;
    for_each_mixture([&](MixtureConfig mixture) {
      Config config = dense.config();
      mixture.bias = true;
      config.mixture = mixture;
      if (!is_possible(config.family, mixture)) return;
      CAPTURE(name_of(config));
      Batch batch = random_batch(config, {5, 2, 20}, 42);
      Model model(config);
      load(model, TensorFiles(file));
      typename Model::Context mixed_context;
      const Matrix<double> actual = model.forward(batch, nullptr, mixed_context);
      const Matrix<double> expected = dense.forward(batch, nullptr, context);
      // Two layers of roundings of values that norms keep near one.
      CHECK(meo::test::disagreement_in_max_norm(actual, expected, 1e-13) == "");

      std::mt19937_64 rng(43);
      Model spread(config);
      spread.initialize_new(rng);
      load(spread, TensorFiles(file), {.training = &rng});
      const Matrix<double> of_spread = spread.forward(batch, nullptr, mixed_context);
      if (mixture.kind != Mixture::meo || mixture.level != meo::Level::token)  // where token attention acts
        CHECK(meo::test::disagreement_in_max_norm(of_spread, expected, 1e-13) == "");
    });
  });
}

TEST_CASE("dropout keeps what it says, scaled, and the same for a seed", "[transformer]") {
  const auto dropped = [](std::uint64_t seed, std::uint64_t place) {
    std::vector<double> values(100000, 1.0);
    Dropout(0.25, seed, place).apply(values.data(), static_cast<Index>(values.size()));
    return values;
  };
  const std::vector<double> values = dropped(1, 2);
  Index kept = 0;
  for (const double value : values) {
    if (value != 0) REQUIRE(value == 1 / 0.75);
    kept += value != 0;
  }
  CHECK(std::abs(static_cast<double>(kept) - 75000) < 5 * std::sqrt(100000 * 0.25 * 0.75));
  CHECK(values == dropped(1, 2));
  CHECK(values != dropped(1, 3));
  CHECK(values != dropped(2, 2));
  CHECK_FALSE(static_cast<bool>(Dropout(0, 1, 2)));
}

TEST_CASE("each dropout of a model acts in training, by its seed alone", "[transformer]") {
  for (const Task task : {Task::classification, Task::next_word}) {
    for (double Config::*const dropout : {&Config::embedding_dropout, &Config::hidden_dropout,
                                          &Config::attention_dropout, &Config::classifier_dropout}) {
      Config config = small_config(task);
      config.embedding_dropout = config.hidden_dropout = config.attention_dropout =
          config.classifier_dropout = 0;
      config.*dropout = 0.5;
      if (task == Task::next_word && dropout == &Config::classifier_dropout) continue;
      const Batch batch = random_batch(config, {5, 2, 9}, 45);
      const auto check = [&](auto model) {
        randomize(model, 46);
        typename std::decay_t<decltype(model)>::Context context;
        const auto logits = [&](std::optional<std::uint64_t> seed) -> Matrix<double> {
          const Training<double> training{.dropout_seed = seed};
          return model.forward(batch, &training, context);
        };
        const Matrix<double> first = logits(1);
        CHECK(meo::test::bit_difference(logits(1), first) == "");
        CHECK(meo::test::bit_difference(logits(2), first) != "");
        CHECK(meo::test::bit_difference(logits({}), first) != "");
        const Matrix<double> inferred = model.forward(batch, nullptr, context);
        CHECK(meo::test::bit_difference(inferred, logits({})) == "");
      };
      check(Model<double>(config));
    }
  }
}

TEST_CASE("outputs and gradients have the same bits with any number of threads", "[transformer]") {
  for (const MixtureConfig& mixture :
       {MixtureConfig{}, small_mixture(Mixture::moe, meo::Level::token),
        small_mixture(Mixture::meo, meo::Level::token), small_mixture(Mixture::meo, meo::Level::sequence)}) {
    for_each_task<float>(mixture, [](auto model) {
      using Model = decltype(model);
      CAPTURE(name_of(model.config()));
      randomize(model, 47);
      const Batch batch = random_batch(model.config(), {5, 70, 9, 1}, 48);
      Matrix<float> first_logits;
      std::vector<float> first_gradients;
      meo::test::with_threads([&](Index threads) {
        CAPTURE(threads);
        std::mt19937_64 rng(49);
        const Training<float> training{.noise = GateNoise<float>(rng), .dropout_seed = 50};
        typename Model::Context context;
        Model gradients(model.config());
        const Matrix<float> logits = model.forward(batch, &training, context);
        model.backward(batch, &training, context, gradients);
        std::vector<float> all;
        for (const auto& range : meo::parameters(gradients))
          all.insert(all.end(), range.values.begin(), range.values.end());
        if (threads == 1) {
          first_logits = logits;
          first_gradients = all;
        }
        CHECK(meo::test::bit_difference(logits, first_logits) == "");
        CHECK(all == first_gradients);
      });
    });
  }
}

TEST_CASE("the padding word's embedding has no gradient as an input's", "[transformer]") {
  const Config config = small_config(Task::classification);
  Model<double> model(config), gradients(config);
  randomize(model, 51);
  meo::set_zero(meo::parameters(gradients));
  Batch batch;
  batch.add(std::vector<Index>{3, 0, 4});
  Model<double>::Context context;
  const Training<double> training;
  cross_entropy<double>(model.forward(batch, &training, context), std::vector<Index>{1});
  model.backward(batch, &training, context, gradients);
  const Matrix<double> words = gradients.trunk().words().table().weight();
  CHECK(words.row(0).isZero(0));
  CHECK_FALSE(words.row(3).isZero(0));
}

TEST_CASE("losses count what is asked for, and refuse labels that are none", "[transformer]") {
  Matrix<double> logits(3, 2);
  logits << 1, 2, 50, -50, 0, 0;
  const auto rows = [&](Matrix<double>& values) { return Rows<double>(values.data(), values.rows(), 2); };
  Matrix<double> gradient = logits;
  const double expected = (std::log(std::exp(1) + std::exp(2)) - 1 + std::log(2)) / 2;
  CHECK(cross_entropy<double>(rows(gradient), std::vector<Index>{0, no_label, 1}) == Approx(expected));
  CHECK(gradient.row(1).isZero(0));
  CHECK(gradient(2, 0) == Approx(0.25));
  CHECK(gradient(2, 1) == Approx(-0.25));
  gradient = logits;
  CHECK(cross_entropy<double>(rows(gradient), std::vector<Index>(3, no_label)) == 0);
  CHECK(gradient.isZero(0));
  const auto fault = [&](const std::vector<Index>& labels) {
    return message_of([&] { cross_entropy<double>(rows(gradient), labels); });
  };
  CHECK(fault({0, 1}) == "labels: expected 3, got 2");
  CHECK(fault({0, 1, 2}) == "label 2: expected 0 to 1 or -100, got 2");
  CHECK(message_of([&] {
          squared_error<double>(Rows<double>(gradient.data(), 2, 1), std::vector<double>{1});
        }) == "labels: expected 2, got 1");
}

// What a change of a token may change: outputs of its own text from it on, and where it is in the first
// segment, whose decision sees all of it, those before it in the segment.
TEST_CASE("with segments no word depends on a later one, but in a text's first", "[transformer][segment]") {
  constexpr Index segment_tokens = 3;
  for (const Mixture kind : {Mixture::moe, Mixture::meo}) {
    Config config = small_config(Task::next_word);
    config.mixture = small_mixture(kind, meo::Level::segment);
    REQUIRE(config.mixture.segment_tokens == segment_tokens);
    CAPTURE(name_of(config));
    Model<float> model(config);
    randomize(model, 54);
    Model<float>::Context context;
    const Batch batch = random_batch(config, {8, 2, 10}, 55);
    const Matrix<float> logits = model.forward(batch, nullptr, context);
    bool first_segments_change = false;
    for (Index b = 0; b < batch.sequences.size(); ++b) {
      for (Index t = 0; t < batch.sequences.length(b); ++t) {
        Batch changed = batch;
        Index& word = changed.words[static_cast<std::size_t>(batch.sequences.begin(b) + t)];
        word = (word + 1) % config.vocabulary;
        const Matrix<float> after = model.forward(changed, nullptr, context);
        for (Index row = 0; row < logits.rows(); ++row) {
          const Index place = row - batch.sequences.begin(b);
          const bool is_of_text = place >= 0 && place < batch.sequences.length(b);
          CAPTURE(b, t, row);
          const bool same = meo::test::bit_difference(after.row(row), logits.row(row)) == "";
          if (!is_of_text || (place < t && t >= segment_tokens)) CHECK(same);
          if (is_of_text && place == t) CHECK_FALSE(same);
          if (is_of_text && place < t && t < segment_tokens && !same) first_segments_change = true;
        }
      }
    }
    CHECK(first_segments_change);
  }
}

TEST_CASE("what a model cannot read is refused", "[transformer]") {
  Config config = small_config(Task::classification);
  config.positions = 4;
  const Model<float> model(config);
  Model<float>::Context context;
  const auto fault = [&](const Batch& batch) {
    return message_of([&] { model.forward(batch, nullptr, context); });
  };
  const auto of_words = [](const std::vector<Index>& words, const std::vector<Index>& types = {}) {
    Batch batch;
    batch.add(words, types);
    return batch;
  };
  CHECK(fault({}) == "batch: expected at least one text, got none");
  CHECK(fault(of_words({})) == "text 0: expected at least one token, got none");
  CHECK(fault(of_words({1, 2, 3, 4, 5})) ==
        "text 0: expected at most 4 tokens, as the model has positions, got 5");
  CHECK(fault(of_words({1, 11})) == "word 1: expected 0 to 10, got 11");
  CHECK(fault(of_words({-1})) == "word 0: expected 0 to 10, got -1");
  CHECK(fault(of_words({1, 2}, {0, 2})) == "type 1: expected 0 to 1, got 2");
  CHECK(fault(of_words({1, 2}, {0})) == "types: expected 2, one for each word, got 1");
  Batch batch = of_words({1, 2});
  batch.places = {0, 4};
  CHECK(fault(batch) == "place 1: expected 0 to 3, got 4");
  batch = of_words({1, 2});
  batch.words.push_back(3);
  CHECK(fault(batch) == "sequences: expected 3 tokens in all, as there are words, got 2");

  const Model<float> gpt2(small_config(Task::next_word));
  Model<float>::Context gpt2_context;
  CHECK(message_of([&] { gpt2.forward(of_words({1}, {0}), nullptr, gpt2_context); }) ==
        "types: expected none by this model, got 1");

  config.mixture = small_mixture(Mixture::meo, meo::Level::task);
  const Model<float> with_tasks(config);
  const auto task_fault = [&](Batch of_tasks) {
    return message_of([&] { with_tasks.forward(of_tasks, nullptr, context); });
  };
  batch = of_words({1, 2});
  CHECK(task_fault(batch) == "descriptions: expected 1 or one for each of 1 texts, got 0");
  batch.task_words = {11};
  batch.descriptions = meo::Sequences::uniform(1, 1);
  CHECK(task_fault(batch) == "task word 0: expected 0 to 10, got 11");

  config = small_config(Task::classification);
  config.width = 13;
  CHECK(message_of([&] { Model<float>{config}; }) == "width: expected a multiple of heads = 2, got 13");
  config = small_config(Task::classification);
  config.family = Family::gpt2;
  CHECK(message_of([&] { Model<float>{config}; }) ==
        "task: expected next_word for GPT-2 and another for BERT");
  config = small_config(Task::classification);
  config.layers = 0;
  CHECK(message_of([&] { Model<float>{config}; }) == "layers: expected at least 1, got 0");
}

}  // namespace transformer_model_test
}  // namespace

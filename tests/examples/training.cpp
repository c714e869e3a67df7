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
#include "../../examples/transformer/model/model_folder.hpp"
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

float loss_after_training(const Config& config, Index steps) {
  Model<float> model(config);
  std::mt19937_64 start(3);
  model.initialize(start, 0.2);
  Trainer<float> trainer(std::move(model), {.schedule = {.peak = 0.01, .steps = steps}});
  const Texts<float> texts = texts_by_heart(config);
  while (!trainer.done()) {
    std::mt19937_64 rng = trainer.rng_of_step();
    trainer.step(texts, rng);
  }
  Model<float>::Context context;
  trainer.model().forward(texts.batch, nullptr, context);
  return loss_of<float>(context, config.task, texts.targets);
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

void check_learns(Task task) {
  for (const MixtureConfig& mixture : mixtures_of(task)) {
    Config config = without_dropout(small_config(task));
    config.mixture = mixture;
    CAPTURE(name_of(config));
    CHECK(loss_after_training(config, 300) < 0.02f);
  }
}

}  // namespace

TEST_CASE("Models learn 32 texts by heart with every kind of block", "[training]") {
  check_learns(Task::classification);
  check_learns(Task::regression);
  check_learns(Task::masked_words);
  check_learns(Task::next_word);
}

TEST_CASE("The learning rate grows and falls in straight lines", "[training]") {
  const Schedule schedule{.peak = 2, .steps = 10, .warm_up = 0.35};  // 3.5 steps, rounded up
  const std::vector<double> sixths{0.25, 0.5, 0.75, 1, 1, 5. / 6, 4. / 6, 3. / 6, 2. / 6, 1. / 6};
  for (Index step = 1; step <= 10; ++step) {
    CAPTURE(step);
    CHECK(schedule.rate(step) == Approx(2 * sixths[static_cast<std::size_t>(step) - 1]).epsilon(1e-15));
  }
  CHECK(Schedule{.peak = 2, .steps = 4, .warm_up = 0}.rate(1) == 2);
  CHECK(Schedule{.peak = 2, .steps = 1, .warm_up = 0.1}.rate(1) == 2);
}

namespace {

/// All values of a model's tensors, by their names in files.
std::map<std::string, std::vector<float>> values_of(const Model<float>& model) {
  std::map<std::string, std::vector<float>> values;
  for (const auto& tensor : tensors_of_model(model)) {
    std::vector<float>& of = values[tensor.name()];
    of.resize(static_cast<std::size_t>(tensor.size()));
    tensor.read(0, of);
  }
  return values;
}

bool never_decays(const std::string& name) {
  return name.ends_with("bias") || name.find("LayerNorm") != std::string::npos;
}

}  // namespace

TEST_CASE("A step is AdamW's, and neither biases nor norms decay", "[training]") {
  for (const MixtureConfig& mixture : mixtures_of(Task::classification)) {
    Config config = small_config(Task::classification);
    config.mixture = mixture;
    CAPTURE(name_of(config));
    Model<float> model(config), gradients(config);
    transformer::test::randomize(model, 9);
    transformer::test::randomize(gradients, 10, 0.01);
    for (const bool freezes : {false, true}) {
      if (freezes && mixture.kind == Mixture::none) continue;
      CAPTURE(freezes);
      auto changed = model;
      auto clipped = gradients;
      constexpr double rate = 0.25, decay = 0.5;
      Optimizer<float> optimizer(changed, {.weight_decay = decay, .clip = 1e6, .only_mixtures = freezes});
      optimizer.step(changed, clipped, rate);
      const auto before = values_of(model), after = values_of(changed), g = values_of(gradients);
      for (const auto& [name, values] : before) {
        CAPTURE(name);
        const bool is_mixture =
            name.find("w_gate") != std::string::npos || name.find("w_noise") != std::string::npos ||
            name.find("tokenatt") != std::string::npos || name.find("task_") != std::string::npos ||
            (name.find("ttention") == std::string::npos &&
             (name.find("intermediate.dense") != std::string::npos ||
              name.find("output.dense") != std::string::npos));
        const bool is_trained = !freezes || is_mixture || name.starts_with("classifier");
        const float keep = is_trained && !never_decays(name) ? static_cast<float>(1 - rate * decay) : 1;
        for (std::size_t i = 0; i < values.size(); ++i) {
          // The first step of AdamW goes the rate against the gradient's sign, but for its epsilon.
          const float gradient = is_trained ? g.at(name)[i] : 0;
          const float expected =
              values[i] * keep - static_cast<float>(rate) * gradient / (std::abs(gradient) + 1e-8f);
          REQUIRE(after.at(name)[i] == Approx(expected).epsilon(1e-5).margin(1e-5));
          if (!is_trained) REQUIRE(after.at(name)[i] == values[i]);
        }
      }
    }
  }
  const Model<float> dense(small_config(Task::classification));
  CHECK(message_of([&] { Trained(dense, true); }) ==
        "freeze: expected a model with mixtures to train, got a dense one");
}

TEST_CASE("Gradients are clipped before a step, those of what is trained alone", "[training]") {
  Config config = small_config(Task::classification);
  config.mixture = small_mixture(Mixture::meo, meo::Level::sequence);
  Model<float> model(config), gradients(config);
  transformer::test::randomize(model, 9);
  transformer::test::randomize(gradients, 10);
  const Trained mixtures(model, true);
  const float norm = meo::gradient_norm(mixtures.of(gradients)),
              all = meo::gradient_norm(meo::parameters(gradients));
  REQUIRE(norm < 0.9f * all);
  Optimizer<float> optimizer(model, {.clip = 0.5, .only_mixtures = true});
  CHECK(optimizer.step(model, gradients, 1e-3) == norm);
  CHECK(meo::gradient_norm(mixtures.of(gradients)) == Approx(0.5));
}

TEST_CASE("A trainer goes on from a checkpoint bit for bit", "[training]") {
  const Folder folder;
  const auto path = folder / "c.safetensors";
  Config config = small_config(Task::classification);
  config.mixture = small_mixture(Mixture::meo, meo::Level::token);
  const Texts<float> texts = texts_by_heart(config);
  const Settings settings{{"data", "d"}, {"seed", "1"}};
  for (const bool freezes : {false, true}) {
    CAPTURE(freezes);
    const auto make = [&] {
      Model<float> model(config);
      transformer::test::randomize(model, 9);
      return Trainer<float>(std::move(model), {.optimizer = {.only_mixtures = freezes},
                                               .schedule = {.peak = 0.01, .steps = 9}});
    };
    const auto train_to = [&](Trainer<float>& trainer, Index step) {
      while (trainer.steps() < step) {
        std::mt19937_64 rng = trainer.rng_of_step();
        trainer.step(texts, rng);
      }
    };
    Trainer<float> through = make(), first = make(), resumed = make();
    train_to(through, 9);
    train_to(first, 4);
    first.save(path, settings);
    train_to(resumed, 2);  // of which nothing may be left
    resumed.load(path, settings);
    CHECK(resumed.steps() == 4);
    CHECK_FALSE(resumed.done());
    train_to(resumed, 9);
    CHECK(resumed.done());
    CHECK(values_of(resumed.model()) == values_of(through.model()));
    through.save(folder / "through", settings);
    resumed.save(folder / "resumed", settings);
    CHECK(meo::test::load_bytes(folder / "resumed") == meo::test::load_bytes(folder / "through"));

    const auto before = values_of(resumed.model());
    CHECK(message_of([&] {
            resumed.load(path, {{"data", "other"}, {"seed", "1"}});
          }) == "meo: " + path.string() + ": data: expected d, with which it was trained, got other");
    CHECK(values_of(resumed.model()) == before);
  }
}

TEST_CASE("A model of words becomes a classifier with a new head", "[training]") {
  const Folder folder;
  Model<float> words(small_config(Task::masked_words));
  transformer::test::randomize(words, 15);
  save_model(words, folder / "words");
  const Config config = small_config(Task::classification);
  std::mt19937_64 rng(16);
  const Model<float> classifier = load_model<float>(folder / "words", config, {.training = &rng});
  const auto before = values_of(words), after = values_of(classifier);
  const auto is_zero = [](float value) { return value == 0; };
  for (const auto& [name, values] : after) {
    CAPTURE(name);
    if (before.contains(name)) CHECK(values == before.at(name));
    else CHECK(std::all_of(values.begin(), values.end(), is_zero) == name.ends_with("bias"));
  }
  CHECK(after.contains("bert.pooler.dense.weight"));
  // To compute with, nothing may be lacking.
  CHECK(message_of([&] { load_model<float>(folder / "words", config); }).ends_with("is not in the file"));
}

TEST_CASE("A run draws by seed, purpose and step", "[training]") {
  std::set<std::uint64_t> drawn;
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 32}) {
    for (const Draw draw : {Draw::start_values, Draw::step, Draw::order, Draw::validation}) {
      for (const Index number : {Index{0}, Index{1}, Index{1} << 32}) {
        drawn.insert(generator(seed, draw, number)());
        CHECK(generator(seed, draw, number)() == generator(seed, draw, number)());
      }
    }
  }
  CHECK(drawn.size() == 36);

  Epochs epochs(7, 3, 1);
  CHECK(epochs.steps() == 3);
  std::vector<std::vector<Index>> orders;
  for (Index epoch = 0; epoch < 3; ++epoch) {
    std::vector<Index> order;
    for (Index step = 1; step <= 3; ++step) {
      const auto numbers = epochs.numbers(3 * epoch + step);
      CHECK(numbers.size() == (step == 3 ? 1 : 3));
      order.insert(order.end(), numbers.begin(), numbers.end());
    }
    orders.push_back(order);
    std::sort(order.begin(), order.end());
    CHECK(order == std::vector<Index>{0, 1, 2, 3, 4, 5, 6});
  }
  CHECK(orders[0] != orders[1]);
  CHECK(orders[1] != orders[2]);
  // A resumed run asks for a step in the middle.
  const auto middle = Epochs(7, 3, 1).numbers(5);
  CHECK(std::vector<Index>(middle.begin(), middle.end()) ==
        std::vector<Index>(orders[1].begin() + 3, orders[1].begin() + 6));
}

TEST_CASE("A corpus has windows of documents", "[training]") {
  const Folder folder;
  const auto one = (folder / "one").string(), two = (folder / "two").string();
  write(one, "a b\nc d e\n\n\nf\n \t\ng h");
  write(two, "i j k l m n\r\no");
  const auto letters = [](std::string_view text) {
    std::vector<Index> words;
    for (const char c : text) {
      if (c >= 'a' && c <= 'z') words.push_back(c - 'a');
    }
    return words;
  };
  const Corpus corpus({one, two}, 3, letters);
  CHECK(corpus.documents() == 3);  // f is none
  CHECK(corpus.tokens() == 14);
  std::vector<std::vector<Index>> windows;
  for (const auto& window : corpus.windows()) windows.emplace_back(window.begin(), window.end());
  CHECK(windows == std::vector<std::vector<Index>>{{0, 1, 2}, {3, 4}, {6, 7}, {8, 9, 10}, {11, 12, 13}});

  std::map<std::vector<Index>, int> drawn;
  std::mt19937_64 rng(1);
  for (int i = 0; i < 900; ++i) {
    const auto window = corpus.random_window(rng);
    ++drawn[{window.begin(), window.end()}];
  }
  // Three in the first document, one in the second, five in the third; each has 1/9, or 100 ± 9.4.
  CHECK(drawn.size() == 9);
  for (const auto& [window, count] : drawn) {
    CAPTURE(window);
    CHECK(std::abs(count - 100) < 5 * 9.5);
    CHECK(window.back() - window.front() == static_cast<Index>(window.size()) - 1);
  }
  CHECK(drawn.contains({6, 7}));
  CHECK(drawn.contains({2, 3, 4}));
  CHECK(drawn.contains({12, 13, 14}));

  write(folder / "brief", "a\n\nb");
  const auto brief = (folder / "brief").string();
  CHECK(message_of([&] {
          Corpus({one, brief}, 3, letters);
        }) == "meo: " + brief + ": expected at least two tokens, got fewer");
}

namespace {

/// Of [PAD], [UNK], [CLS], [SEP], [MASK] and letters.
void write_vocabulary(const Folder& folder,
                      std::string_view tokens = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n") {
  std::string text(tokens);
  for (char c = 'a'; c <= 'z'; ++c) text += std::string(1, c) + "\n";
  write(folder / "vocab.txt", text);
}

}  // namespace

TEST_CASE("BERT is asked for 15 % of the words, mostly masked", "[training]") {
  const Folder folder;
  write_vocabulary(folder);
  const FolderTokenizer tokenizer(folder);
  constexpr Index vocabulary = 1000;
  const MaskedWords task(tokenizer, vocabulary, "f");
  std::mt19937_64 rng(2);
  Texts<float> texts;
  std::vector<std::vector<Index>> windows;
  for (Index i = 0; i < 500; ++i) {
    windows.emplace_back();
    for (Index t = 0; t < (i == 0 ? 2 : 100); ++t) windows.back().push_back(100 + (7 * i + t) % 900);
    task.add(windows.back(), rng, texts);
  }
  const Batch& batch = texts.batch;
  REQUIRE(batch.asked.size() == 1 + 499 * 15);
  REQUIRE(texts.targets.classes.size() == batch.asked.size());
  double masked = 0, same = 0, random = 0;
  std::set<Index> asked(batch.asked.begin(), batch.asked.end());
  CHECK(asked.size() == batch.asked.size());
  std::size_t next = 0;
  for (Index b = 0; b < batch.sequences.size(); ++b) {
    const auto& window = windows[static_cast<std::size_t>(b)];
    const Index begin = batch.sequences.begin(b);
    REQUIRE(batch.sequences.length(b) == static_cast<Index>(window.size()) + 2);
    CHECK(batch.words[static_cast<std::size_t>(begin)] == 2);
    CHECK(batch.words[static_cast<std::size_t>(batch.sequences.begin(b + 1)) - 1] == 3);
    for (std::size_t i = 0; i < window.size(); ++i) {
      const Index token = begin + 1 + static_cast<Index>(i);
      const Index word = batch.words[static_cast<std::size_t>(token)];
      if (!asked.contains(token)) {
        CHECK(word == window[i]);
        continue;
      }
      REQUIRE(batch.asked[next] == token);
      CHECK(texts.targets.classes[next++] == window[i]);
      (word == 4 ? masked : word == window[i] ? same : random) += 1;
    }
  }
  // Of 7486: 80, 10 and 10 %, but for random words that are the word or [MASK], 1 in 500.
  CHECK(std::abs(masked - 7486 * 0.8) < 5 * std::sqrt(7486 * 0.16) + 2);
  CHECK(std::abs(same - 7486 * 0.1) < 5 * std::sqrt(7486 * 0.09) + 2);
  CHECK(std::abs(random - 7486 * 0.1) < 5 * std::sqrt(7486 * 0.09) + 2);

  write_vocabulary(folder, "[PAD]\n[UNK]\n[CLS]\n[SEP]\n");
  CHECK(message_of([&] { MaskedWords(FolderTokenizer(folder), vocabulary, "f"); }) ==
        "meo: f: expected a vocabulary with [MASK]");
}

TEST_CASE("GPT-2 is asked for every next word, by gates that do not see it", "[training]") {
  Texts<float> texts;
  std::mt19937_64 rng(3);
  for (const std::vector<Index>& window : {std::vector<Index>{1, 2, 3}, {4, 5}})
    NextWord().add(window, rng, texts);
  CHECK(texts.batch.words == std::vector<Index>{1, 2, 3, 4, 5});
  CHECK(texts.batch.asked == std::vector<Index>{0, 1, 3});
  CHECK(texts.targets.classes == std::vector<Index>{2, 3, 5});

  for (const Mixture kind : {Mixture::none, Mixture::moe, Mixture::meo}) {
    for (const meo::Level level : {meo::Level::token, meo::Level::sequence, meo::Level::segment}) {
      Config config = small_config(Task::next_word);
      config.mixture = small_mixture(kind, level);
      CAPTURE(name_of(config));
      // Whether what comes last changes the outputs before it.
      Model<double> model(config);
      transformer::test::randomize(model, 12);
      Batch batch = random_batch(config, {9}, 13);
      Model<double>::Context context;
      const meo::Matrix<double> before = model.forward(batch, nullptr, context);
      batch.words.back() = batch.words.back() % 10 + 1;
      const meo::Matrix<double> after = model.forward(batch, nullptr, context);
      const bool is_causal = before.topRows(8) == after.topRows(8);
      const std::string expected = is_causal ? "no error"
                                             : "meo: f: level: expected segment, or token for MoE, as the "
                                               "next word is predicted, got " +
                                                   std::string(to_string(level)) +
                                                   ", whose gates see the words that follow";
      CHECK(message_of([&] { require_causal(config, "f"); }) == expected);
      CHECK(is_causal == (kind == Mixture::none || level == meo::Level::segment ||
                          (kind == Mixture::moe && level == meo::Level::token)));
    }
  }
}

TEST_CASE("Scores of words are means over all that are asked for", "[training]") {
  const Config config = small_config(Task::next_word);
  Model<float> model(config);
  transformer::test::randomize(model, 14);
  std::vector<Texts<float>> batches(2);
  std::mt19937_64 rng(4);
  const std::vector<std::vector<Index>> windows{{1, 2, 3, 4, 5, 6}, {7, 8}, {9, 10, 1}};
  for (std::size_t i = 0; i < 3; ++i) NextWord().add(windows[i], rng, batches[i / 2]);
  Model<float>::Context context;
  double loss = 0, right = 0;
  for (const auto& window : windows) {
    Batch batch;
    batch.add(window);
    const meo::Matrix<double> logits = model.forward(batch, nullptr, context).cast<double>();
    for (Index t = 0; t + 1 < logits.rows(); ++t) {
      const Index label = window[static_cast<std::size_t>(t) + 1];
      loss += std::log(logits.row(t).array().exp().sum()) - logits(t, label);
      right += logits.row(t).maxCoeff() == logits(t, label) ? 1 : 0;
    }
  }
  const Scores scores = score_words(model, batches, context);
  REQUIRE(scores.size() == 3);
  CHECK(scores[0].second == Approx(loss / 8).epsilon(1e-5));
  CHECK(scores[1].second == Approx(std::exp(loss / 8)).epsilon(1e-5));
  CHECK(scores[2].second == right / 8);
}

namespace {

/// The words of a text and of a second one, each as long as it is.
Encoding lengths_of(std::string_view text, std::optional<std::string_view> pair) {
  Encoding encoding{{static_cast<Id>(text.size())}, {0}};
  if (pair) encoding.input_ids.push_back(static_cast<Id>(pair->size())), encoding.token_type_ids.push_back(1);
  return encoding;
}

struct TaskFiles {
  std::string task, train, test;
};

/// Two rows of each task's files as GLUE distributes them, texts of one and two letters, then three and four.
const std::vector<TaskFiles> task_files{
    {"cola", "gj04\t1\t\tx\ngj04\t0\t*\txxx\n", "index\tsentence\n0\tx\n1\txxx\n"},
    {"sst-2", "sentence\tlabel\nx\t1\nxxx\t0\n", "index\tsentence\n0\tx\n1\txxx\n"},
    {"mrpc",
     "\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t\"\txx\n0\t9\t10\txxx\txxxx\n",
     "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\tx\t\"x\n1\t9\t10\txxx\txxxx\n"},
    {"sts-b",
     "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
     "0\tg\tf\t2012\t1\tnone\tnone\tx\txx\t5.000\n1\tg\tf\t2012\t4\tnone\tnone\txxx\txxxx\t2.75\n",
     "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\n"
     "0\tg\tf\t2012\t1\tnone\tnone\tx\txx\n1\tg\tf\t2012\t4\tnone\tnone\txxx\txxxx\n"},
    {"qqp",
     "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n3\t1\t2\tx\txx\t1\n4\t1\t2\tcut\n"
     "5\t1\t2\txxx\txxxx\t0\n",
     "id\tquestion1\tquestion2\n0\tx\txx\n1\txxx\txxxx\n"},
    {"mnli",
     "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
     "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
     "0\t1\t1n\tg\tb\tb\tp\tp\tx\txx\tneutral\tentailment\n"
     "1\t1\t1n\tg\tb\tb\tp\tp\txxx\txxxx\t\tcontradiction\n",
     "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
     "sentence2_parse\tsentence1\tsentence2\n0\t1\t1n\tg\tb\tb\tp\tp\tx\txx\n"
     "1\t1\t1n\tg\tb\tb\tp\tp\txxx\txxxx\n"},
    {"qnli", "index\tquestion\tsentence\tlabel\n0\tx\txx\tnot_entailment\n1\txxx\txxxx\tentailment\n",
     "index\tquestion\tsentence\n0\tx\txx\n1\txxx\txxxx\n"},
    {"rte", "index\tsentence1\tsentence2\tlabel\n0\tx\txx\tnot_entailment\n1\txxx\txxxx\tentailment\n",
     "index\tsentence1\tsentence2\n0\tx\txx\n1\txxx\txxxx\n"},
    {"wnli", "index\tsentence1\tsentence2\tlabel\n0\tx\txx\t1\n1\txxx\txxxx\t0\n",
     "index\tsentence1\tsentence2\n0\tx\txx\n1\txxx\txxxx\n"}};

}  // namespace

TEST_CASE("GLUE's files are read as they are distributed", "[training][glue]") {
  const Folder folder;
  REQUIRE(glue_tasks().size() == task_files.size());
  for (std::size_t i = 0; i < task_files.size(); ++i) {
    const GlueTask& task = glue_tasks()[i];
    REQUIRE(task.name == task_files[i].task);
    CAPTURE(task_files[i].task);
    write(folder / "train.tsv", task_files[i].train);
    write(folder / "test.tsv", task_files[i].test);
    const LabelledTexts train =
        load_texts(folder / "train.tsv", task.task, task.task.columns, true, lengths_of);
    const LabelledTexts test =
        load_texts(folder / "test.tsv", task.task, task.task.test_columns, true, lengths_of);
    const bool has_pairs = !task.task.columns.pair.empty();
    for (const LabelledTexts* const texts : {&train, &test}) {
      REQUIRE(texts->size() == 2);
      CHECK(texts->texts[0].input_ids == (has_pairs ? std::vector<Id>{1, 2} : std::vector<Id>{1}));
      CHECK(texts->texts[1].input_ids == (has_pairs ? std::vector<Id>{3, 4} : std::vector<Id>{3}));
    }
    CHECK_FALSE(test.has_labels());
    if (task.task.is_regression()) CHECK(train.values == std::vector<double>{5, 2.75});
    else CHECK(train.classes == std::vector<Index>{1, 0});
  }
}

TEST_CASE("Predictions are written as GLUE takes them", "[training][glue]") {
  const Folder folder;
  const auto written = [&](const Predictions& predictions, const TextTask& task) {
    write_predictions(folder / "p.tsv", predictions, task);
    return meo::test::load_text(folder / "p.tsv");
  };
  CHECK(written({{2, 0, 1}, {}}, glue_tasks()[5].task) ==
        "index\tprediction\n0\tneutral\n1\tcontradiction\n2\tentailment\n");
  CHECK(written({{1, 0}, {}}, glue_tasks()[0].task) == "index\tprediction\n0\t1\n1\t0\n");
  CHECK(written({{}, {2.5, -0.2, 7, 4.99951}}, glue_tasks()[3].task) ==
        "index\tprediction\n0\t2.500\n1\t0.000\n2\t5.000\n3\t5.000\n");
}

/// Trains BERT to find masked words and GPT-2 the next one, from plain text: one learns how models with
/// experts are trained from nothing. `--help` says more.

#include <iostream>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "data/corpus.hpp"
#include "data/fingerprint.hpp"
#include "data/word_tasks.hpp"
#include "mixture_options.hpp"
#include "model/model_folder.hpp"
#include "text/folder_tokenizer.hpp"
#include "train/saved_folder.hpp"
#include "train/train.hpp"

namespace {

using namespace transformer;

constexpr std::string_view usage = R"(usage: pretrain DIR [options] FILE...

Trains the model of DIR on the texts of the files: BERT to find words that are masked
(15 % of a text's; of these 80 % are [MASK], 10 % random words, 10 % as they were),
GPT-2 to find each next word, and <|endoftext|> behind a document. In a file empty lines part documents; a step's texts are
windows of documents, drawn at random.

DIR has config.json and a vocabulary: vocab.txt (and tokenizer_config.json), or
vocab.json and merges.txt. Where it has model.safetensors as well, training goes on from
there; else from random start values.

  --tokens=T                most tokens of a text     (default all of the model's, to 128)
  --steps=S                 of the whole run                             (default 1000)
  --validation=FILE         loss, perplexity and accuracy on this one's texts, too; may
                            be given several times
  --ffn=moe|meo             make each feed-forward projection of a dense model a mixture
                            whose experts are copies of it, or begin with mixtures
  --level=L                 token, sequence, task or segment      (default sequence)
  --segment-tokens=S        at level segment: gates decide for S tokens by the S before
  --experts=N --top-k=K                                               (default 8, 2)
)";

constexpr std::string_view more_help = R"(
Options may be written --name value, too. GPT-2 takes MEO by segments, and MoE by
segments or tokens: the gate of a whole text, and MEO's at token level, would see the
words that are to be predicted.

Columns of the log: step, loss and balance_loss (means since the line before),
learning_rate, those of --validation, flops_per_token (of a forward without the head),
tokens_per_second, seconds (of training alone).
Exit code: 0 fine, 1 what is read does not fit, or an output cannot be written (which is
tried before the first step), 2 wrong options.
)";

struct Arguments {
  std::string folder;
  std::vector<std::string> files, validation;
  TrainingOptions training{1e-4};
  std::optional<MixtureConfig> mixture;
  Index steps = 1000;
  std::optional<Index> tokens;
  bool help = false;
};

Arguments parse(CommandWords words) {
  Arguments arguments;
  MixtureOptions mixture;
  while (!words.done()) {
    const std::string word = words.take();
    const auto count = [&](Index least) { return whole_number<Index>(word, words.value_of(word), least); };
    if (word == "--help" || word == "-h") arguments.help = true;
    else if (word == "--steps") arguments.steps = count(1);
    else if (word == "--tokens") arguments.tokens = count(3);
    else if (word == "--validation") arguments.validation.push_back(words.path_of(word));
    else if (word.starts_with("-")) {
      if (!arguments.training.take(word, words) && !mixture.take(word, words))
        throw UsageError("unknown option '" + word + "'");
    } else if (arguments.folder.empty()) arguments.folder = word;
    else arguments.files.push_back(word);
  }
  if (arguments.help) return arguments;
  if (arguments.files.empty()) throw UsageError("expected a folder and at least one file");
  require_distinct({arguments.training.log, arguments.training.checkpoint});
  arguments.mixture = mixture.mixture();
  return arguments;
}

Config config_of(const Arguments& arguments) {
  Config config = load_config_with(arguments.folder, arguments.mixture);
  if (config.family == Family::bert) config.task = Task::masked_words;
  if (config.has_tasks())
    throw meo::io::Error(arguments.folder, "level: expected another than task, as plain texts have no tasks");
  arguments.training.apply_to(config);
  require_causal(config, arguments.folder);
  return config;
}

template <class WordTask>
void train_on(Model<float> model, const Arguments& arguments, const FolderTokenizer& tokenizer,
              const WordTask& task) {
  const Config& config = model.config();
  const Index tokens = most_tokens(arguments.tokens, config);
  const Index window = tokens - WordTask::tokens_beside_window;
  const std::optional<Index> end_of_text = tokenizer.find("<|endoftext|>");
  const auto tokenize = [&](std::string_view text) {
    std::vector<Index> words = tokenizer.ids(text);
    if (end_of_text && !words.empty()) words.push_back(*end_of_text);
    return words;
  };
  const Corpus corpus(arguments.files, window, tokenize);
  std::vector<Texts<float>> validation;
  if (!arguments.validation.empty()) {
    std::mt19937_64 rng = generator(arguments.training.seed, Draw::validation);
    const Corpus held_out(arguments.validation, window, tokenize);
    Index texts = 0;
    for (const auto& text : held_out.windows()) {
      if (texts++ % arguments.training.batch == 0) validation.emplace_back();
      task.add(text, rng, validation.back());
    }
  }
  std::cout << "training: " << corpus.documents() << " documents of " << corpus.tokens() << " tokens\n";

  Fingerprint data;
  data.add(corpus.words());
  Settings settings{
      {"model", to_json(config).dump()}, {"data", data.text()}, {"tokens", std::to_string(tokens)}};
  for (auto& setting : arguments.training.settings(arguments.steps)) settings.push_back(std::move(setting));
  Trainer<float> trainer(std::move(model), arguments.training.trainer(arguments.steps));
  if (!arguments.training.resume.empty()) trainer.load(arguments.training.resume, settings);
  if (!arguments.training.save.empty()) prepare_folder(arguments.training.save);

  Model<float>::Context context;
  const std::vector<std::string> scores{"validation_loss", "perplexity", "validation_accuracy"};
  train(
      trainer, arguments.training, arguments.steps, settings,
      validation.empty() ? std::vector<std::string>{} : scores,
      [&](std::mt19937_64& rng) {
        Texts<float> texts;
        while (texts.batch.sequences.size() < arguments.training.batch)
          task.add(corpus.random_window(rng), rng, texts);
        return texts;
      },
      [&](const Model<float>& trained, Index) {
        return validation.empty() ? Scores{} : score_words(trained, validation, context);
      });
  if (!arguments.training.save.empty())
    save_with_tokenizer(trainer.model(), arguments.folder, arguments.training.save);
}

void run(const Arguments& arguments) {
  const FolderTokenizer tokenizer(arguments.folder);
  const Config config = config_of(arguments);
  require_vocabulary(tokenizer, config, arguments.folder);
  Model<float> model = start_model(arguments.folder, config, arguments.training.seed);
  if (config.task == Task::masked_words) {
    train_on(std::move(model), arguments, tokenizer,
             MaskedWords(tokenizer, config.vocabulary, arguments.folder));
  } else {
    train_on(std::move(model), arguments, tokenizer, NextWord());
  }
}

}  // namespace

int main(int argc, char** argv) {
  return exit_code_of("pretrain", [&] {
    const Arguments arguments = parse(CommandWords({argv + 1, argv + argc}));
    if (arguments.help) std::cout << usage << training_help << more_help;
    else run(arguments);
  });
}

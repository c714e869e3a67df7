/// Fine-tunes BERT on GLUE's tasks and others of their kind, and says how good it is: one learns how experts
/// are made of a published dense model's blocks and trained with it. `--help` says more.

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "command_line.hpp"
#include "data/expert_use.hpp"
#include "data/fingerprint.hpp"
#include "data/glue_tasks.hpp"
#include "data/labelled_texts.hpp"
#include "data/predictions.hpp"
#include "mixture_options.hpp"
#include "model/model_folder.hpp"
#include "text/folder_tokenizer.hpp"
#include "train/saved_folder.hpp"
#include "train/train.hpp"

namespace {

using namespace transformer;
using Path = std::filesystem::path;

constexpr std::string_view usage = R"(usage: glue DIR --task=TASK --data=DATA [options]
       glue DIR --train=FILE --dev=FILE [--test=FILE] --text=COL --label=COL [options]

Trains the BERT of DIR, a folder with model.safetensors, config.json and vocab.txt, on
texts or pairs of them and says how good it is. A classifier that DIR lacks starts at
random.

  --task=TASK               cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte or wnli
  --data=DATA               the folder with the task's train.tsv, dev.tsv and test.tsv
                            (MNLI: dev_matched.tsv, dev_mismatched.tsv, …), as GLUE is
                            distributed
  --predictions=DIR3        write what is predicted for the test set, in GLUE's format
or
  --train, --dev, --test    tables: columns apart by tabs, quotes are text
  --text=COL --pair=COL     columns of the text, and of the second one of a pair
  --label=COL               that of the label; columns by their names in the first line,
                            or with --no-header by number, from 1 on
  --labels=A,B,…            the classes  (default those of --train, in alphabetical order)
  --regression              labels are numbers
  --no-header

  --tokens=T                longer texts are cut, the longer of a pair first
                                                  (default all of the model's, to 128)
  --epochs=E                passes over the training texts                  (default 3)
  --steps=S                 of the whole run, instead of --epochs
  --evaluate                do not train, only evaluate and predict
  --ffn=moe|meo             make each feed-forward projection of a dense model a mixture
                            whose experts are copies of it
  --level=L                 token, sequence or task               (default sequence)
  --experts=N --top-k=K                                               (default 8, 2)
  --description=TEXT        of the task, at level task
  --experts-log=FILE        which experts each gate selects for the classes of the dev
                            set, as CSV, at every progress line
)";

constexpr std::string_view more_help = R"(
Options may be written --name value, too. The default learning rate is 2e-5.

Metrics: CoLA Matthews' correlation; MRPC and QQP accuracy and F1; STS-B Pearson's and
Spearman's correlation, which constant predictions have not (nan); others accuracy. Of
other tables accuracy, the mean of the classes' F1 and Matthews' correlation; with
--regression Pearson's and Spearman's.

Lines of QQP with too few columns are passed over, as GLUE's loaders do, and columns too
many in any of GLUE's files. All else that does not fit is an error with file, line and
column.

Columns of the log: step, loss and balance_loss (means since the line before),
learning_rate, the metrics (of MNLI's second set with mm_ before), flops_per_token (of a
forward without the head), tokens_per_second, seconds (of training alone). Exit code: 0 fine, 1 what is read does not fit, or an
output cannot be written (which is tried before the first step), 2 wrong options.
)";

struct Arguments {
  std::string folder, task, data, train, dev, test, predictions, experts_log, description;
  Columns columns;
  std::vector<std::string> labels;
  bool regression = false, evaluate = false, help = false;
  Index epochs = 3;
  std::optional<Index> tokens, steps;
  TrainingOptions training{2e-5};
  std::optional<MixtureConfig> mixture;
};

std::vector<std::string> parts_of(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text + ',');
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

Arguments parse(CommandWords words) {
  Arguments arguments;
  MixtureOptions mixture;
  while (!words.done()) {
    const std::string word = words.take();
    const auto count = [&](Index least) { return whole_number<Index>(word, words.value_of(word), least); };
    if (word == "--help" || word == "-h") arguments.help = true;
    else if (word == "--task") arguments.task = words.value_of(word);
    else if (word == "--data") arguments.data = words.path_of(word);
    else if (word == "--train") arguments.train = words.path_of(word);
    else if (word == "--dev") arguments.dev = words.path_of(word);
    else if (word == "--test") arguments.test = words.path_of(word);
    else if (word == "--predictions") arguments.predictions = words.path_of(word);
    else if (word == "--experts-log") arguments.experts_log = words.path_of(word);
    else if (word == "--text") arguments.columns.text = words.value_of(word);
    else if (word == "--pair") arguments.columns.pair = words.value_of(word);
    else if (word == "--label") arguments.columns.label = words.value_of(word);
    else if (word == "--labels") arguments.labels = parts_of(words.value_of(word));
    else if (word == "--regression") arguments.regression = true;
    else if (word == "--no-header") arguments.columns.has_header = false;
    else if (word == "--tokens") arguments.tokens = count(4);
    else if (word == "--epochs") arguments.epochs = count(1);
    else if (word == "--steps") arguments.steps = count(1);
    else if (word == "--evaluate") arguments.evaluate = true;
    else if (word == "--description") arguments.description = words.value_of(word);
    else if (word.starts_with("-")) {
      if (!arguments.training.take(word, words) && !mixture.take(word, words))
        throw UsageError("unknown option '" + word + "'");
    } else if (arguments.folder.empty()) arguments.folder = word;
    else throw UsageError("expected one folder, got also '" + word + "'");
  }
  if (arguments.help) return arguments;
  if (arguments.folder.empty()) throw UsageError("expected a folder");
  const bool has_tables = !(arguments.train + arguments.dev + arguments.test + arguments.columns.text +
                            arguments.columns.pair + arguments.columns.label)
                               .empty() ||
                          !arguments.labels.empty() || arguments.regression || !arguments.columns.has_header;
  if (arguments.task.empty() != arguments.data.empty()) throw UsageError("--task and --data need each other");
  if (arguments.task.empty() != has_tables)
    throw UsageError("expected --task and --data, or --train, --dev, --text and --label");
  if (has_tables) {
    for (const auto& [option, value] : {std::pair("--train", arguments.train),
                                        {"--dev", arguments.dev},
                                        {"--text", arguments.columns.text},
                                        {"--label", arguments.columns.label}}) {
      if (value.empty()) throw UsageError(std::string("expected ") + option);
    }
    if (arguments.regression && !arguments.labels.empty())
      throw UsageError("expected --labels or --regression, got both");
  }
  if (has_tables && arguments.test.empty() != arguments.predictions.empty())
    throw UsageError("--test and --predictions need each other");
  require_distinct({arguments.training.log, arguments.training.checkpoint, arguments.experts_log});
  arguments.mixture = mixture.mixture();
  return arguments;
}

/// What is learned, and from which files.
struct Job {
  TextTask task;
  bool is_glue = false;
  Path train;
  struct Set {
    std::string prefix;  ///< of its metrics' names
    Path dev, test;
    std::string submission;
  };
  std::vector<Set> sets;
};

Job job_of(const Arguments& arguments) {
  if (arguments.task.empty()) {
    Job job;
    job.train = arguments.train;
    job.sets.push_back({"", arguments.dev, arguments.test, "predictions"});
    job.task.columns = job.task.test_columns = arguments.columns;
    job.task.test_columns.label.clear();
    if (arguments.regression) {
      job.task.metrics = {Metric::pearson, Metric::spearman};
      return job;
    }
    job.task.metrics = {Metric::accuracy, Metric::macro_f1, Metric::matthews};
    job.task.labels =
        arguments.labels.empty() ? labels_in(arguments.train, arguments.columns) : arguments.labels;
    if (job.task.labels.size() < 2)
      throw meo::io::Error(arguments.train,
                           "expected at least two labels, got " + std::to_string(job.task.labels.size()));
    return job;
  }
  std::string all;
  for (const GlueTask& task : glue_tasks()) {
    all += (all.empty() ? "" : ", ") + std::string(task.name);
    if (task.name != arguments.task) continue;
    const Path data = arguments.data;
    Job job{.task = task.task, .is_glue = true, .train = data / "train.tsv", .sets = {}};
    for (const EvaluationSet& set : task.sets) {
      const auto tsv = [&](std::string_view name) { return data / (std::string(name) + ".tsv"); };
      job.sets.push_back(
          {job.sets.empty() ? "" : "mm_", tsv(set.file), tsv(set.test_file), std::string(set.submission)});
    }
    return job;
  }
  throw UsageError("--task: expected one of " + all + ", got '" + arguments.task + "'");
}

Config config_of(const Arguments& arguments, const Job& job) {
  Config config = load_config_with(arguments.folder, arguments.mixture);
  if (config.family != Family::bert)
    throw meo::io::Error(arguments.folder, "model_type: expected bert, got gpt2");
  config.task = job.task.is_regression() ? Task::regression : Task::classification;
  config.labels = job.task.is_regression() ? 1 : static_cast<Index>(job.task.labels.size());
  arguments.training.apply_to(config);
  if (config.has_tasks() == arguments.description.empty())
    throw UsageError("--description and task level need each other");
  if (config.mixture.kind == Mixture::none && !arguments.experts_log.empty())
    throw UsageError("--experts-log needs a model with mixtures");
  if (job.task.is_regression() && !arguments.experts_log.empty())
    throw UsageError("--experts-log needs a task with classes");
  return config;
}

/// A whole run for one task.
class Run {
 public:
  Run(const Arguments& arguments, Job job)
      : arguments_(arguments),
        job_(std::move(job)),
        config_(config_of(arguments, job_)),
        tokens_(most_tokens(arguments.tokens, config_)),
        tokenizer_(arguments.folder) {
    require_vocabulary(tokenizer_, config_, arguments.folder);
    if (config_.has_tasks()) task_words_ = tokenizer_.ids(arguments.description);
    if (!arguments.evaluate) train_ = load(job_.train, job_.task.columns);
    for (const Job::Set& set : job_.sets) dev_.push_back(load(set.dev, job_.task.columns));
    if (arguments.predictions.empty()) return;
    for (const Job::Set& set : job_.sets) test_.push_back(load(set.test, job_.task.test_columns));
    std::filesystem::create_directories(arguments.predictions);
    for (const Job::Set& set : job_.sets) meo::io::require_writable(file_of(set));
  }

  void operator()() {
    if (arguments_.evaluate) {
      const Model<float> model = load_model<float>(arguments_.folder, config_);
      for (const auto& [name, value] : evaluate(model)) std::cout << name << ' ' << value << '\n';
      write_test_sets(model);
      return;
    }
    Epochs epochs(train_.size(), arguments_.training.batch, arguments_.training.seed);
    const Index steps = arguments_.steps.value_or(arguments_.epochs * epochs.steps());
    Fingerprint data;
    train_.add_to(data);
    Settings settings{
        {"model", to_json(config_).dump()}, {"data", data.text()}, {"description", arguments_.description}};
    for (auto& setting : arguments_.training.settings(steps)) settings.push_back(std::move(setting));

    Trainer<float> trainer(start_model(arguments_.folder, config_, arguments_.training.seed),
                           arguments_.training.trainer(steps));
    if (!arguments_.training.resume.empty()) trainer.load(arguments_.training.resume, settings);
    if (!arguments_.training.save.empty()) prepare_folder(arguments_.training.save);
    Log experts_log(arguments_.experts_log, ExpertUse::header, trainer.steps());
    std::cout << "training: " << train_.size() << " texts, " << epochs.steps() << " steps an epoch\n";
    train(
        trainer, arguments_.training, steps, settings, names_of_scores(),
        [&](std::mt19937_64&) { return train_.batch(epochs.numbers(trainer.steps() + 1), task_words_); },
        [&](const Model<float>& model, Index step) {
          if (!arguments_.experts_log.empty()) {
            std::ostringstream lines;
            ExpertUse(model, dev_[0], task_words_, context_).write_csv(lines, step, job_.task.labels);
            experts_log.add(lines.str());
          }
          return evaluate(model);
        });
    if (!arguments_.training.save.empty())
      save_with_tokenizer(trainer.model(), arguments_.folder, arguments_.training.save);
    write_test_sets(trainer.model());
  }

 private:
  LabelledTexts load(const Path& file, const Columns& columns) const {
    const auto encode = [&](std::string_view text, std::optional<std::string_view> pair) {
      return tokenizer_.encode(text, pair, static_cast<std::size_t>(tokens_));
    };
    return load_texts(file, job_.task, columns, job_.is_glue, encode);
  }

  Path file_of(const Job::Set& set) const { return Path(arguments_.predictions) / (set.submission + ".tsv"); }

  std::vector<std::string> names_of_scores() const {
    std::vector<std::string> names;
    for (const Job::Set& set : job_.sets) {
      for (const Metric metric : job_.task.metrics)
        names.push_back(set.prefix + std::string(name_of(metric)));
    }
    return names;
  }

  Scores evaluate(const Model<float>& model) {
    const std::vector<std::string> names = names_of_scores();
    Scores scores;
    for (const LabelledTexts& texts : dev_) {
      const Predictions predictions = predict(model, texts, task_words_, context_);
      for (const Metric metric : job_.task.metrics)
        scores.emplace_back(names[scores.size()], score(metric, predictions, texts, config_.labels));
    }
    return scores;
  }

  void write_test_sets(const Model<float>& model) {
    for (std::size_t i = 0; i < test_.size(); ++i)
      write_predictions(file_of(job_.sets[i]), predict(model, test_[i], task_words_, context_), job_.task);
  }

  const Arguments& arguments_;
  Job job_;
  Config config_;
  Index tokens_;  ///< most of a text
  FolderTokenizer tokenizer_;
  TaskWords task_words_;
  LabelledTexts train_;
  std::vector<LabelledTexts> dev_, test_;
  Model<float>::Context context_;
};

}  // namespace

int main(int argc, char** argv) {
  return exit_code_of("glue", [&] {
    const Arguments arguments = parse(CommandWords({argv + 1, argv + argc}));
    if (arguments.help) std::cout << usage << training_help << more_help;
    else Run(arguments, job_of(arguments))();
  });
}

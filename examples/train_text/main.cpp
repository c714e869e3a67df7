/// Trains a small classifier of bytes whose feed-forward blocks are dense, MoE or MEO. `--help` says more.

#include <charconv>
#include <chrono>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include <meo/flops.hpp>
#include <meo/meo.hpp>

#include "data.hpp"
#include "model.hpp"
#include "trainer.hpp"

namespace {

using meo::Index;
using meo::Level;

constexpr const char* help_text = R"(usage: train_text [options] FILE...
       train_text [options] --domains

Learns from which file a window of bytes comes; validation windows are from parts
of the files that training never sees. With --domains it learns a made-up task in
which every window belongs to one of eight hidden domains, each with its own map.

  --layer=dense|moe|meo     feed-forward blocks                    (default meo)
  --level=token|sequence    what one gate decision covers     (default sequence)
  --experts=N --top-k=K                                           (default 8, 2)
  --width=D --hidden=H --blocks=L                            (default 64, 256, 2)
  --reduce-factor=R         MEO's token attention has D / R features  (default 8)
  --window=T --batch=B      bytes of a window, windows of a step  (default 64, 16)
  --steps=S                 to train to                            (default 400)
  --learning-rate=R                                              (default 0.001)
  --seed=N                                                           (default 1)
  --report=S                steps between two progress lines       (default 100)
  --log=FILE                a line of CSV for every progress line
  --experts-log=FILE        how the first gate used its experts, as CSV
  --checkpoint=FILE         written at the end
  --resume=FILE             a checkpoint to go on from; all else must be the same
)";

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::string layer = "meo", log, experts_log, checkpoint, resume;
  Level level = Level::sequence;
  Index experts = 8, top_k = 2, width = 64, hidden = 256, blocks = 2, reduce_factor = 8, window = 64,
        batch = 16, steps = 400, report = 100;
  double learning_rate = 1e-3;
  std::uint64_t seed = 1;
  bool domains = false, help = false;
  std::vector<std::string> files;
};

Index parse_count(const std::string& option, const std::string& text) {
  Index value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1)
    throw UsageError(option + " needs a whole number of at least 1, not '" + text + "'");
  return value;
}

double parse_positive(const std::string& option, const std::string& text) {
  std::size_t end = 0;
  double value = 0;
  try {
    value = std::stod(text, &end);  // not from_chars, which libc++ has for whole numbers only
  } catch (const std::exception&) {
  }
  if (end != text.size() || !(value > 0))
    throw UsageError(option + " needs a positive number, not '" + text + "'");
  return value;
}

Arguments parse(const std::vector<std::string>& words) {
  Arguments a;
  const auto choose = [](const std::string& option, const std::string& value,
                         std::initializer_list<const char*> choices) {
    for (const char* choice : choices) {
      if (value == choice) return;
    }
    throw UsageError(option + " cannot be '" + value + "'");
  };
  for (const std::string& word : words) {
    const std::string option = word.substr(0, word.find('='));
    const std::string value = option == word ? "" : word.substr(option.size() + 1);
    if (!word.starts_with("--")) a.files.push_back(word);
    else if (word == "--help") a.help = true;
    else if (word == "--domains") a.domains = true;
    else if (option == "--layer") choose(option, a.layer = value, {"dense", "moe", "meo"});
    else if (option == "--level") {
      choose(option, value, {"token", "sequence"});
      a.level = value == "token" ? Level::token : Level::sequence;
    } else if (option == "--experts") a.experts = parse_count(option, value);
    else if (option == "--top-k") a.top_k = parse_count(option, value);
    else if (option == "--width") a.width = parse_count(option, value);
    else if (option == "--hidden") a.hidden = parse_count(option, value);
    else if (option == "--blocks") a.blocks = parse_count(option, value);
    else if (option == "--reduce-factor") a.reduce_factor = parse_count(option, value);
    else if (option == "--window") a.window = parse_count(option, value);
    else if (option == "--batch") a.batch = parse_count(option, value);
    else if (option == "--steps") a.steps = parse_count(option, value);
    else if (option == "--report") a.report = parse_count(option, value);
    else if (option == "--seed") a.seed = static_cast<std::uint64_t>(parse_count(option, value));
    else if (option == "--learning-rate") a.learning_rate = parse_positive(option, value);
    else if (option == "--log") a.log = value;
    else if (option == "--experts-log") a.experts_log = value;
    else if (option == "--checkpoint") a.checkpoint = value;
    else if (option == "--resume") a.resume = value;
    else throw UsageError("unknown option '" + word + "'");
  }
  if (!a.help && a.domains != a.files.empty()) throw UsageError("expected files, or --domains alone");
  if (!a.domains && a.files.size() == 1) throw UsageError("expected at least two files");
  if (a.layer == "dense") {  // one expert, which MEO then uses where it lies
    a.experts = a.top_k = 1;
    a.level = Level::sequence;
  }
  return a;
}

/// Operations of a forward pass through the feed-forward blocks, for each token.
double flops_per_token(const Arguments& a) {
  const meo::Method method = a.layer == "dense" ? meo::Method::dense
                             : a.layer == "moe" ? meo::Method::moe
                                                : meo::Method::meo;
  const auto batch = meo::Sequences::uniform(a.batch, a.window);
  const auto projection = [&](Index in, Index out) {
    const meo::LayerOptions options{.in_features = in,
                                    .out_features = out,
                                    .num_experts = a.experts,
                                    .top_k = a.top_k,
                                    .level = a.level,
                                    .reduce_factor = a.reduce_factor};
    return static_cast<double>(meo::flops(method, meo::layer_shape<float>(options, batch)).total());
  };
  return static_cast<double>(a.blocks) * (projection(a.width, a.hidden) + projection(a.hidden, a.width)) /
         static_cast<double>(batch.tokens());
}

std::ofstream open(const std::string& path) {
  std::ofstream file;
  if (path.empty()) return file;
  file.open(path);
  if (!file) throw std::runtime_error("cannot write '" + path + "'");
  return file;
}

template <class Layer, class Task>
void train(const Arguments& a, const Task& task) {
  train_text::ModelOptions options;
  options.feed_forward = {.features = a.width,
                          .hidden_features = a.hidden,
                          .num_experts = a.experts,
                          .top_k = a.top_k,
                          .level = a.level,
                          .reduce_factor = a.reduce_factor};
  options.blocks = a.blocks;
  options.window = a.window;
  options.classes = task.classes();
  train_text::Trainer<Layer> trainer(options, {.learning_rate = a.learning_rate}, a.seed);
  if (!a.resume.empty()) trainer.load(a.resume);

  constexpr Index validation_windows = 1000;
  const train_text::Batch validation = task.validation(validation_windows);
  std::ofstream log = open(a.log), experts_log = open(a.experts_log);
  log << "step,loss,training_accuracy,validation_accuracy,tokens_per_second,seconds,flops_per_token\n";
  meo::RoutingStatistics::write_csv_header(experts_log);
  meo::RoutingStatistics statistics(a.experts);

  double seconds = 0, loss = 0;
  Index steps = 0;
  while (trainer.steps() < a.steps) {
    std::mt19937_64 rng = trainer.rng_of_step();
    const train_text::Batch batch = task.training(rng, a.batch);
    const auto start = std::chrono::steady_clock::now();
    loss += static_cast<double>(trainer.step(batch, rng));
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (steps++ == 0) statistics.reset();
    statistics.add(trainer.routing());
    if (trainer.steps() % a.report != 0 && trainer.steps() != a.steps) continue;

    const double speed = static_cast<double>(steps * a.batch * a.window) / seconds;
    const double training = trainer.accuracy(batch), validated = trainer.accuracy(validation);
    std::cout << "step " << std::setw(6) << trainer.steps() << std::fixed << std::setprecision(4) << "  loss "
              << loss / static_cast<double>(steps) << "  accuracy " << validated << std::setprecision(0)
              << "  tokens/s " << speed << std::setprecision(2) << "  experts";
    for (Index e = 0; e < a.experts; ++e) std::cout << ' ' << statistics.share(e);
    std::cout << std::endl;
    log << trainer.steps() << ',' << loss / static_cast<double>(steps) << ',' << training << ',' << validated
        << ',' << speed << ',' << seconds << ',' << flops_per_token(a) << '\n';
    statistics.write_csv(experts_log, trainer.steps());
    seconds = loss = 0;
    steps = 0;
  }
  std::cout << "the first gate over the steps of the last line:\n";
  meo::RoutingStatistics::write_csv_header(std::cout);
  statistics.write_csv(std::cout, trainer.steps());
  if (!a.checkpoint.empty()) trainer.save(a.checkpoint);
}

template <class Task>
void train(const Arguments& a, const Task& task) {
  if (a.layer == "moe") train<meo::MoeLayer<float>>(a, task);
  else train<meo::MeoLayer<float>>(a, task);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = parse({argv + 1, argv + argc});
    if (arguments.help) std::cout << help_text;
    else if (arguments.domains) train(arguments, train_text::DomainTask(1, arguments.window));
    else train(arguments, train_text::FileTask(arguments.files, arguments.window));
    return 0;
  } catch (const UsageError& error) {
    std::cerr << "train_text: " << error.what() << "; --help lists the options\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "train_text: " << error.what() << '\n';
    return 1;
  }
}

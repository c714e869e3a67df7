/// Trains a small classifier of bytes whose feed-forward blocks are dense, MoE or MEO: one learns how a model
/// around them is trained, logged and resumed. `--help` says more.

#include <chrono>
#include <exception>
#include <iomanip>
#include <iostream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>

#include <meo/flops.hpp>
#include <meo/io/output_file.hpp>
#include <meo/meo.hpp>

#include "data.hpp"
#include "gate_statistics.hpp"
#include "log.hpp"
#include "model.hpp"
#include "options.hpp"
#include "trainer.hpp"

namespace {

using meo::Index;
using train_text::Arguments;
using train_text::GateStatistics;

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
                                    .routing = {.level = a.level, .reduce_factor = a.reduce_factor}};
    return static_cast<double>(meo::flops(method, meo::layer_shape<float>(options, batch)).total());
  };
  return static_cast<double>(a.blocks) * (projection(a.width, a.hidden) + projection(a.hidden, a.width)) /
         static_cast<double>(batch.tokens());
}

std::string experts_log_header() {
  std::ostringstream line;
  GateStatistics::write_csv_header(line);
  return line.str().substr(0, line.str().size() - 1);  // without its end
}

void train(const Arguments& a, const train_text::Task& task) {
  train_text::ModelOptions options;
  options.feed_forward = {.features = a.width,
                          .hidden_features = a.hidden,
                          .num_experts = a.experts,
                          .top_k = a.top_k,
                          .routing = {.level = a.level, .reduce_factor = a.reduce_factor}};
  options.is_moe = a.layer == "moe";
  options.blocks = a.blocks;
  options.window = a.window;
  options.classes = task.classes();
  train_text::Trainer trainer(options, {.learning_rate = a.learning_rate}, a.seed);
  const train_text::Settings settings = train_text::settings(a, task.description());
  if (!a.resume.empty()) trainer.load(a.resume, settings);
  if (trainer.steps() >= a.steps) {
    std::cout << "nothing to do: '" << a.resume << "' has " << trainer.steps() << " steps\n";
    return;
  }

  if (!a.checkpoint.empty()) meo::io::require_writable(a.checkpoint);
  constexpr Index validation_windows = 1000;
  const train_text::Batch validation = task.validation(validation_windows);
  train_text::Log log(a.log,
                      "step,loss,training_accuracy,validation_accuracy,tokens_per_second,seconds,"
                      "flops_per_token",
                      trainer.steps());
  train_text::Log experts_log(a.experts_log, experts_log_header(), trainer.steps());
  log.open();
  experts_log.open();

  GateStatistics statistics;
  double seconds = 0, loss = 0;  // since the last line, as are the statistics
  Index steps = 0;
  while (trainer.steps() < a.steps) {
    std::mt19937_64 rng = trainer.rng_of_step();
    const train_text::Batch batch = task.training(rng, a.batch);
    const auto start = std::chrono::steady_clock::now();
    loss += static_cast<double>(trainer.step(batch, rng));
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (steps++ == 0) statistics.reset();
    trainer.visit_gates(
        [&](const std::string& gate, const meo::Routing<float>& routing) { statistics.add(gate, routing); });
    if (trainer.steps() % a.report != 0 && trainer.steps() != a.steps) continue;

    const double speed = static_cast<double>(steps * a.batch * a.window) / seconds;
    const double training = trainer.accuracy(batch), validated = trainer.accuracy(validation);
    std::cout << "step " << std::setw(6) << trainer.steps() << std::fixed << std::setprecision(4) << "  loss "
              << loss / static_cast<double>(steps) << "  accuracy " << validated << std::setprecision(0)
              << "  tokens/s " << speed << std::setprecision(2) << "  experts";
    for (Index e = 0; e < a.experts; ++e) std::cout << ' ' << statistics.first().share(e);
    std::cout << std::endl;
    std::ostringstream line, experts_lines;
    line << trainer.steps() << ',' << loss / static_cast<double>(steps) << ',' << training << ',' << validated
         << ',' << speed << ',' << seconds << ',' << flops_per_token(a) << '\n';
    statistics.write_csv(experts_lines, trainer.steps());
    log.add(line.str());
    experts_log.add(experts_lines.str());
    // After the logs, so that they never lack lines of a checkpoint's past.
    if (!a.checkpoint.empty()) trainer.save(a.checkpoint, settings);
    seconds = loss = 0;
    steps = 0;
  }
  std::cout << "every gate over the steps of the last line:\n" << experts_log_header() << '\n';
  statistics.write_csv(std::cout, trainer.steps());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = train_text::parse({argv + 1, argv + argc});
    if (arguments.help) std::cout << train_text::help_text;
    else if (arguments.domains) train(arguments, train_text::DomainTask(1, arguments.window));
    else train(arguments, train_text::FileTask(arguments.files, arguments.window));
    if (!std::cout.flush()) throw std::runtime_error("cannot write to standard output");
    return 0;
  } catch (const train_text::UsageError& error) {
    std::cerr << "train_text: " << error.what() << "; --help lists the options\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "train_text: " << error.what() << '\n';
    return 1;
  }
}

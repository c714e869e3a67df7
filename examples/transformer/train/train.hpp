#pragma once

/// A run of training from its first or its last checkpoint's step to the end.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <meo/io/error.hpp>
#include <meo/io/output_file.hpp>

#include "../model/model_flops.hpp"
#include "../model/model_folder.hpp"
#include "log.hpp"
#include "progress.hpp"
#include "trainer.hpp"
#include "training_options.hpp"

namespace transformer {

/// How good a model is, by names that stay the same during a run.
using Scores = std::vector<std::pair<std::string, double>>;

/// Throws UsageError if two of the files are one.
inline void require_distinct(std::vector<std::string> files) {
  std::erase_if(files, [](const std::string& file) {
    std::error_code error;
    return file.empty() || std::filesystem::is_character_file(file, error);  // /dev/null loses nothing
  });
  for (std::size_t i = 0; i < files.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      std::error_code error;
      if (std::filesystem::weakly_canonical(files[i], error) ==
          std::filesystem::weakly_canonical(files[j], error))
        throw UsageError("expected a file of its own for each output, got '" + files[i] + "' twice");
    }
  }
}

/// Creates the folder if it is not there. Throws meo::io::Error if no model can be written there.
inline void prepare_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw meo::io::Error(folder.string(), "cannot be created: " + error.message());
  for (const char* const file : {tensors_file, config_file}) meo::io::require_writable(folder / file);
}

inline std::string joined(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += name + ",";
  return all;
}

/// next(rng): the texts of a step. evaluate(model, step): Scores of these names, at every progress line.
/// Throws std::runtime_error where the loss is no finite number any more.
template <class Scalar, class Next, class Evaluate>
void train(Trainer<Scalar>& trainer, const TrainingOptions& options, Index steps, const Settings& settings,
           const std::vector<std::string>& scores, const Next& next, const Evaluate& evaluate) {
  Log log(
      options.log,
      "step,loss,balance_loss,learning_rate," + joined(scores) + "flops_per_token,tokens_per_second,seconds",
      trainer.steps());
  if (!options.checkpoint.empty()) meo::io::require_writable(options.checkpoint);

  const Schedule schedule = options.trainer(steps).schedule;
  const Progress progress(steps, trainer.steps());
  double loss = 0, balance_loss = 0, flops = 0, tokens = 0, seconds = 0;  // since the last line
  Index steps_of_line = 0;
  while (!trainer.done()) {
    std::mt19937_64 rng = trainer.rng_of_step();
    const auto texts = next(rng);
    const auto start = std::chrono::steady_clock::now();
    const auto losses = trainer.step(texts, rng);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const Index step = trainer.steps();
    if (!std::isfinite(losses.task)) {
      throw std::runtime_error("step " + std::to_string(step) + ": expected a finite loss, got " +
                               std::to_string(losses.task) + "; --learning-rate may be too large");
    }
    loss += static_cast<double>(losses.task);
    balance_loss += static_cast<double>(losses.balance);
    flops += static_cast<double>(model_flops(trainer.model().config(), false, texts.batch.sequences).total());
    tokens += static_cast<double>(texts.batch.tokens());
    ++steps_of_line;
    progress.draw_bar(step);
    if (step % options.report != 0 && !trainer.done()) continue;

    const double share = 1 / static_cast<double>(steps_of_line);
    std::ostringstream screen, line;
    screen << "step " << step << " of " << steps << std::fixed << std::setprecision(4) << "  loss "
           << share * loss;
    line << step << ',' << share * loss << ',' << share * balance_loss << ',' << schedule.rate(step) << ',';
    for (const auto& [name, value] : evaluate(trainer.model(), step)) {
      screen << "  " << name << ' ' << value;
      line << value << ',';
    }
    line << flops / tokens << ',' << tokens / seconds << ',' << seconds << '\n';
    screen << std::setprecision(0) << "  tokens/s " << tokens / seconds << "  left " << progress.left(step);
    progress.clear_bar();
    std::cout << screen.str() << std::endl;
    log.add(line.str());
    // After the log, so that it never lacks lines of a checkpoint's past.
    if (!options.checkpoint.empty()) trainer.save(options.checkpoint, settings);
    loss = balance_loss = flops = tokens = seconds = 0;
    steps_of_line = 0;
  }
}

}  // namespace transformer

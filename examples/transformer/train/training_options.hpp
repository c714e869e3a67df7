#pragma once

/// The options that pretrain and glue have in common, but for those of mixtures.

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include <meo/io/output_file.hpp>

#include "../command_line.hpp"
#include "../model/config.hpp"
#include "trainer.hpp"

namespace transformer {

/// Their part of --help, which begins with the steps' own.
inline constexpr std::string_view training_help =
    R"(  --batch=B                 texts of a step                               (default 32)
  --learning-rate=R         the greatest: it grows and falls linearly
  --warm-up=P               part of the steps in which it grows          (default 0.1)
  --weight-decay=R          of all but biases and layer norms           (default 0.01)
  --clip=R                  greatest norm of all gradients together        (default 1)
  --dropout=P               instead of the config's
  --no-gate-noise           gates decide without noise in training, too
  --freeze                  train mixtures alone, and the classifier if there is one
  --seed=N                                                                 (default 1)
  --report=S                steps from one progress line to the next     (default 100)
  --log=FILE                a line of CSV for every progress line
  --checkpoint=FILE         written at every progress line, whole or not at all
  --resume=FILE             a checkpoint to go on from, of the same data and options,
                            but for --report and files to write; logs go on behind
                            the checkpoint's step
  --save=DIR2               write the model to DIR2, with DIR's vocabulary, at the end
)";

/// Of a text: as --tokens has it, else all that the model has positions for, up to 128. Throws UsageError for
/// more than the model has.
inline Index most_tokens(const std::optional<Index>& asked, const Config& config) {
  if (asked && *asked > config.positions) {
    throw UsageError("--tokens: expected at most " + std::to_string(config.positions) +
                     ", as the model has positions, got " + std::to_string(*asked));
  }
  return asked.value_or((std::min)(config.positions, Index{128}));
}

struct TrainingOptions {
  Index batch = 32, report = 100;
  double learning_rate, warm_up = 0.1;
  OptimizerOptions optimizer = {};
  std::optional<double> dropout;
  bool gate_noise = true;
  std::uint64_t seed = 1;
  std::string log, checkpoint, resume, save;  ///< paths, empty for none

  explicit TrainingOptions(double rate) : learning_rate(rate) {}

  /// Whether the option is one of these, whose value it then takes. Throws UsageError for a wrong value.
  bool take(const std::string& option, CommandWords& words) {
    const auto count = [&] { return whole_number<Index>(option, words.value_of(option), 1); };
    const auto number = [&](double least, double limit) {
      return number_within(option, words.value_of(option), least, limit);
    };
    constexpr double any = std::numeric_limits<double>::infinity();
    constexpr double above_zero = std::numeric_limits<float>::min();
    if (option == "--batch") batch = count();
    else if (option == "--learning-rate") learning_rate = number(0, any);
    else if (option == "--warm-up") warm_up = number(0, 1);
    else if (option == "--weight-decay") optimizer.weight_decay = number(0, any);
    else if (option == "--clip") optimizer.clip = number(above_zero, any);
    else if (option == "--dropout") dropout = number(0, 1);
    else if (option == "--no-gate-noise") gate_noise = false;
    else if (option == "--freeze") optimizer.only_mixtures = true;
    else if (option == "--seed") seed = whole_number<std::uint64_t>(option, words.value_of(option), 0);
    else if (option == "--report") report = count();
    else if (option == "--log") log = words.path_of(option);
    else if (option == "--checkpoint") checkpoint = words.path_of(option);
    else if (option == "--resume") resume = words.path_of(option);
    else if (option == "--save") save = words.path_of(option);
    else return false;
    return true;
  }

  /// With another dropout where one is asked for.
  void apply_to(Config& config) const {
    if (!dropout) return;
    config.embedding_dropout = config.hidden_dropout = config.attention_dropout = config.classifier_dropout =
        *dropout;
  }

  TrainerOptions trainer(Index steps) const {
    return {.optimizer = optimizer,
            .schedule = {.peak = learning_rate, .steps = steps, .warm_up = warm_up},
            .gate_noise = gate_noise,
            .seed = seed};
  }

  /// What a run of so many steps depends on beside model and data.
  Settings settings(Index steps) const {
    return {{"steps-in-all", std::to_string(steps)},
            {"batch", std::to_string(batch)},
            {"learning-rate", text_of(learning_rate)},
            {"warm-up", text_of(warm_up)},
            {"weight-decay", text_of(optimizer.weight_decay)},
            {"clip", text_of(optimizer.clip)},
            {"dropout", dropout ? text_of(*dropout) : "the config's"},
            {"gate-noise", gate_noise ? "yes" : "no"},
            {"freeze", optimizer.only_mixtures ? "yes" : "no"},
            {"seed", std::to_string(seed)}};
  }

 private:
  /// The shortest text that is read as the same number.
  static std::string text_of(double value) {
    std::array<char, 32> text;
    return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
  }
};

}  // namespace transformer

#pragma once

/// The command line of meo_flops.

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <meo/flops.hpp>
#include <meo/types.hpp>

#include "program.hpp"

namespace bench::flops {

using meo::Index;
using meo::Level;
using meo::ModelShape;

struct Arguments {
  bool own_model = false;
  ModelShape model = meo::bert_base;
  Index experts = 8;
  std::vector<Index> top_k = {1, 2, 4, 8};
  Level level = Level::sequence;
  std::optional<std::string> csv;
  bool run = true;
  bool help = false;
};

inline Index parse_count(std::string_view option, std::string_view text) {
  constexpr Index largest = 1'000'000'000;
  Index value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 1 || value > largest)
    throw UsageError(std::string(option) + " needs a whole number from 1 to 1000000000, not '" +
                     std::string(text) + "'");
  return value;
}

inline std::vector<Index> parse_counts(std::string_view option, std::string_view text) {
  std::vector<Index> values;
  for (;;) {
    const std::size_t comma = text.find(',');
    values.push_back(parse_count(option, text.substr(0, comma)));
    if (comma == std::string_view::npos) return values;
    text.remove_prefix(comma + 1);
  }
}

inline Level parse_level(std::string_view text) {
  for (const Level level : {Level::token, Level::sequence, Level::task})
    if (text == to_string(level)) return level;
  throw UsageError("--level needs token, sequence or task, not '" + std::string(text) + "'");
}

/// Counts are 64-bit integers: a model beyond them is refused rather than miscounted.
inline void check_countable(const ModelShape& model, Index experts, Index top_k) {
  const auto tokens = static_cast<double>(model.tokens);
  const auto features = static_cast<double>(model.features);
  const auto parameters = features * static_cast<double>(model.hidden_features);
  const double attention = 4 * tokens * features * (2 * features + tokens);
  const double feed_forward = 4 * parameters * static_cast<double>(top_k) * (tokens + 1);
  const double head = 2 * tokens * features * (static_cast<double>(model.vocabulary) + features);
  const double gate = 2 * tokens * features * static_cast<double>(experts);
  if (static_cast<double>(model.layers) * (attention + feed_forward) + head + gate > 9e18)
    throw UsageError("the model is too large: its operations do not fit a 64-bit count");
}

/// Throws UsageError.
inline Arguments parse(const std::vector<std::string_view>& words) {
  Arguments arguments;
  Index experts = 0;
  std::vector<Index> top_k;
  const std::array<std::pair<std::string_view, Index*>, 6> counts{{
      {"--layers", &arguments.model.layers},
      {"--features", &arguments.model.features},
      {"--hidden-features", &arguments.model.hidden_features},
      {"--vocabulary", &arguments.model.vocabulary},
      {"--tokens", &arguments.model.tokens},
      {"--experts", &experts},
  }};

  for (auto word = words.begin(); word != words.end(); ++word) {
    if (*word == "--help" || *word == "-h") {
      arguments.help = true;
      return arguments;
    }
    if (*word == "--no-run") {
      arguments.run = false;
      continue;
    }

    const std::string_view option = word->substr(0, word->find('='));
    const auto count =
        std::find_if(counts.begin(), counts.end(), [&](const auto& c) { return c.first == option; });
    if (count == counts.end() && option != "--top-k" && option != "--level" && option != "--csv")
      throw UsageError("unknown option '" + std::string(*word) + "'");
    if (option == *word && (std::next(word) == words.end() || std::next(word)->starts_with("--")))
      throw UsageError(std::string(option) + " needs a value");
    const std::string_view value = option == *word ? *++word : word->substr(option.size() + 1);

    if (option == "--csv") {
      arguments.csv = value;
      continue;
    }
    arguments.own_model = true;
    if (count != counts.end()) *count->second = parse_count(option, value);
    else if (option == "--top-k") top_k = parse_counts(option, value);
    else arguments.level = parse_level(value);
  }

  if (!top_k.empty()) arguments.top_k = top_k;
  if (experts == 0) experts = *std::max_element(arguments.top_k.begin(), arguments.top_k.end());
  if (top_k.empty()) std::erase_if(arguments.top_k, [&](Index k) { return k > experts; });
  arguments.experts = experts;
  const Index largest_top_k = *std::max_element(arguments.top_k.begin(), arguments.top_k.end());
  if (largest_top_k > experts)
    throw UsageError("--top-k " + std::to_string(largest_top_k) + " is more than the " +
                     std::to_string(experts) + " experts");
  check_countable(arguments.model, experts, largest_top_k);
  return arguments;
}

}  // namespace bench::flops

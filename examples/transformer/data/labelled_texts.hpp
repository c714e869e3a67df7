#pragma once

/// Texts or pairs of them, as a classifier reads them, with their labels; from TSV files.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iostream>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meo/io/error.hpp>
#include <meo/types.hpp>

#include "../text/encoding.hpp"
#include "../train/random.hpp"
#include "../train/trainer.hpp"
#include "fingerprint.hpp"
#include "glue_tasks.hpp"
#include "tsv.hpp"

namespace transformer {

using Encode = std::function<Encoding(std::string_view, std::optional<std::string_view>)>;

/// The description of the task, at task level; else empty.
using TaskWords = std::vector<Index>;

struct LabelledTexts {
  std::vector<Encoding> texts;
  std::vector<Index> classes;  ///< of each, where classes are asked for and there are labels
  std::vector<double> values;  ///< regression

  Index size() const { return static_cast<Index>(texts.size()); }
  bool has_labels() const { return !classes.empty() || !values.empty(); }

  /// Those of these numbers.
  Texts<float> batch(std::span<const Index> numbers, const TaskWords& task) const {
    Texts<float> some;
    for (const Index number : numbers) {
      const auto i = static_cast<std::size_t>(number);
      some.batch.add(texts[i].input_ids, texts[i].token_type_ids);
      if (!classes.empty()) some.targets.classes.push_back(classes[i]);
      if (!values.empty()) some.targets.values.push_back(static_cast<float>(values[i]));
    }
    some.batch.task_words = task;
    if (!task.empty()) some.batch.descriptions = meo::Sequences::uniform(1, static_cast<Index>(task.size()));
    return some;
  }

  void add_to(Fingerprint& fingerprint) const {
    for (const Encoding& text : texts) fingerprint.add(std::span<const Id>(text.input_ids));
    fingerprint.add(std::span<const Index>(classes));
    fingerprint.add(std::span<const double>(values));
  }
};

/// The rows of a file; with labels where the columns name theirs. Lines that the task passes over are told of
/// on standard error. Throws meo::io::Error, with line and column, for all that does not fit, and for a file
/// without a row.
inline LabelledTexts load_texts(const std::filesystem::path& file, const TextTask& task,
                                const Columns& columns, bool ignores_more, const Encode& encode) {
  const bool has_labels = !columns.label.empty();
  Tsv tsv = Tsv::load(file, {.has_header = columns.has_header,
                             .ignores_more = ignores_more,
                             .skips_fewer = task.skips_short_lines && has_labels});
  std::vector<std::size_t> needed{tsv.column(columns.text)};
  const auto column = [&](const std::string& name) {
    needed.push_back(tsv.column(name));
    return needed.back();
  };
  const std::size_t text = needed[0], pair = columns.pair.empty() ? text : column(columns.pair),
                    label = has_labels ? column(columns.label) : text;
  if (const auto gone = tsv.require_columns(needed); !gone.empty()) {
    std::cerr << file.string() << ": passed over " << gone.size()
              << " lines that have too few columns, the first of them line " << gone[0] << '\n';
  }
  LabelledTexts all;
  for (std::size_t row = 0; row < tsv.rows(); ++row) {
    all.texts.push_back(encode(tsv.at(row, text), columns.pair.empty()
                                                      ? std::nullopt
                                                      : std::optional<std::string_view>(tsv.at(row, pair))));
    if (!has_labels) continue;
    if (task.is_regression()) all.values.push_back(tsv.number(row, label));
    else all.classes.push_back(tsv.choice(row, label, task.labels));
  }
  if (all.texts.empty()) throw meo::io::Error(file.string(), "expected at least one row, got none");
  return all;
}

/// The labels that a file has, in alphabetical order.
inline std::vector<std::string> labels_in(const std::filesystem::path& file, const Columns& columns) {
  Tsv tsv = Tsv::load(file, {.has_header = columns.has_header});
  const std::size_t label = tsv.column(columns.label);
  tsv.require_columns({label});
  std::set<std::string> labels;
  for (std::size_t row = 0; row < tsv.rows(); ++row) labels.insert(tsv.at(row, label));
  return {labels.begin(), labels.end()};
}

/// Which texts a step has: each once in an epoch, in an order of its own.
class Epochs {
 public:
  Epochs(Index texts, Index batch, std::uint64_t seed) : texts_(texts), batch_(batch), seed_(seed) {}

  Index steps() const { return (texts_ + batch_ - 1) / batch_; }

  /// Of a step, from 1 on. The last of an epoch has what is left.
  std::span<const Index> numbers(Index step) {
    const Index epoch = (step - 1) / steps(), first = (step - 1) % steps() * batch_;
    if (epoch != epoch_) {
      std::mt19937_64 rng = generator(seed_, Draw::order, epoch);
      order_ = random_order(rng, texts_, texts_);
      epoch_ = epoch;
    }
    return std::span(order_).subspan(static_cast<std::size_t>(first),
                                     static_cast<std::size_t>((std::min)(batch_, texts_ - first)));
  }

 private:
  Index texts_, batch_;
  std::uint64_t seed_;
  Index epoch_ = -1;
  std::vector<Index> order_;
};

}  // namespace transformer

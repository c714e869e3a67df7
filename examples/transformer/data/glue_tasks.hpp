#pragma once

/// GLUE's nine tasks (Wang et al. 2019, arXiv 1804.07461): the columns of their TSV files as they are
/// distributed, what is measured, and the files of a submission.

#include <array>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meo/types.hpp>

namespace transformer {

enum class Metric { accuracy, f1, macro_f1, matthews, pearson, spearman };

inline std::string_view name_of(Metric metric) {
  constexpr std::array<std::string_view, 6> names{"accuracy", "f1",      "macro_f1",
                                                  "matthews", "pearson", "spearman"};
  return names[static_cast<std::size_t>(metric)];
}

/// Names of columns, or their numbers from 1 on in a file without a header.
struct Columns {
  std::string text, pair, label;  ///< empty: there are none
  bool has_header = true;
};

struct TextTask {
  Columns columns;
  Columns test_columns;             ///< of the texts without labels
  std::vector<std::string> labels;  ///< the classes; empty: values
  std::vector<Metric> metrics;
  double least = -std::numeric_limits<double>::infinity();  ///< of values that are predicted
  double most = std::numeric_limits<double>::infinity();
  bool skips_short_lines = false;  ///< those with too few columns; but in a test set, whose rows are counted

  bool is_regression() const { return labels.empty(); }
};

/// A file of texts that are evaluated, without .tsv, and what a submission calls that of their predictions.
struct EvaluationSet {
  std::string_view file, test_file, submission;
};

struct GlueTask {
  std::string_view name;
  std::vector<EvaluationSet> sets;
  TextTask task;
};

/// In GLUE's order.
inline const std::vector<GlueTask>& glue_tasks() {
  const auto named = [](std::string text, std::string pair, std::string label) {
    return Columns{std::move(text), std::move(pair), std::move(label)};
  };
  const std::vector<std::string> binary{"0", "1"}, entailment{"entailment", "not_entailment"};
  const Columns sentences = named("sentence1", "sentence2", "label");
  const auto set = [](std::string_view submission) {
    return std::vector<EvaluationSet>{{"dev", "test", submission}};
  };
  static const std::vector<GlueTask> tasks{
      {"cola", set("CoLA"), {{"4", "", "2", false}, named("sentence", "", ""), binary, {Metric::matthews}}},
      {"sst-2",
       set("SST-2"),
       {named("sentence", "", "label"), named("sentence", "", ""), binary, {Metric::accuracy}}},
      {"mrpc",
       set("MRPC"),
       {named("#1 String", "#2 String", "Quality"),
        named("#1 String", "#2 String", ""),
        binary,
        {Metric::accuracy, Metric::f1}}},
      {"sts-b",
       set("STS-B"),
       {named("sentence1", "sentence2", "score"),
        named("sentence1", "sentence2", ""),
        {},
        {Metric::pearson, Metric::spearman},
        0,
        5}},
      {"qqp",
       set("QQP"),
       {named("question1", "question2", "is_duplicate"),
        named("question1", "question2", ""),
        binary,
        {Metric::accuracy, Metric::f1},
        {},
        {},
        true}},
      {"mnli",
       {{"dev_matched", "test_matched", "MNLI-m"}, {"dev_mismatched", "test_mismatched", "MNLI-mm"}},
       {named("sentence1", "sentence2", "gold_label"),
        named("sentence1", "sentence2", ""),
        {"contradiction", "entailment", "neutral"},
        {Metric::accuracy}}},
      {"qnli",
       set("QNLI"),
       {named("question", "sentence", "label"),
        named("question", "sentence", ""),
        entailment,
        {Metric::accuracy}}},
      {"rte", set("RTE"), {sentences, named("sentence1", "sentence2", ""), entailment, {Metric::accuracy}}},
      {"wnli", set("WNLI"), {sentences, named("sentence1", "sentence2", ""), binary, {Metric::accuracy}}}};
  return tasks;
}

}  // namespace transformer

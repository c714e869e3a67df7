#pragma once

/// Which experts the gates select for texts of each class.

#include <map>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <meo/routing/routing.hpp>

#include "labelled_texts.hpp"
#include "predictions.hpp"

namespace transformer {

class ExpertUse {
 public:
  static constexpr const char* header = "step,gate,class,expert,count,share";

  /// Of a model with mixtures, for texts with classes.
  ExpertUse(const Model<float>& model, const LabelledTexts& all, const TaskWords& task,
            Model<float>::Context& context) {
    const Training<float> keeps_all_layers{};  // and else is as inference
    for_each_batch(all, task, [&](std::span<const Index> numbers, const Texts<float>& texts) {
      model.forward(texts.batch, &keeps_all_layers, context);
      std::size_t number = 0;
      model.visit_projections([&](const std::string& name, const auto&) {
        const auto& block = context.trunk.layers[number / 2].feed_forward;
        const auto& routing = (number % 2 == 0 ? block.up : block.down).routing;
        ++number;
        for (std::size_t i = 0; i < numbers.size(); ++i)
          add(name, all.classes[static_cast<std::size_t>(numbers[i])], routing, texts.batch.sequences,
              static_cast<Index>(i));
      });
    });
  }

  /// A line for each gate, class and expert. share: of the class's selections.
  void write_csv(std::ostream& out, Index step, const std::vector<std::string>& classes) const {
    for (const auto& [key, counts] : counts_) {
      Index all = 0;
      for (const Index count : counts) all += count;
      for (std::size_t expert = 0; expert < counts.size(); ++expert) {
        out << step << ',' << key.first << ',' << csv_field(classes[static_cast<std::size_t>(key.second)])
            << ',' << expert << ',' << counts[expert] << ','
            << static_cast<double>(counts[expert]) / static_cast<double>(all) << '\n';
      }
    }
  }

 private:
  /// In quotes where a comma or a quote is part of it.
  static std::string csv_field(const std::string& text) {
    if (text.find_first_of(",\"") == std::string::npos) return text;
    std::string quoted = "\"";
    for (const char c : text) quoted.append(c == '"' ? 2 : 1, c);
    return quoted + '"';
  }

  /// Of a text: gates decide for texts, for tokens, or by a description for all texts.
  void add(const std::string& gate, Index of_class, const meo::Routing<float>& routing,
           const meo::Sequences& sequences, Index text) {
    auto& counts = counts_[{gate, of_class}];
    counts.resize(static_cast<std::size_t>(routing.num_experts));
    Index begin = text, end = text + 1;
    if (routing.rows == sequences.tokens()) begin = sequences.begin(text), end = sequences.begin(text + 1);
    else if (routing.rows == 1) begin = 0, end = 1;
    for (Index row = begin; row < end; ++row) {
      for (const Index expert : routing.row_experts(row)) ++counts[static_cast<std::size_t>(expert)];
    }
  }

  std::map<std::pair<std::string, Index>, std::vector<Index>> counts_;
};

}  // namespace transformer

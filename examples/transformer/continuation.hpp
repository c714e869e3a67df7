#pragma once

/// A text that GPT-2 goes on with, a word at a time.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "model/model.hpp"
#include "model/past.hpp"

namespace transformer {

class Continuation {
 public:
  /// The model has to live as long. Experts by the decision of the prompt; see model/past.hpp. Throws
  /// std::invalid_argument for a prompt that the model cannot read, as one of no word or of more than it has
  /// positions.
  Continuation(const Model<float>& model, const std::vector<Index>& prompt, Merging merging = Merging::once)
      : model_(model), past_(model.config(), merging) {
    compute(prompt);
  }

  /// Of the next word, one for each of the vocabulary.
  std::span<const float> logits() {
    const Rows<float> row = context_.logits();
    return {row.data(), static_cast<std::size_t>(row.size())};
  }

  /// Whether the model has a position for another word.
  bool has_room() const { return past_.tokens() < model_.config().positions; }

  /// Throws std::invalid_argument without room, or for a word that the model does not have.
  void add(Index word) { compute({word}); }

 private:
  void compute(const std::vector<Index>& words) {
    Batch batch;
    batch.add(words);
    batch.asked = {batch.tokens() - 1};
    model_.forward(batch, past_, context_);
  }

  const Model<float>& model_;
  Past<float> past_;
  Model<float>::Context context_;
};

struct Sampling {
  double temperature = 0;  ///< 0: the most probable word
  Index top_words = 0;     ///< draw from so many of the most probable alone; 0: from all
};

/// A word drawn by softmax(logits / temperature). Of equal logits the first word comes first.
inline Index draw_word(std::span<const float> logits, const Sampling& sampling, std::mt19937_64& rng) {
  std::vector<Index> order(logits.size());
  std::iota(order.begin(), order.end(), Index{0});
  const auto logit = [&](Index word) { return static_cast<double>(logits[static_cast<std::size_t>(word)]); };
  const auto size = static_cast<Index>(order.size());
  const Index wanted = sampling.temperature > 0 ? sampling.top_words : 1;
  const Index count = wanted > 0 ? (std::min)(wanted, size) : size;
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](Index a, Index b) { return logit(a) > logit(b) || (logit(a) == logit(b) && a < b); });
  if (count == 1) return order[0];
  std::vector<double> sums(static_cast<std::size_t>(count));
  double sum = 0;
  for (std::size_t i = 0; i < sums.size(); ++i)
    sums[i] = sum += std::exp((logit(order[i]) - logit(order[0])) / sampling.temperature);
  // 53 bits, written out so that a seed means the same with every standard library.
  const double drawn = std::ldexp(static_cast<double>(rng() >> 11), -53) * sum;
  const auto found = std::upper_bound(sums.begin(), sums.end() - 1, drawn);
  return order[static_cast<std::size_t>(found - sums.begin())];
}

}  // namespace transformer

#pragma once

/// What BERT and GPT-2 learn from plain text: words that are masked, and the next word.

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <meo/io/error.hpp>

#include "../model/batch.hpp"
#include "../model/config.hpp"
#include "../model/losses.hpp"
#include "../text/folder_tokenizer.hpp"
#include "../train/random.hpp"
#include "../train/train.hpp"

namespace transformer {

/// Texts [CLS] window [SEP], of whose window 15 % of the tokens, at least one, are asked for; of these 80 %
/// are [MASK], 10 % a random word and 10 % as they were (Devlin et al. 2019, arXiv 1810.04805).
class MaskedWords {
 public:
  static constexpr Index tokens_beside_window = 2;

  /// Throws meo::io::Error, which names the folder, if its vocabulary lacks one of these tokens.
  MaskedWords(const FolderTokenizer& tokenizer, Index vocabulary, const std::string& folder)
      : vocabulary_(vocabulary) {
    const auto id = [&](const char* token) {
      if (const auto found = tokenizer.find(token)) return *found;
      throw meo::io::Error(folder, std::string("expected a vocabulary with ") + token);
    };
    start_ = id("[CLS]");
    separator_ = id("[SEP]");
    mask_ = id("[MASK]");
  }

  void add(std::span<const Index> window, std::mt19937_64& rng, Texts<float>& texts) const {
    std::vector<Index> words{start_};
    words.insert(words.end(), window.begin(), window.end());
    words.push_back(separator_);
    const auto size = static_cast<Index>(window.size());
    const Index count =
        (std::max)(Index{1}, static_cast<Index>(std::lround(0.15 * static_cast<double>(size))));
    std::vector<Index> asked = random_order(rng, size, count);
    std::sort(asked.begin(), asked.end());
    for (const Index at : asked) {
      Index& word = words[static_cast<std::size_t>(at) + 1];
      texts.targets.classes.push_back(word);
      texts.batch.asked.push_back(texts.batch.tokens() + at + 1);
      const Index die = draw_below(rng, 10);
      if (die < 8) word = mask_;
      else if (die == 8) word = draw_below(rng, vocabulary_);
    }
    texts.batch.add(words);
  }

 private:
  Index vocabulary_, start_, separator_, mask_;
};

/// Windows as texts, each of whose tokens, but for the last, is asked for the one that follows it.
class NextWord {
 public:
  static constexpr Index tokens_beside_window = 0;

  void add(std::span<const Index> window, std::mt19937_64&, Texts<float>& texts) const {
    for (std::size_t i = 0; i + 1 < window.size(); ++i) {
      texts.batch.asked.push_back(texts.batch.tokens() + static_cast<Index>(i));
      texts.targets.classes.push_back(window[i + 1]);
    }
    texts.batch.add(window);
  }
};

/// Throws meo::io::Error, which names the file, for gates that see words which are yet to be predicted: those
/// of a whole text decide by all of it, and so does MEO at token level.
inline void require_causal(const Config& config, const std::string& file) {
  const MixtureConfig& mixture = config.mixture;
  if (config.task != Task::next_word || mixture.kind == Mixture::none ||
      mixture.level == meo::Level::segment ||
      (mixture.kind == Mixture::moe && mixture.level == meo::Level::token))
    return;
  throw meo::io::Error(file,
                       "level: expected segment, or token for MoE, as the next word is predicted, got " +
                           std::string(to_string(mixture.level)) + ", whose gates see the words that follow");
}

/// Mean loss, its exponential, and the part of the words that get the largest logit, over all texts.
inline Scores score_words(const Model<float>& model, const std::vector<Texts<float>>& batches,
                          Model<float>::Context& context) {
  double loss = 0, right = 0, asked = 0;
  for (const Texts<float>& texts : batches) {
    const Rows<float> logits = model.forward(texts.batch, nullptr, context);
    for (Index row = 0; row < logits.rows(); ++row) {
      Index best = 0;
      logits.row(row).maxCoeff(&best);
      right += best == texts.targets.classes[static_cast<std::size_t>(row)] ? 1 : 0;
    }
    const auto rows = static_cast<double>(logits.rows());
    loss += rows * static_cast<double>(loss_of<float>(context, model.config().task, texts.targets));
    asked += rows;
  }
  return {{"validation_loss", loss / asked},
          {"perplexity", std::exp(loss / asked)},
          {"validation_accuracy", right / asked}};
}

}  // namespace transformer

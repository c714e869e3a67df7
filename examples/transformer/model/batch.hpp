#pragma once

/// Texts as token ids, the tokens of all of them one after another: no padding exists.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

#include "require.hpp"

namespace transformer {

using meo::Index;

struct Batch {
  std::vector<Index> words;   ///< token ids
  meo::Sequences sequences;   ///< how they divide into texts
  std::vector<Index> types;   ///< BERT: 0, or 1 in the second of a pair of texts; empty: all 0
  std::vector<Index> places;  ///< position of each token in its text; empty: 0, 1, …

  /// Task level: the description of each text's task, as token ids, and how they divide into descriptions:
  /// one for all texts or one for each.
  std::vector<Index> task_words;
  meo::Sequences descriptions;

  /// Words' heads: the tokens whose outputs are wanted; empty: all. A large vocabulary makes them worth
  /// choosing, as those of the masked words alone.
  std::vector<Index> asked;

  Index tokens() const { return static_cast<Index>(words.size()); }

  /// Adds a text. The first call decides whether texts have types.
  void add(std::span<const Index> text, std::span<const Index> types_of_text = {}) {
    words.insert(words.end(), text.begin(), text.end());
    types.insert(types.end(), types_of_text.begin(), types_of_text.end());
    std::vector<Index> offsets(sequences.offsets().begin(), sequences.offsets().end());
    offsets.push_back(tokens());
    sequences = meo::Sequences::from_offsets(std::move(offsets));
  }
};

/// Position of each token in its text, into `places`. first: of a text's first token, where the batch says
/// nothing else.
inline void places_of(const Batch& batch, Index first, std::vector<Index>& places) {
  places = batch.places;
  if (!places.empty()) return;
  for (Index b = 0; b < batch.sequences.size(); ++b) {
    for (Index i = 0; i < batch.sequences.length(b); ++i) places.push_back(first + i);
  }
}

/// Throws std::invalid_argument unless all ids are from 0 to below `count`.
inline void require_ids(std::span<const Index> ids, Index count, std::string_view name) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    require(ids[i] >= 0 && ids[i] < count, name, " ", i, ": expected 0 to ", count - 1, ", got ", ids[i]);
  }
}

/// Throws std::invalid_argument unless a model of these sizes can read the batch. types: 0 where the model
/// has none.
inline void require_batch(const Batch& batch, Index vocabulary, Index positions, Index types) {
  const Index tokens = batch.tokens();
  require(batch.sequences.tokens() == tokens, "sequences: expected ", tokens,
          " tokens in all, as there are words, got ", batch.sequences.tokens());
  require(batch.sequences.size() > 0, "batch: expected at least one text, got none");
  const auto require_one_each = [&](const std::vector<Index>& values, std::string_view name) {
    require(values.empty() || static_cast<Index>(values.size()) == tokens, name, ": expected ", tokens,
            ", one for each word, got ", values.size());
  };
  require_one_each(batch.types, "types");
  require_one_each(batch.places, "places");
  for (Index b = 0; b < batch.sequences.size(); ++b) {
    const Index length = batch.sequences.length(b);
    require(length > 0, "text ", b, ": expected at least one token, got none");
    require(length <= positions, "text ", b, ": expected at most ", positions,
            " tokens, as the model has positions, got ", length);
  }
  require_ids(batch.words, vocabulary, "word");
  require_ids(batch.places, positions, "place");
  require(types > 0 || batch.types.empty(), "types: expected none by this model, got ", batch.types.size());
  require_ids(batch.types, types, "type");
  require_ids(batch.asked, tokens, "asked token");
}

/// The same of the descriptions of tasks.
inline void require_descriptions(const Batch& batch, Index vocabulary) {
  require_ids(batch.task_words, vocabulary, "task word");
  const Index descriptions = batch.descriptions.size(), texts = batch.sequences.size();
  require(descriptions == 1 || descriptions == texts, "descriptions: expected 1 or one for each of ", texts,
          " texts, got ", descriptions);
  require(batch.descriptions.tokens() == static_cast<Index>(batch.task_words.size()),
          "descriptions: expected ", batch.task_words.size(), " words in all, as there are task words, got ",
          batch.descriptions.tokens());
}

}  // namespace transformer

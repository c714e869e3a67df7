#pragma once

/// A model of whatever kind a config says, for programs that learn it from a file.

#include <variant>

#include "model.hpp"

namespace transformer {

template <class Scalar>
using AnyModel = std::variant<BertClassifier<Scalar>, BertMaskedWords<Scalar>, Gpt2NextWord<Scalar>>;

/// Throws std::invalid_argument for a config that makes no model.
template <class Scalar>
AnyModel<Scalar> make_model(const Config& config) {
  switch (config.task) {
    case Task::classification:
    case Task::regression:
      break;
    case Task::masked_words:
      return BertMaskedWords<Scalar>(config);
    case Task::next_word:
      return Gpt2NextWord<Scalar>(config);
  }
  return BertClassifier<Scalar>(config);
}

}  // namespace transformer

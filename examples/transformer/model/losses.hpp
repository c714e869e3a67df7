#pragma once

/// Losses of a model's outputs, with their gradients.

#include <numeric>
#include <span>
#include <vector>

#include <meo/types.hpp>

#include "activations.hpp"
#include "batch.hpp"
#include "parallel.hpp"
#include "require.hpp"
#include "softmax.hpp"

namespace transformer {

/// The label of a row that is not asked for.
inline constexpr Index no_label = -100;

/// Mean of −log softmax(logits)_label over the rows with a label, 0 where there are none. logits: rows ×
/// classes, replaced by their gradient. Throws std::invalid_argument for another number of labels or one that
/// is no class.
template <class Scalar>
Scalar cross_entropy(Rows<Scalar> logits, std::span<const Index> labels) {
  require(static_cast<Index>(labels.size()) == logits.rows(), "labels: expected ", logits.rows(), ", got ",
          labels.size());
  Index asked = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] == no_label) continue;
    ++asked;
    require(labels[i] >= 0 && labels[i] < logits.cols(), "label ", i, ": expected 0 to ", logits.cols() - 1,
            " or ", no_label, ", got ", labels[i]);
  }
  const auto share = asked > 0 ? Scalar(1) / static_cast<Scalar>(asked) : Scalar(0);
  std::vector<Scalar> losses(labels.size(), Scalar(0));
  parallel_ranges(logits.rows(), [&](Index begin, Index end, Index) {
    for (Index row = begin; row < end; ++row) {
      const Index label = labels[static_cast<std::size_t>(row)];
      if (label == no_label) {
        logits.row(row).setZero();
        continue;
      }
      const Scalar of_label = logits(row, label);
      losses[static_cast<std::size_t>(row)] = softmax(logits.row(row).data(), logits.cols()) - of_label;
      logits(row, label) -= Scalar(1);
      logits.row(row) *= share;
    }
  });
  return share * static_cast<Scalar>(std::accumulate(losses.begin(), losses.end(), 0.0));
}

/// Mean of (value − target)². values: rows × 1, replaced by their gradient. Throws std::invalid_argument for
/// another number of targets.
template <class Scalar>
Scalar squared_error(Rows<Scalar> values, std::span<const Scalar> targets) {
  require(static_cast<Index>(targets.size()) == values.size(), "labels: expected ", values.size(), ", got ",
          targets.size());
  const auto share = Scalar(1) / static_cast<Scalar>(values.size());
  double sum = 0;
  for (Index i = 0; i < values.size(); ++i) {
    const Scalar error = values.data()[i] - targets[static_cast<std::size_t>(i)];
    sum += static_cast<double>(error * error);
    values.data()[i] = Scalar(2) * share * error;
  }
  return share * static_cast<Scalar>(sum);
}

/// Labels for the prediction of the next word: each token's is the one that follows it; the last of a text
/// has none.
inline std::vector<Index> next_words(const Batch& batch, std::span<const Index> labels) {
  std::vector<Index> next(labels.size(), no_label);
  for (Index b = 0; b < batch.sequences.size(); ++b) {
    for (Index t = batch.sequences.begin(b); t + 1 < batch.sequences.begin(b + 1); ++t)
      next[static_cast<std::size_t>(t)] = labels[static_cast<std::size_t>(t) + 1];
  }
  return next;
}

}  // namespace transformer

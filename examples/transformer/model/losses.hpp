#pragma once

/// Losses of a model's outputs, with their gradients.

#include <cmath>
#include <span>
#include <vector>

#include <meo/errors.hpp>
#include <meo/parallel.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

#include "activations.hpp"
#include "batch.hpp"
#include "softmax.hpp"

namespace transformer {

/// The label of a row that is not asked for.
inline constexpr Index no_label = -100;

/// Mean of −log softmax(logits)_label over the rows with a label, 0 where there are none. logits: rows ×
/// classes, replaced by their gradient. Throws std::invalid_argument for another number of labels or one that
/// is no class.
template <class Scalar>
Scalar cross_entropy(Rows<Scalar> logits, std::span<const Index> labels) {
  meo::detail::require(static_cast<Index>(labels.size()) == logits.rows(), "labels: expected ", logits.rows(),
                       ", got ", labels.size());
  Index asked = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] == no_label) continue;
    ++asked;
    meo::detail::require(labels[i] >= 0 && labels[i] < logits.cols(), "label ", i, ": expected 0 to ",
                         logits.cols() - 1, " or ", no_label, ", got ", labels[i]);
  }
  const auto share = asked > 0 ? Scalar(1) / static_cast<Scalar>(asked) : Scalar(0);
  std::vector<Scalar> losses(labels.size(), Scalar(0));
  meo::detail::parallel_ranges(logits.rows(), meo::detail::max_threads(), [&](Index begin, Index end, Index) {
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
  return share * meo::detail::pairwise_sum<Scalar>(
                     0, logits.rows(), [&](Index row) { return losses[static_cast<std::size_t>(row)]; });
}

/// Mean of (value − target)². values: rows × 1, replaced by their gradient. Throws std::invalid_argument for
/// another number of targets.
template <class Scalar>
Scalar squared_error(Rows<Scalar> values, std::span<const Scalar> targets) {
  meo::detail::require(static_cast<Index>(targets.size()) == values.size(), "labels: expected ",
                       values.size(), ", got ", targets.size());
  const auto share = Scalar(1) / static_cast<Scalar>(values.size());
  const Scalar loss = share * meo::detail::pairwise_sum<Scalar>(0, values.size(), [&](Index i) {
                        const Scalar error = values.data()[i] - targets[static_cast<std::size_t>(i)];
                        return error * error;
                      });
  for (Index i = 0; i < values.size(); ++i)
    values.data()[i] = Scalar(2) * share * (values.data()[i] - targets[static_cast<std::size_t>(i)]);
  return loss;
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

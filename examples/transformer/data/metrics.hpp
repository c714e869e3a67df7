#pragma once

/// How good predictions are, as GLUE measures it: what scikit-learn's accuracy_score, f1_score and
/// matthews_corrcoef, and SciPy's pearsonr and spearmanr give.
///
/// All throw std::invalid_argument unless there are as many predictions as labels, and at least one.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include <meo/types.hpp>

#include "../model/require.hpp"

namespace transformer {

using meo::Index;

template <class Value>
void require_predictions(std::span<const Value> predictions, std::span<const Value> labels) {
  require(!labels.empty() && predictions.size() == labels.size(), "predictions: expected ", labels.size(),
          ", one for each label, and at least 1, got ", predictions.size());
}

/// How often each pair of a label and a prediction came: classes × classes, labels as rows. Throws
/// std::invalid_argument also for what is no class.
inline meo::Matrix<double> confusion(std::span<const Index> predictions, std::span<const Index> labels,
                                     Index classes) {
  require_predictions(predictions, labels);
  meo::Matrix<double> counts = meo::Matrix<double>::Zero(classes, classes);
  for (std::size_t i = 0; i < labels.size(); ++i) {
    for (const Index value : {labels[i], predictions[i]})
      require(value >= 0 && value < classes, "class: expected 0 to ", classes - 1, ", got ", value);
    ++counts(labels[i], predictions[i]);
  }
  return counts;
}

inline double accuracy(std::span<const Index> predictions, std::span<const Index> labels) {
  require_predictions(predictions, labels);
  std::size_t right = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) right += predictions[i] == labels[i] ? 1 : 0;
  return static_cast<double>(right) / static_cast<double>(labels.size());
}

/// The harmonic mean of precision and recall of a class; 0 where it is neither predicted nor a label.
inline double f1(const meo::Matrix<double>& confusion, Index of_class) {
  const double all = confusion.row(of_class).sum() + confusion.col(of_class).sum();
  return all > 0 ? 2 * confusion(of_class, of_class) / all : 0;
}

/// Of class 1, of two.
inline double f1(std::span<const Index> predictions, std::span<const Index> labels) {
  return f1(confusion(predictions, labels, 2), 1);
}

/// The mean of the classes' own, over those that are predicted or labels.
inline double macro_f1(std::span<const Index> predictions, std::span<const Index> labels, Index classes) {
  const meo::Matrix<double> counts = confusion(predictions, labels, classes);
  double sum = 0;
  Index seen = 0;
  for (Index c = 0; c < classes; ++c) {
    if (counts.row(c).sum() + counts.col(c).sum() == 0) continue;
    sum += f1(counts, c);
    ++seen;
  }
  return sum / static_cast<double>(seen);
}

/// Matthews' correlation coefficient, of any number of classes as Gorodkin 2004 has it; 0 where all
/// predictions, or all labels, are one class.
inline double matthews(std::span<const Index> predictions, std::span<const Index> labels, Index classes) {
  const meo::Matrix<double> counts = confusion(predictions, labels, classes);
  const Eigen::RowVectorXd predicted = counts.colwise().sum();
  const Eigen::RowVectorXd actual = counts.rowwise().sum().transpose();
  const double all = counts.sum();
  const double spread = (all * all - predicted.squaredNorm()) * (all * all - actual.squaredNorm());
  return spread > 0 ? (counts.trace() * all - predicted.dot(actual)) / std::sqrt(spread) : 0;
}

/// NaN where all predictions, or all labels, are one value.
inline double pearson(std::span<const double> predictions, std::span<const double> labels) {
  require_predictions(predictions, labels);
  const auto is_constant = [](std::span<const double> values) {
    return std::all_of(values.begin(), values.end(), [&](double value) { return value == values[0]; });
  };
  // Rounded means would leave constants a spread.
  if (is_constant(predictions) || is_constant(labels)) return std::numeric_limits<double>::quiet_NaN();
  using Values = Eigen::Map<const Eigen::ArrayXd>;
  const auto centred = [](std::span<const double> values) -> Eigen::ArrayXd {
    const Values all(values.data(), static_cast<Index>(values.size()));
    return all - all.mean();
  };
  const Eigen::ArrayXd x = centred(predictions), y = centred(labels);
  return (x * y).sum() / std::sqrt(x.square().sum() * y.square().sum());
}

/// Of each value, from 1 on by size; equal ones share the mean of their ranks.
inline std::vector<double> ranks(std::span<const double> values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (std::size_t begin = 0; begin < order.size();) {
    std::size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (std::size_t i = begin; i < end; ++i) ranks[order[i]] = static_cast<double>(begin + 1 + end) / 2;
    begin = end;
  }
  return ranks;
}

/// Spearman's: Pearson's of the ranks.
inline double spearman(std::span<const double> predictions, std::span<const double> labels) {
  require_predictions(predictions, labels);
  return pearson(ranks(predictions), ranks(labels));
}

}  // namespace transformer

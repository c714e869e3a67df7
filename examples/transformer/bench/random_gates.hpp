#pragma once

/// Gates that select at random: rows of their own experts, as after training, on the batch that is timed.
///
/// Letters: R gated rows, D features, N experts.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

#include "../model/activations.hpp"
#include "../model/batch.hpp"
#include "../model/config.hpp"
#include "../model/initialize.hpp"
#include "../model/model.hpp"

namespace transformer::bench {

/// The tokens that a gate sees of each of its decisions, at sequence or segment level: pairs of a begin and
/// an end. A segment is decided on by the one before it, the first by itself.
inline std::vector<std::pair<Index, Index>> tokens_seen(const MixtureConfig& mixture,
                                                        const meo::Sequences& sequences) {
  std::vector<std::pair<Index, Index>> seen;
  for (Index b = 0; b < sequences.size(); ++b) {
    const Index begin = sequences.begin(b), end = sequences.begin(b + 1);
    const Index step = mixture.level == meo::Level::segment ? mixture.segment_tokens : end - begin;
    for (Index at = begin; at < end; at += step) {
      const Index first = (std::max)(begin, at - step);
      seen.emplace_back(first, (std::min)(end, first + step));
    }
  }
  return seen;
}

/// What the gate of a projection sees of its input x: R × D. Token-level MEO decides for sequences, too.
inline meo::Matrix<float> gate_input(const ConstRows<float>& x, const MixtureConfig& mixture,
                                     const meo::Sequences& sequences) {
  if (mixture.kind == Mixture::moe && mixture.level == meo::Level::token) return x;
  const auto seen = tokens_seen(mixture, sequences);
  meo::Matrix<float> means(static_cast<Index>(seen.size()), x.cols());
  for (Index r = 0; r < means.rows(); ++r) {
    const auto [begin, end] = seen[static_cast<std::size_t>(r)];
    means.row(r) = x.middleRows(begin, end - begin).colwise().mean();
  }
  return means;
}

/// W_g, D × N, by which each expert's logits of these rows have mean 0 and variance 1. Rows that are all the
/// same, as a single one, get logits drawn with these.
inline meo::Matrix<float> random_gate(const meo::Matrix<float>& rows, Index experts, std::mt19937_64& rng) {
  meo::Matrix<float> weight = normal_matrix<float>(rows.cols(), experts, rng, 1);
  const Eigen::RowVectorXf mean = rows.colwise().mean();
  const meo::Matrix<float> centred = rows.rowwise() - mean;
  if (centred.norm() < 1e-3f * rows.norm()) return weight / mean.norm();
  const Eigen::RowVectorXf of_mean = mean * weight;
  weight -= mean.transpose() * of_mean / mean.squaredNorm();
  const meo::Matrix<float> logits = centred * weight;
  for (Index e = 0; e < experts; ++e)
    weight.col(e) *= std::sqrt(static_cast<float>(rows.rows())) / logits.col(e).norm();
  return weight;
}

/// Sets all gates of a model. context: left by the dense model's forward of the batch, in training.
inline void set_random_gates(Model<float>& model, const Model<float>& dense,
                             const Model<float>::Context& context, const Batch& batch, std::mt19937_64& rng) {
  const MixtureConfig& mixture = model.config().mixture;
  std::size_t number = 0;
  model.visit_projections([&](const std::string& name, auto& projection) {
    const auto& layer = context.trunk.layers[number / 2];
    const ConstRows<float> x = number % 2 == 0 ? dense.trunk().layers()[number / 2].feed_forward_input(layer)
                                               : layer.feed_forward.hidden.get();
    const meo::Matrix<float> rows = gate_input(x, mixture, batch.sequences);
    for (const auto& tensor : projection.mixture_tensors(name + ".")) {
      if (!tensor.name().ends_with(".w_gate")) continue;
      const meo::Matrix<float> weight = random_gate(rows, mixture.experts, rng);
      tensor.write(0, {weight.data(), static_cast<std::size_t>(weight.size())});
    }
    ++number;
  });
}

}  // namespace transformer::bench

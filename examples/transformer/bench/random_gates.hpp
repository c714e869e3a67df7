#pragma once

/// Gates that select at random: rows of their own experts, as after training, on the batch that is timed.
///
/// Letters: R gated rows, D features, N experts.

#include <cmath>
#include <random>
#include <string_view>

#include <meo/layers/layer_options.hpp>
#include <meo/layers/layer_shape.hpp>
#include <meo/routing/gate_input.hpp>
#include <meo/types.hpp>

#include "../model/activations.hpp"
#include "../model/batch.hpp"
#include "../model/config.hpp"
#include "../model/initialize.hpp"

namespace transformer::bench {

/// What the gate of a projection sees of its input x: R × D.
inline meo::Matrix<float> gate_input(const ConstRows<float>& x, const MixtureConfig& mixture,
                                     const meo::Sequences& sequences) {
  if (mixture.kind == Mixture::moe && mixture.level == meo::Level::token) return x;
  meo::detail::GateRowsMemory memory;
  const meo::LayerOptions options{
      .routing = {.level = mixture.level, .segment_tokens = mixture.segment_tokens}};
  const meo::detail::GateRows rows = meo::detail::decided_rows(options, sequences, memory);
  meo::Matrix<float> means(rows.size(), x.cols());
  for (Index r = 0; r < rows.size(); ++r) {
    const meo::detail::TokenRange seen = rows.seen[static_cast<std::size_t>(r)];
    means.row(r) = x.middleRows(seen.begin, seen.size()).colwise().mean();
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

/// What the projection reads, of a layer's context.
template <class LayerContext>
ConstRows<float> projection_input(const LayerContext& layer, bool is_up) {
  if (!is_up) return layer.feed_forward.hidden.get();
  if constexpr (requires { layer.middle; }) return layer.middle.get();
  else return layer.feed_forward_input.get();
}

/// Sets all gates of a model. context: left by the dense model's forward of the batch, in training.
template <class Model>
void set_random_gates(Model& model, const typename Model::Context& context, const Batch& batch,
                      std::mt19937_64& rng) {
  const MixtureConfig& mixture = model.config().mixture;
  std::size_t number = 0;
  model.visit_projections([&](std::string_view projection_name, auto& projection) {
    const ConstRows<float> x = projection_input(context.trunk.layers[number / 2], number % 2 == 0);
    const meo::Matrix<float> rows = gate_input(x, mixture, batch.sequences);
    projection.visit(projection_name, [&](std::string_view name, auto&& part) {
      if constexpr (requires { part.set_weight(part.weight()); }) {
        if (name.ends_with(".w_gate")) part.set_weight(random_gate(rows, mixture.experts, rng));
      }
    });
    ++number;
  });
}

}  // namespace transformer::bench

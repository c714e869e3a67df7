#pragma once

/// What a forward of a whole model costs in FLOPs, two a multiply-add.
///
/// Letters: L layers, T tokens of the batch, n of a text, d width, V vocabulary.

#include <cstdint>
#include <utility>

#include <meo/flops.hpp>
#include <meo/layers/layer_shape.hpp>
#include <meo/routing/sequences.hpp>

#include "config.hpp"
#include "past.hpp"

namespace transformer {

struct ModelFlops {
  std::int64_t feed_forward = 0;  ///< of all layers, as meo::flops counts it
  std::int64_t attention = 0;     ///< 8 L T d² and 4 L d Σ n², or 2 L d Σ n (n + 1) where it is causal
  std::int64_t head = 0;          ///< 2 T V d; masked words 2 T d² more

  std::int64_t total() const { return feed_forward + attention + head; }
};

inline meo::Method method_of(Mixture kind) {
  switch (kind) {
    case Mixture::none:
      break;
    case Mixture::moe:
      return meo::Method::moe;
    case Mixture::meo:
      return meo::Method::meo;
  }
  return meo::Method::dense;
}

/// For float, where no two merges of a projection are the same.
inline ModelFlops model_flops(const Config& config, bool has_head, const meo::Sequences& sequences) {
  const std::int64_t layers = config.layers, tokens = sequences.tokens(), width = config.width;
  ModelFlops flops;
  for (const auto& [in, out] :
       {std::pair(config.width, config.hidden), std::pair(config.hidden, config.width)}) {
    const meo::LayerShape shape = meo::layer_shape<float>(layer_options(config, in, out), sequences);
    flops.feed_forward += layers * meo::flops(method_of(config.mixture.kind), shape).total();
  }
  flops.attention = 8 * layers * tokens * width * width;
  for (Index b = 0; b < sequences.size(); ++b) {
    const std::int64_t n = sequences.length(b);
    flops.attention += layers * width * (config.family == Family::bert ? 4 * n * n : 2 * n * (n + 1));
  }
  if (has_head)
    flops.head = 2 * tokens * width * (config.vocabulary + (config.family == Family::bert ? width : 0));
  return flops;
}

/// Of one word that follows so many of a text; see past.hpp.
inline ModelFlops word_flops(const Config& config, bool has_head, Index before, Merging merging) {
  const std::int64_t layers = config.layers, width = config.width;
  ModelFlops flops;
  for (const auto& [in, out] :
       {std::pair(config.width, config.hidden), std::pair(config.hidden, config.width)}) {
    meo::LayerShape shape =
        meo::layer_shape<float>(layer_options(config, in, out), meo::Sequences::uniform(1, 1));
    const bool keeps = keeps_decisions(config.mixture), is_merged = keeps && merging == Merging::once;
    shape.has_router = !keeps;
    const meo::Method method = method_of(config.mixture.kind);
    flops.feed_forward +=
        layers * (is_merged ? meo::step_flops(method, shape) : meo::flops(method, shape)).total();
  }
  flops.attention = layers * width * (8 * width + 4 * (before + 1));
  if (has_head) flops.head = 2 * width * config.vocabulary;
  return flops;
}

}  // namespace transformer

#pragma once

/// The merged mixture, y = x (Σ g_i W_i)ᵀ + Σ g_i b_i: the selected experts' parameters are merged first, so
/// that it pays for one expert (He et al. 2023, arXiv 2310.09832, section 3).

#include <string_view>

#include <meo/compiled.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/mixture_layer.hpp>
#include <meo/mixing/merge_mixer.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// What makes a MixtureLayer a merged one.
struct Meo {
  /// As messages have it.
  static constexpr std::string_view name = "MEO";
  /// The router decides on sequences at every level.
  static constexpr bool routes_tokens = false;
  static constexpr bool has_token_attention = true;
  /// In files all experts are one tensor, N × F × D.
  static constexpr bool stacks_experts = true;
  /// In a block with one router every projection merges its own experts.
  static constexpr bool mixes_blocks = false;

  /// From assignments to outputs.
  template <class Scalar, class Storage>
  static detail::MergeMixer<Scalar, Storage> mixer(const LayerOptions& options) {
    return {options.merge_order, options.routing.level};
  }
};

/// At token level token attention comes first, x ← x + TokenAttention(x), and the gate sees the new x, or the
/// old one with routing.gate_before_attention. Sequences with the same selection and weights, as those of one
/// task, share one merge. A sequence so short that merging does not pay has its experts' outputs combined
/// instead; see LayerOptions::merge_order. Storage: what experts are stored as, see ExpertBank.
template <class Scalar, int NumExperts = Eigen::Dynamic, class Storage = Scalar>
using MeoLayer = MixtureLayer<Scalar, NumExperts, Meo, Storage>;

#define MEO_INSTANCES(instance, Scalar) instance class MixtureLayer<Scalar, Eigen::Dynamic, Meo>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

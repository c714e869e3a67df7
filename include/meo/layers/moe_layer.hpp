#pragma once

/// The vanilla mixture of experts, y_t = Σ_{i ∈ S(t)} g_ti (x_t W_iᵀ + b_i): pays for K experts (Shazeer et
/// al. 2017, arXiv 1701.06538, equation 1).

#include <string_view>

#include <meo/compiled.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/layers/mixture_layer.hpp>
#include <meo/mixing/dispatch_mixer.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// What makes a MixtureLayer a vanilla one.
struct Moe {
  /// As messages have it.
  static constexpr std::string_view name = "MoE";
  /// At token level every token is a row of the router, and S(t) the selection of its own.
  static constexpr bool routes_tokens = true;
  static constexpr bool has_token_attention = false;
  /// In files each expert has tensors of its own.
  static constexpr bool stacks_experts = false;
  /// A block with one router has experts that are whole blocks: their outputs are combined, not the hidden
  /// activations.
  static constexpr bool mixes_blocks = true;

  /// From assignments to outputs.
  template <class Scalar, class Storage>
  static detail::DispatchMixer<Scalar, Storage> mixer(const LayerOptions&) {
    return {};
  }
};

/// S(t) is the selection of the row that governs token t: at token level its own, else that of its sequence.
/// Storage: what experts are stored as, see ExpertBank.
template <class Scalar, int NumExperts = Eigen::Dynamic, class Storage = Scalar>
using MoeLayer = MixtureLayer<Scalar, NumExperts, Moe, Storage>;

#define MEO_INSTANCES(instance, Scalar) instance class MixtureLayer<Scalar, Eigen::Dynamic, Moe>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

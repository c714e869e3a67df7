#pragma once

/// What all layers of one forward, and of its backward, read beside their activations.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <meo/routing/inputs.hpp>
#include <meo/routing/noise.hpp>
#include <meo/types.hpp>

#include "dropout.hpp"
#include "past.hpp"
#include "require.hpp"

namespace transformer {

/// Noise of a model's gates: none, drawn from a generator, or a matrix for each gate in the order of the
/// calls, layer by layer, up before down. Refers to the generator or the matrices.
template <class Scalar>
class GateNoise {
 public:
  GateNoise() = default;
  template <class Generator>
  requires std::uniform_random_bit_generator<Generator>
  explicit GateNoise(Generator& rng) : drawn_(rng) {}
  explicit GateNoise(std::span<const meo::Matrix<Scalar>> given) : given_(given) {}

  /// Throws std::invalid_argument where matrices are given, but none for this gate.
  meo::Noise<Scalar> of(Index gate) const {
    if (given_.empty()) return drawn_;
    require(gate < static_cast<Index>(given_.size()), "noise: expected a matrix for gate ", gate, ", got ",
            given_.size());
    return meo::Noise<Scalar>(given_[static_cast<std::size_t>(gate)]);
  }

 private:
  meo::Noise<Scalar> drawn_;
  std::span<const meo::Matrix<Scalar>> given_;
};

/// What sets a forward in training apart.
template <class Scalar>
struct Training {
  GateNoise<Scalar> noise = {};
  std::optional<std::uint64_t> dropout_seed = {};  ///< none: no dropout. Another for every step
};

/// Uses of dropout in a layer: attention's probabilities, and what attention and the block add.
inline constexpr Index dropouts_per_layer = 3;

template <class Scalar>
struct Pass {
  const meo::Sequences& sequences;
  meo::MatrixView<Scalar> task_embeddings;  ///< task level
  const meo::Sequences* descriptions;
  const Training<Scalar>* training;  ///< null: inference, after which there is no backward
  Past<Scalar>* past = nullptr;      ///< null: none, the words are all there are

  meo::Inputs<Scalar> inputs(Index gate) const {
    meo::Inputs<Scalar> inputs{.sequences = &sequences};
    if (task_embeddings) {
      inputs.task_embeddings = task_embeddings;
      inputs.descriptions = descriptions;
    }
    if (training != nullptr) inputs.noise = training->noise.of(gate);
    return inputs;
  }

  LayerPast<Scalar>* past_of(Index layer) const { return past == nullptr ? nullptr : &(*past)[layer]; }

  Dropout dropout(double probability, Index place) const {
    if (training == nullptr || !training->dropout_seed) return {};
    return {probability, *training->dropout_seed, static_cast<std::uint64_t>(place)};
  }
};

}  // namespace transformer

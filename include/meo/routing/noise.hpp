#pragma once

/// Where the gate's training noise comes from: standard normal draws, one for every gated row and expert.

#include <algorithm>
#include <random>

#include <meo/errors.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// rows × num_experts standard normal values, drawn row by row.
template <class Scalar, class Generator>
Matrix<Scalar> draw_noise(Index rows, Index num_experts, Generator& rng) {
  std::normal_distribution<double> normal;
  Matrix<Scalar> noise(rows, num_experts);
  for (Index i = 0; i < noise.size(); ++i) noise.data()[i] = static_cast<Scalar>(normal(rng));
  return noise;
}

/// None (inference), drawn from a generator, or given as a matrix. Keeps no copy: the generator or matrix
/// must outlive the forward pass that it is passed to.
template <class Scalar>
class Noise {
 public:
  Noise() = default;

  /// Draws from `rng` as draw_noise does, anew for every gate.
  template <class Generator>
  requires std::uniform_random_bit_generator<Generator>
  explicit Noise(Generator& rng) : generator_(&rng), draw_(&draw_from<Generator>) {}

  /// Takes the noise as it is given, R × N.
  explicit Noise(MatrixView<Scalar> noise) : given_(noise) {}

  /// Whether there is noise.
  explicit operator bool() const { return draw_ != nullptr || static_cast<bool>(given_); }

  /// Writes rows × num_experts values to `out`, row-major. Throws std::invalid_argument if the given matrix
  /// has another shape.
  void fill(Index rows, Index num_experts, Scalar* out) const {
    if (draw_ != nullptr) return draw_(generator_, rows * num_experts, out);
    detail::require_shape(given_, rows, num_experts, "noise (gated rows x experts)");
    for (Index r = 0; r < rows; ++r) out = std::copy_n(given_.row(r), num_experts, out);
  }

 private:
  template <class Generator>
  static void draw_from(void* generator, Index count, Scalar* out) {
    std::normal_distribution<double> normal;
    for (Index i = 0; i < count; ++i)
      out[i] = static_cast<Scalar>(normal(*static_cast<Generator*>(generator)));
  }

  void* generator_ = nullptr;
  void (*draw_)(void*, Index, Scalar*) = nullptr;
  MatrixView<Scalar> given_;
};

}  // namespace meo

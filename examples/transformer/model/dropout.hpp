#pragma once

/// Dropout: each value is 0 with probability p, and else divided by 1 − p (Srivastava et al. 2014).
///
/// What is dropped is told by the seed, the place in the model and the value's number alone, so that backward
/// needs no mask from forward, and results do not depend on the number of threads.

#include <cmath>
#include <cstdint>

#include <meo/types.hpp>

#include "parallel.hpp"

namespace transformer {

using meo::Index;

class Dropout {
 public:
  /// None.
  Dropout() = default;

  /// place: another for every use within a pass. probability: 0 to below 1, as config.hpp sees to.
  Dropout(double probability, std::uint64_t seed, std::uint64_t place)
      : key_(mixed(seed + mixed(place))),
        least_kept_(static_cast<std::uint64_t>(std::ldexp(probability, 32))),
        scale_(1 / (1 - probability)) {}

  explicit operator bool() const { return least_kept_ > 0; }

  /// What value number i is multiplied by.
  template <class Scalar>
  Scalar factor(Index i) const {
    const std::uint64_t draw = mixed(key_ + static_cast<std::uint64_t>(i)) >> 32;
    return draw < least_kept_ ? Scalar(0) : static_cast<Scalar>(scale_);
  }

  /// Values 0 … count − 1, in place: forward as well as backward.
  template <class Scalar>
  void apply(Scalar* values, Index count) const {
    if (!*this) return;
    parallel_ranges(count, [&](Index begin, Index end, Index) {
      for (Index i = begin; i < end; ++i) values[i] *= factor<Scalar>(i);
    });
  }

 private:
  /// A step of SplitMix64 (Steele et al. 2014, Fast splittable pseudorandom number generators).
  static std::uint64_t mixed(std::uint64_t z) {
    z += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  std::uint64_t key_ = 0;
  std::uint64_t least_kept_ = 0;  ///< p · 2³²
  double scale_ = 1;
};

}  // namespace transformer

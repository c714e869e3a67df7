#pragma once

/// Random data for tests. The mapping from generator to number is written out, so that every standard library
/// draws the same data from a seed.

#include <cmath>
#include <cstdint>
#include <numbers>
#include <random>
#include <vector>

#include <meo/types.hpp>

namespace meo::test {

using Generator = std::mt19937_64;

/// Uniform on [0, 1): 24 bits, which every scalar represents exactly.
template <class S>
S uniform(Generator& rng) {
  return S(rng() >> 40) / S(std::int64_t{1} << 24);
}

/// Uniform on [−1, 1).
template <class S>
Matrix<S> random_matrix(Generator& rng, Index rows, Index cols) {
  Matrix<S> matrix(rows, cols);
  for (Index i = 0; i < matrix.size(); ++i) matrix.data()[i] = 2 * uniform<S>(rng) - 1;
  return matrix;
}

template <class S>
Vector<S> random_vector(Generator& rng, Index size) {
  return random_matrix<S>(rng, size, 1);
}

/// Integers from −`largest` to `largest`: products and sums of few of them are exact, and ties are common.
template <class S>
Matrix<S> random_integers(Generator& rng, Index rows, Index cols, int largest) {
  Matrix<S> matrix(rows, cols);
  for (Index i = 0; i < matrix.size(); ++i) {
    matrix.data()[i] = S(int(rng() % std::uint64_t(2 * largest + 1)) - largest);
  }
  return matrix;
}

/// Standard normal (Box and Muller).
template <class S>
Matrix<S> random_normal(Generator& rng, Index rows, Index cols) {
  Matrix<S> matrix(rows, cols);
  for (Index i = 0; i < matrix.size(); ++i) {
    const double radius = std::sqrt(-2 * std::log(1 - uniform<double>(rng)));
    matrix.data()[i] = S(radius * std::cos(2 * std::numbers::pi * uniform<double>(rng)));
  }
  return matrix;
}

/// `count` lengths from `shortest` to `longest`.
inline std::vector<Index> random_lengths(Generator& rng, Index count, Index shortest, Index longest) {
  std::vector<Index> lengths;
  for (Index b = 0; b < count; ++b) {
    lengths.push_back(shortest + Index(rng() % std::uint64_t(longest - shortest + 1)));
  }
  return lengths;
}

}  // namespace meo::test

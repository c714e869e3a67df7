#pragma once

/// Random numbers that are functions of a seed and of what they are for, so that a resumed run draws what an
/// uninterrupted one would without any generator's state in the checkpoint.

#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include <meo/types.hpp>

namespace transformer {

using meo::Index;

/// What is drawn.
enum class Draw : std::uint32_t { start_values, step, order, validation };

/// The generator for one of them; number: of the step or epoch.
inline std::mt19937_64 generator(std::uint64_t seed, Draw draw, Index number = 0) {
  const auto high = [](std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); };
  const auto low = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  const auto of = static_cast<std::uint64_t>(number);
  std::seed_seq sequence{static_cast<std::uint32_t>(draw), low(seed), high(seed), low(of), high(of)};
  return std::mt19937_64(sequence);
}

/// Uniform on 0 … count − 1; written out, so that a seed means the same with every standard library.
inline Index draw_below(std::mt19937_64& rng, Index count) {
  return static_cast<Index>(rng() % static_cast<std::uint64_t>(count));
}

/// 0 … count − 1 in random order, of which the first `chosen` are wanted.
inline std::vector<Index> random_order(std::mt19937_64& rng, Index count, Index chosen) {
  std::vector<Index> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), Index{0});
  for (Index i = 0; i < chosen && i + 1 < count; ++i)
    std::swap(order[static_cast<std::size_t>(i)],
              order[static_cast<std::size_t>(i + draw_below(rng, count - i))]);
  order.resize(static_cast<std::size_t>(chosen));
  return order;
}

}  // namespace transformer

#pragma once

/// A batch that all ranks know, and the part of it that one works on.

#include <cstddef>
#include <utility>
#include <vector>

#include <meo/distributed/communicator.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

#include "support/random.hpp"

namespace meo::test {

/// Some sequences of random features, with noise for their rows; or none, with no columns.
struct Batch {
  Matrix<double> x, dy, noise;
  Sequences sequences;
  bool routes_tokens;  ///< whether each token has a row of noise, or each sequence

  Inputs<double> inputs() const {
    Inputs<double> inputs{.sequences = &sequences};
    if (noise.cols() > 0) inputs.noise = Noise<double>(noise);
    return inputs;
  }

  /// Sequences first … end − 1.
  Batch part(Index first, Index end) const {
    std::vector<Index> lengths;
    for (Index b = first; b < end; ++b) lengths.push_back(sequences.length(b));
    const std::vector<Index> begins(sequences.offsets().begin(), sequences.offsets().end());
    const Index begin = begins[static_cast<std::size_t>(first)];
    const Index count = begins[static_cast<std::size_t>(end)] - begin;
    const Matrix<double> rows =
        routes_tokens ? noise.middleRows(begin, count) : noise.middleRows(first, end - first);
    return {x.middleRows(begin, count), dy.middleRows(begin, count), rows, Sequences::from_lengths(lengths),
            routes_tokens};
  }
};

inline Batch random_batch(Generator& rng, const std::vector<Index>& lengths, Index in, Index out,
                          Index experts, bool routes_tokens) {
  Sequences sequences = Sequences::from_lengths(lengths);
  const Index tokens = sequences.tokens(), rows = routes_tokens ? tokens : sequences.size();
  Matrix<double> x = random_matrix<double>(rng, tokens, in);
  Matrix<double> dy = random_matrix<double>(rng, tokens, out) / static_cast<double>(tokens);
  Matrix<double> noise = random_normal<double>(rng, rows, experts);
  return {std::move(x), std::move(dy), std::move(noise), std::move(sequences), routes_tokens};
}

/// The first of `count` sequences that a rank works on.
inline Index first_of(Index count, int rank, int ranks) { return count * rank / ranks; }

/// The rank's sequences, in the order of the ranks; none where there are fewer than ranks.
inline Batch part_of(const Batch& batch, const mpi::Communicator& world) {
  const Index count = batch.sequences.size();
  return batch.part(first_of(count, world.rank(), world.size()),
                    first_of(count, world.rank() + 1, world.size()));
}

/// Where a rank's first token stands in the batch.
inline Index first_token(const Batch& batch, const mpi::Communicator& world) {
  return batch.sequences
      .offsets()[static_cast<std::size_t>(first_of(batch.sequences.size(), world.rank(), world.size()))];
}

}  // namespace meo::test

#pragma once

/// Which tokens every expert works on: the (token, expert) pairs of a routing, sorted by expert.

#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Plain data. Slots begins[e] … begins[e + 1] − 1 are expert e's, by ascending token.
template <class Scalar>
struct Dispatch {
  std::vector<Index> begins;                ///< num_experts + 1
  std::vector<Index> tokens;                ///< of each slot
  std::vector<Scalar> weights;              ///< of each slot
  std::vector<unsigned char> is_first;      ///< of each slot: no expert before this one has the token
  std::vector<unsigned char> token_served;  ///< while dispatching

  Index begin(Index expert) const { return begins[static_cast<std::size_t>(expert)]; }
};

/// Counting sort. experts, weights: one row of K pairs for each gated row; row r gates the tokens
/// offsets[r] … offsets[r + 1] − 1, which are left out if they are more than `most_tokens`. Allocates only
/// where the dispatch has to grow, never for as many tokens and rows of other lengths.
template <class Scalar>
void dispatch_tokens(std::span<const Index> experts, std::span<const Scalar> weights, Index top_k,
                     Index num_experts, std::span<const Index> offsets, Dispatch<Scalar>& dispatch,
                     Index most_tokens = (std::numeric_limits<Index>::max)()) {
  const std::size_t rows = offsets.size() - 1;
  const auto k = static_cast<std::size_t>(top_k);
  const Index tokens = offsets.back();
  const Index most_served = (std::min)(tokens, static_cast<Index>(rows) * (std::min)(most_tokens, tokens));
  const auto length = [&](std::size_t r) {
    const Index length_of_row = offsets[r + 1] - offsets[r];
    return length_of_row > most_tokens ? 0 : length_of_row;
  };
  dispatch.begins.assign(static_cast<std::size_t>(num_experts) + 1, 0);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t i = r * k; i < (r + 1) * k; ++i)
      dispatch.begins[static_cast<std::size_t>(experts[i])] += length(r);
  }
  Index end =
      0;  // every begin first becomes its expert's end, and is counted down while the slots are filled
  for (Index& begin : dispatch.begins) begin = end += begin;
  const auto resize = [&](auto& of_slots) {
    of_slots.reserve(static_cast<std::size_t>(most_served) * k);
    of_slots.resize(static_cast<std::size_t>(end));
  };
  resize(dispatch.tokens);
  resize(dispatch.weights);
  resize(dispatch.is_first);
  for (std::size_t r = rows; r-- > 0;) {
    for (Index token = offsets[r] + length(r); token-- > offsets[r];) {
      for (std::size_t i = r * k; i < (r + 1) * k; ++i) {
        const auto slot = static_cast<std::size_t>(--dispatch.begins[static_cast<std::size_t>(experts[i])]);
        dispatch.tokens[slot] = token;
        dispatch.weights[slot] = weights[i];
      }
    }
  }
  dispatch.token_served.assign(static_cast<std::size_t>(tokens), 0);
  for (std::size_t slot = 0; slot < dispatch.tokens.size(); ++slot) {
    unsigned char& served = dispatch.token_served[static_cast<std::size_t>(dispatch.tokens[slot])];
    dispatch.is_first[slot] = served == 0 ? 1 : 0;
    served = 1;
  }
}

}  // namespace meo::detail

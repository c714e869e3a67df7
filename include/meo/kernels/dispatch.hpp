#pragma once

/// Which tokens every expert works on: the (token, expert) pairs of a routing, sorted by expert.

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/kernels/pairs.hpp>
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

/// Counting sort. offsets: row r governs the tokens offsets[r] … offsets[r + 1] − 1. Rows that left_out,
/// where it is given, is not 0 of are left out. Allocates only where the dispatch has to grow, never for as
/// many tokens, rows and pairs of other lengths or selections, if a row has no more pairs than one had
/// before.
template <class Scalar>
void dispatch_tokens(const Pairs<Scalar>& pairs, Index num_experts, std::span<const Index> offsets,
                     Dispatch<Scalar>& dispatch, const unsigned char* left_out = nullptr) {
  const Index tokens = offsets.back();
  const auto first_token = [&](Index row) { return offsets[static_cast<std::size_t>(row)]; };
  const auto length = [&](Index row) {
    return left_out != nullptr && left_out[row] != 0 ? 0 : first_token(row + 1) - first_token(row);
  };
  dispatch.begins.assign(static_cast<std::size_t>(num_experts) + 1, 0);
  Index most_pairs = 0;
  for (Index row = 0; row < pairs.rows; ++row) {
    most_pairs = (std::max)(most_pairs, pairs.count(row));
    const MergeTerms<Scalar> terms = pairs.row(row);
    for (Index i = 0; i < terms.count; ++i)
      dispatch.begins[static_cast<std::size_t>(terms.experts[i])] += length(row);
  }
  Index end =
      0;  // every begin first becomes its expert's end, and is counted down while the slots are filled
  for (Index& begin : dispatch.begins) begin = end += begin;
  const auto resize = [&](auto& of_slots) {
    of_slots.reserve(static_cast<std::size_t>(tokens * most_pairs));
    of_slots.resize(static_cast<std::size_t>(end));
  };
  resize(dispatch.tokens);
  resize(dispatch.weights);
  resize(dispatch.is_first);
  for (Index row = pairs.rows; row-- > 0;) {
    const MergeTerms<Scalar> terms = pairs.row(row);
    for (Index token = first_token(row) + length(row); token-- > first_token(row);) {
      for (Index i = 0; i < terms.count; ++i) {
        const auto slot =
            static_cast<std::size_t>(--dispatch.begins[static_cast<std::size_t>(terms.experts[i])]);
        dispatch.tokens[slot] = token;
        dispatch.weights[slot] = terms.weights[i];
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

#define MEO_INSTANCES(instance, Scalar)                                                                 \
  instance void dispatch_tokens(const Pairs<Scalar>&, Index, std::span<const Index>, Dispatch<Scalar>&, \
                                const unsigned char*);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

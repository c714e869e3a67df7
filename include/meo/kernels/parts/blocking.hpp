#pragma once

/// How a product is cut into blocks.

#include <algorithm>

#include <meo/kernels/blocks.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Panels that a product of `rows` rows multiplies with together: one, whose rows of weights are then read in
/// a single stream; with fewer rows than a tile has as many as make up for its missing chains.
template <class Scalar>
constexpr Index panels_at_once(Index rows) {
  return rows < Tile<Scalar>::rows ? 4 : 1;
}

struct MergeBlocks {
  Index panels;  ///< merged and multiplied with together
  Index merges;  ///< Q: merges formed together, so that an expert's panel is read once for all of them
  Index depth;   ///< rows of a panel that are merged, multiplied with and forgotten at a time
  Index tokens;  ///< that are passed over by all panels before the next
};

/// `size` cut into parts of at most `limit`, as equal as may be: the size of all but the last; 0 for nothing.
inline Index even_part(Index size, Index limit) {
  const Index parts = (std::max<Index>)((size + limit - 1) / limit, 1);
  return (size + parts - 1) / parts;
}

/// Inputs of a block. A sum of 16 bits would be rounded wherever it goes through memory: it is formed whole.
template <class Scalar>
Index block_depth(Index depth, const Blocks& limits) {
  return is_16_bit<Scalar> ? depth : even_part(depth, limits.depth);
}

/// Tokens that are passed over at a time, of `tokens` in all, for `depth` inputs. Each chunk reads the
/// experts anew, so up to twice as much as stays in L3 is one chunk: in double, 8 sequences of 128 tokens
/// take 8 % less than in two (Zen 4).
template <class Scalar>
Index chunk_tokens(Index depth, Index tokens, const Blocks& limits) {
  const Index most =
      (std::max<Index>)(limits.activation_bytes / (depth * static_cast<Index>(sizeof(Scalar))), 1);
  return tokens <= 2 * most ? (std::max<Index>)(tokens, 1) : even_part(tokens, most);
}

/// For `merges` merges of `tokens` tokens in all. Merged panels are written once and read by many tiles, so
/// they may outgrow L2; a large Q matters more, as merges are bound by the bytes of experts that they read,
/// and comes before several panels at once.
template <class Scalar>
MergeBlocks merge_blocks(Index depth, Index merges, Index tokens, const Blocks& limits = {}) {
  const Index panels = panels_at_once<Scalar>(tokens / (std::max<Index>)(merges, 1));
  const Index block_rows = block_depth<Scalar>(std::max<Index>(depth, 1), limits);
  const Index panel_bytes =
      padded_rows<Scalar>(block_rows) * Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  const Index space = (std::max<Index>)(limits.scratch_bytes / panel_bytes, 1);  // of merged panels
  const Index merges_at_once = std::clamp<Index>(merges, 1, (std::min)(limits.merges, space));
  return {(std::min)(panels, space / merges_at_once), merges_at_once, block_rows,
          chunk_tokens<Scalar>(block_rows, tokens, limits)};
}

/// Rows of a panel that are merged for all Q merges before the next: the experts' strips fill half of an L1.
template <class Scalar>
Index merge_strip_rows(Index experts, const Blocks& limits = {}) {
  const Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  return (std::max<Index>)(limits.l1_bytes / 2 / (row_bytes * experts), 4);
}

/// The same for merges of the same, many experts: the strips of the experts and of the Q merges stay in L2
/// from one group of merges to the next.
template <class Scalar>
Index group_strip_rows(Index experts, Index merges, const Blocks& limits = {}) {
  const Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  return (std::max<Index>)(limits.strip_bytes / (row_bytes * (experts + merges)), 4);
}

/// Of a product with one expert of `depth` inputs.
struct DenseBlocks {
  Index depth;  ///< inputs whose partial sums are formed at a time
  Index rows;   ///< that are passed over by all panels before the next
};

template <class Scalar>
DenseBlocks dense_blocks(Index depth, Index rows, const Blocks& limits = {}) {
  const Index inputs = block_depth<Scalar>(std::max<Index>(depth, 1), limits);
  return {inputs, chunk_tokens<Scalar>(inputs, rows, limits)};
}

}  // namespace meo::detail

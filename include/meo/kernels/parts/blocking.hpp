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
  Index merges;  ///< Q: merges formed together, so that an expert's slice is read once for all of them
  Index inputs;  ///< of a slice, which is merged, multiplied with and forgotten
  Index tokens;  ///< that are passed over by all panels before the next
  Index group;   ///< panels whose sums are kept from slice to slice
  bool packs;    ///< x, whose slices are short; those of a single merge are read where they lie
};

/// `size` cut into parts of at most `limit`, as equal as may be: the size of all but the last; 0 for nothing.
inline Index even_part(Index size, Index limit) {
  const Index parts = (std::max<Index>)((size + limit - 1) / limit, 1);
  return (size + parts - 1) / parts;
}

/// `inputs` in whole cache lines of activations.
template <class Scalar>
constexpr Index whole_lines(Index inputs) {
  return (inputs + line_size<Scalar> - 1) / line_size<Scalar> * line_size<Scalar>;
}

/// Rows that a merged slice takes in scratch: of the biases, too, which are merged with the first.
template <class Scalar>
Index merged_rows(Index inputs) {
  return padded_rows<Scalar>(inputs + 1);
}

/// Inputs of a dense product's block. A sum of 16 bits would be rounded wherever it goes through memory: it
/// is formed whole.
template <class Scalar>
Index block_depth(Index depth, const Blocks& limits) {
  return is_16_bit<Scalar> ? depth : even_part(depth, limits.depth);
}

/// Inputs of a slice of a merged panel: whole lines, where there is more than one. A single merge has L2 for
/// itself, and no need to stay in L1: its slices are as long as a dense product's blocks.
template <class Scalar>
Index slice_inputs(Index in_features, Index merges, const Blocks& limits) {
  if (is_16_bit<Scalar>) return in_features;
  constexpr Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  const Index most = merges > 1 ? (std::max<Index>)(limits.slice_bytes / row_bytes, 1) : limits.depth;
  if (in_features <= most) return in_features;
  if (most < line_size<Scalar>) return even_part(in_features, most);
  return whole_lines<Scalar>(even_part(in_features, most / line_size<Scalar> * line_size<Scalar>));
}

/// Tokens that all panels pass over before the next, at most.
template <class Scalar>
Index most_merged_tokens(const Blocks& limits) {
  constexpr Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  return std::clamp<Index>(limits.sums_bytes / row_bytes, 1, limits.merged_tokens);
}

/// For `merges` merges of `tokens` tokens in all. A large Q matters more than several panels at once, as
/// merges are bound by the bytes of experts that they read.
template <class Scalar>
MergeBlocks merge_blocks(Index in_features, Index merges, Index tokens, const Blocks& limits) {
  constexpr Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  const Index inputs = slice_inputs<Scalar>((std::max<Index>)(in_features, 1), merges, limits);
  const Index tokens_at_once = even_part((std::max<Index>)(tokens, 1), most_merged_tokens<Scalar>(limits));
  const Index group = std::clamp<Index>(limits.sums_bytes / (tokens_at_once * row_bytes), 1, 4);
  const Index space = (std::max<Index>)(limits.merged_bytes / (merged_rows<Scalar>(inputs) * row_bytes), 1);
  const Index merges_at_once = std::clamp<Index>(merges, 1, (std::min)(limits.merges, space));
  const Index panels = panels_at_once<Scalar>(tokens / (std::max<Index>)(merges, 1));
  return {(std::min)({panels, group, space / merges_at_once}),
          merges_at_once,
          inputs,
          tokens_at_once,
          group,
          merges > 1};
}

/// Rows of a panel that are merged for all Q merges before the next: the experts' strips fill half of an L1.
template <class Scalar>
Index merge_strip_rows(Index experts, const Blocks& limits) {
  const Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  return (std::max<Index>)(limits.l1_bytes / 2 / (row_bytes * experts), 4);
}

/// Rows of a panel of an expert that is merged to be kept: they fill half of an L1.
template <class Scalar>
Index merged_strip_rows(const Blocks& limits) {
  const Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  return (std::max<Index>)(limits.l1_bytes / 2 / row_bytes, 4);
}

/// The same for merges of the same, many experts: the strips of the experts and of the Q merges stay in L2
/// from one group of merges to the next.
template <class Scalar>
Index group_strip_rows(Index experts, Index merges, const Blocks& limits) {
  const Index row_bytes = Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar));
  return (std::max<Index>)(limits.strip_bytes / (row_bytes * (experts + merges)), 4);
}

/// Of a product with one expert of `depth` inputs.
struct DenseBlocks {
  Index depth;  ///< inputs whose partial sums are formed at a time
  Index rows;   ///< that are passed over by all panels before the next
};

template <class Scalar>
DenseBlocks dense_blocks(Index depth, Index rows, const Blocks& limits) {
  const Index inputs = block_depth<Scalar>(std::max<Index>(depth, 1), limits);
  const Index most = limits.activation_bytes / (inputs * static_cast<Index>(sizeof(Scalar)));
  return {inputs, even_part((std::max<Index>)(rows, 1), (std::max)(most, limits.dense_rows))};
}

}  // namespace meo::detail

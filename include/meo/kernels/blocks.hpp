#pragma once

/// How much kernels work on at a time.

#include <algorithm>

#include <Eigen/Core>

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Upper bound of a thread's scratch, whatever the sizes of the problem.
inline constexpr Index max_scratch_bytes = Index{1} << 21;

/// Merges whose gradients are formed together at most, however small the experts are.
inline constexpr Index max_gradient_merges = 32;

/// Upper bound of slice_bytes.
inline constexpr Index most_slice_bytes = Index{1} << 16;

/// Limits; a kernel stays below them, and takes one of a thing at least. They change the speed only: no
/// product depends on them, to the bit, and of gradients only how the parts of a long sum are added.
struct Blocks {
  Index scratch_bytes = max_scratch_bytes;  ///< of a thread

  /// A small L1, for what a tile reads again and again.
  Index l1_bytes = Index{1} << 15;

  /// Strips of experts and of merges that stay in L2 from one group of merges to the next.
  Index strip_bytes = Index{3} << 16;

  // Products; what machine_blocks takes from the caches of the machine.

  /// A slice of a merged panel, which all rows of activations are multiplied with before the next: half of an
  /// L1, so that it stays there.
  Index slice_bytes = Index{1} << 14;

  /// Slices that are merged together: an eighth of an L2.
  Index merged_bytes = Index{1} << 17;

  /// Sums of panels that go on from slice to slice: a quarter of an L2. As many panels share what is read of
  /// the activations.
  Index sums_bytes = Index{1} << 18;

  /// Activations that a dense product passes over again and again, by each group of panels: what stays in L2
  /// beside the panels.
  Index activation_bytes = Index{5} << 16;

  /// Rows of activations that are passed over by all panels before the next. Each such chunk reads the
  /// experts anew, in a merged product many.
  Index merged_tokens = 1280;
  Index dense_rows = 256;

  /// Inputs whose partial sums a dense product forms at a time: the whole depth if it is at most this, else
  /// about equal parts. Shorter ones would have sums go through memory more often: with 256 inputs a product
  /// is 5 % slower (Zen 4).
  Index depth = 1024;

  /// Merges formed together: they share the bytes of experts that are read, of which 16 leave each little.
  Index merges = 16;

  // Gradients.

  /// Merges whose gradients are formed together; no more than max_gradient_merges, which arrays are made for.
  Index gradient_merges = max_gradient_merges;

  /// Inputs whose gradients of merged experts are formed, and spread, at a time: with those of all merges,
  /// the rows of the experts that they are spread to are to stay in L2. With 32 of them a layer's backward
  /// takes 2 to 10 % less than with 96 (Xeon, L2 of 2 MB).
  Index gradient_inputs = 32;

  /// Outputs and inputs of the merged panels that the gradient of x multiplies with at a time. Every sum goes
  /// through memory once for each block of outputs, so that 192 of them cost little beside their
  /// multiply-adds, and a panel of so many stays in L1.
  Index turned_outputs = 192;
  Index turned_inputs = 48;

  /// Tokens that are added to one sum one after another; what they give is added pairwise (sums.hpp). With
  /// about 512, adding parts takes less than 1 % of what forming them does.
  Index serial_tokens = 512;

  /// Merges whose gradients are added to an expert's one after another; the same.
  Index serial_merges = 256;
};

/// Blocks for the caches of this machine, as Eigen finds them; Eigen::setCpuCacheSizes says otherwise.
inline Blocks machine_blocks() {
  const Index l1 = std::clamp<Index>(Eigen::l1CacheSize(), Index{1} << 14, 2 * most_slice_bytes);
  const Index l2 = std::clamp<Index>(Eigen::l2CacheSize(), Index{1} << 18, Index{1} << 22);
  Blocks blocks;
  blocks.slice_bytes = l1 / 2;
  blocks.merged_bytes = l2 / 8;
  blocks.sums_bytes = l2 / 4;
  blocks.activation_bytes = l2 * 5 / 16;
  return blocks;
}

}  // namespace meo::detail

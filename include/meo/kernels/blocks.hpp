#pragma once

/// How much kernels work on at a time.

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Upper bound of a thread's scratch, whatever the sizes of the problem.
inline constexpr Index max_scratch_bytes = Index{1} << 21;

/// Merges whose gradients are formed together at most, however small the experts are.
inline constexpr Index max_gradient_merges = 32;

/// Limits; a kernel stays below them, and takes one of a thing at least. They change the speed only: no
/// product depends on them, to the bit, and of gradients only how the parts of a long sum are added.
struct Blocks {
  Index scratch_bytes = max_scratch_bytes;  ///< of a thread

  /// A small L1, for what a tile reads again and again.
  Index l1_bytes = Index{1} << 15;

  /// Strips of experts and of merges that stay in L2 from one group of merges to the next.
  Index strip_bytes = Index{3} << 16;

  /// Activations that are passed over again and again, by each group of panels: what can be hoped to stay in
  /// a shared L3.
  Index activation_bytes = Index{1} << 22;

  /// Inputs whose partial sums are formed at a time: the whole depth if it is at most this, else about equal
  /// parts. Shorter ones would have sums go through memory more often: with 256 inputs a product is 5 %
  /// slower (Zen 4).
  Index depth = 1024;

  /// Merges formed together: they share the bytes of experts that are read, of which 16 leave each little.
  Index merges = 16;

  // Gradients.

  /// Merges whose gradients are formed together; no more than max_gradient_merges, which arrays are made for.
  Index gradient_merges = max_gradient_merges;

  /// Inputs whose gradients of merged experts are formed, and spread, at a time: with those of all merges,
  /// the rows of the experts that they are spread to are to stay in L2.
  Index gradient_inputs = 96;

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

}  // namespace meo::detail

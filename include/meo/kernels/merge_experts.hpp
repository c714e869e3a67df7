#pragma once

/// Ŵ = Σ_i g_i W_i and b̂ = Σ_i g_i b_i formed whole, for products that use them again and again.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <meo/compiled.hpp>
#include <meo/finite.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/pairs.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/merge.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/parts/stored.hpp>
#include <meo/kernels/parts/unroll.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/kernels/storage.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// The scale of each of NR columns of a panel's weights, in_features × NR; NaN for one with a weight that is
/// not finite.
template <class Scalar>
std::array<Scalar, Tile<Scalar>::columns> scales_of(const Scalar* weights, Index in_features) {
  constexpr std::size_t columns = Tile<Scalar>::columns;
  std::array<Scalar, columns> scales;
  const auto set = [&](std::size_t column, bool is_storable, const Scalar& largest) {
    scales[column] = is_storable ? quantum_scale(largest) : std::numeric_limits<Scalar>::quiet_NaN();
  };
  const Scalar* const end = weights + in_features * static_cast<Index>(columns);
  if constexpr (std::is_same_v<Scalar, float>) {
    // Sizes are in the order of their bits, and what is not finite is the largest.
    std::array<std::uint32_t, columns> largest{};
    for (const Scalar* row = weights; row < end; row += columns) {
      for (std::size_t c = 0; c < columns; ++c)
        largest[c] = (std::max)(largest[c], std::bit_cast<std::uint32_t>(row[c]) & 0x7fffffff);
    }
    for (std::size_t c = 0; c < columns; ++c)
      set(c, largest[c] < exponent_bits<float>, std::bit_cast<float>(largest[c]));
  } else {
    using std::abs;
    std::array<Scalar, columns> largest{};
    std::array<bool, columns> is_storable;
    is_storable.fill(true);
    for (const Scalar* row = weights; row < end; row += columns) {
      for (std::size_t c = 0; c < columns; ++c) {
        largest[c] = (std::max)(largest[c], Scalar(abs(row[c])));
        is_storable[c] = is_storable[c] && is_finite(row[c]);
      }
    }
    for (std::size_t c = 0; c < columns; ++c) set(c, is_storable[c], largest[c]);
  }
  return scales;
}

/// Stores a panel's weights, in_features × NR. In 8 bits an output of which one is not finite is NaN.
template <class Scalar, class Storage>
void store_weights(const Scalar* weights, const PanelBank<Scalar, Storage>& bank, Index p) {
  constexpr Index columns = Tile<Scalar>::columns, size = PacketOf<Scalar>::size;
  constexpr int packets = Tile<Scalar>::packets;
  Storage* to = bank.weights(p, 0);
  Packet<Scalar> divisors[packets];
  if constexpr (is_quantized<Storage>) {
    auto scales = scales_of(weights, bank.in_features);
    std::copy(scales.begin(), scales.end(), bank.scales(p, 0));
    for (Scalar& scale : scales)
      scale = scale > Scalar(0) ? scale : Scalar(1);  // of zeros, or of what is NaN anyway
    for (int i = 0; i < packets; ++i) divisors[i] = load<Scalar>(scales.data() + i * size);
  }
  const Scalar* const end = weights + bank.in_features * columns;
  for (; weights < end; weights += columns, to += columns) {
    MEO_UNROLL_ALL
    for (int i = 0; i < packets; ++i) {
      Packet<Scalar> packet = load<Scalar>(weights + i * size);
      if constexpr (is_quantized<Storage>) packet = divide(packet, divisors[i]);
      store_as<Scalar>(to + i * size, packet);
    }
  }
}

/// Scalars that merge_experts needs for each thread.
template <class Scalar, class Storage>
Index merge_experts_scratch_size(const PanelBank<Scalar, Storage>& merged) {
  return stores_scalars<Scalar, Storage> ? 0 : merged.in_features * merged.columns;
}

/// merged: a bank of one expert of the same shape, overwritten; without terms with zeros. Its values are the
/// chains of multiply-adds, in the order of the terms, that merged_product forms, and then stored; a single
/// expert of weight 1 that is stored as scalars is copied, as merged_product uses it where it lies.
template <class Scalar, class Storage, class MergedStorage>
void merge_experts(const PanelBank<Scalar, const Storage>& bank, MergeTerms<Scalar> terms,
                   const PanelBank<Scalar, MergedStorage>& merged, Scratch<Scalar> scratch,
                   const Blocks& limits = machine_blocks()) {
  constexpr Index columns = Tile<Scalar>::columns;
  const Index size = bank.in_features * columns;
  // What is summed up of the first experts is in L1 when the next are added.
  const Index strip = terms.count <= merge_terms ? size : merged_strip_rows<Scalar>(limits) * columns;
  const Index scratch_size = merge_experts_scratch_size(merged);
  const bool copies = stores_scalars<Scalar, Storage> && terms.are_one_expert();
  // All of a source's rows, or zeros.
  const auto merge_all = [&](const auto& source, Index values, Scalar* to) {
    if (terms.count == 0) std::fill_n(to, values, Scalar(0));
    else if (copies) std::copy_n(source.expert(terms.experts[0]), values, to);
    else merge_rows(source, terms, terms.count, values, to);
  };
  parallel_ranges(bank.num_panels(), scratch.threads, [&](Index begin, Index end, Index thread) {
    for (Index p = begin; p < end; ++p) {
      if (bank.has_bias) {
        const MergeSource<Scalar> biases{bank.biases(p, 0), bank.bias_expert_stride()};
        merge_all(biases, columns, merged.biases(p, 0));
      }
      Scalar* weights = scratch.data + thread * scratch_size;
      if constexpr (stores_scalars<Scalar, MergedStorage>) weights = merged.weights(p, 0);
      for (Index at = 0; at < size; at += strip) {
        const auto source = merge_source<Scalar, Storage>(bank, p, at / columns);
        merge_all(source, (std::min)(strip, size - at), weights + at);
      }
      if constexpr (!stores_scalars<Scalar, MergedStorage>) store_weights(weights, merged, p);
    }
  });
}

#define MEO_INSTANCES(instance, Scalar)                                                   \
  instance void merge_experts(const PanelBank<Scalar, const Scalar>&, MergeTerms<Scalar>, \
                              const PanelBank<Scalar, Scalar>&, Scratch<Scalar>, const Blocks&);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

#pragma once

/// The gradient of x through one expert: dx = dy W.

#include <algorithm>

#include <meo/compiled.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/gradient_blocking.hpp>
#include <meo/kernels/parts/merge_turned.hpp>
#include <meo/kernels/parts/multiply.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/parts/prefetch.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Part of the gradient of x: some panels of NR inputs, with what some panels of NR outputs add to it.
struct TurnedBlock {
  Index first_panel;  ///< of outputs
  Index panels;
  Index first_input_panel;
  Index input_panels;
};

/// A block's weights, merged and turned.
template <class Scalar>
class TurnedPanels {
 public:
  using Bank = PanelBank<Scalar, const Scalar>;
  static constexpr Index columns = Tile<Scalar>::columns;

  /// data: size scalars.
  TurnedPanels(const Bank& bank, const TurnedBlock& block, Scalar* data)
      : bank_(bank), block_(block), data_(data) {}

  /// Scalars that blocks of so many panels take.
  static constexpr Index size(Index panels, Index input_panels) {
    return panels * input_panels * columns * columns;
  }

  /// Inputs of a panel of NR that are merged at a time.
  static constexpr Index strip = PacketOf<Scalar>::size;
  static constexpr Index num_strips = columns / strip;

  /// Writes the part that is merged from a strip of inputs and NR outputs of the experts.
  void merge(Index panel, Index input_panel, Index s, MergeTerms<Scalar> terms) const {
    const Index input = (block_.first_input_panel + input_panel) * columns + s * strip;
    if (input >= bank_.in_features) return;
    merge_turned(merge_source(bank_, block_.first_panel + panel, input), terms,
                 (std::min)(strip, bank_.in_features - input),
                 data_ + input_panel * panel_stride() + panel * columns * columns + s * strip);
  }

  /// Copies the outputs that the block has of `count` rows of dy, from `first` on. packed: count ×
  /// packed_gradient_stride.
  void pack(const Rows<const Scalar>& dy, Index first, Index count, Scalar* packed) const {
    const Index output = block_.first_panel * columns;
    const Index outputs = bank_.valid_columns(block_.first_panel, block_.panels);
    for (Index r = 0; r < count; ++r) {
      if (r + pack_ahead < count) prefetch_row(dy.row(first + r + pack_ahead) + output, outputs);
      std::copy_n(dy.row(first + r) + output, outputs,
                  packed + r * packed_gradient_stride<Scalar>(block_.panels));
    }
  }

  /// dx (+)= dy · W for `rows` packed rows of dy. dx: as many of in_features. Adds to what other outputs have
  /// given, and if `add` to what dx has held before.
  void multiply(const Scalar* packed, Index rows, bool add, const Rows<Scalar>& dx,
                PrefetchQueue& ahead) const {
    Panels<Scalar> weights = panels(add);
    const Index inputs = weights.outputs;
    for (Index i = 0; i < block_.input_panels; ++i) {
      weights.first = data_ + i * panel_stride();
      weights.outputs = (std::min)(columns, inputs - i * columns);
      multiply_panels(ProductRows<Scalar>{{packed, packed_gradient_stride<Scalar>(block_.panels)},
                                          dx.from_column((block_.first_input_panel + i) * columns)},
                      rows, weights, ahead);
    }
  }

  Panels<Scalar> panels(bool add) const {
    return {data_, panel_stride(), bank_.valid_columns(block_.first_panel, block_.panels),
            (std::min)(block_.input_panels * columns, bank_.in_features - block_.first_input_panel * columns),
            add || block_.first_panel > 0 ? nullptr : zero_row<Scalar>.data()};
  }

 private:
  Index panel_stride() const { return block_.panels * columns * columns; }

  const Bank& bank_;
  TurnedBlock block_;
  Scalar* data_;
};

/// Scalars of scratch that input_gradient needs for each thread.
template <class Scalar>
Index input_gradient_scratch_size(const PanelBank<Scalar, const Scalar>& bank, const Blocks& limits = {}) {
  const TurnedBlocks blocks = turned_blocks(bank, 1, limits);
  return TurnedPanels<Scalar>::size(blocks.panels, blocks.input_panels) +
         packed_gradient_rows * packed_gradient_stride<Scalar>(blocks.panels);
}

/// dx (+)= dy W_e for `rows` rows of dy; dx: as many of in_features, not overlapping dy. Adds if `add`.
/// scratch: input_gradient_scratch_size.
template <class Scalar>
void input_gradient(const PanelBank<Scalar, const Scalar>& bank, Index expert, Rows<const Scalar> dy,
                    Index rows, bool add, Rows<Scalar> dx, Scratch<Scalar> scratch,
                    const Blocks& limits = {}) {
  if (rows == 0) return;
  const Scalar one(1);
  const TurnedBlocks blocks = turned_blocks(bank, 1, limits);
  const Index scratch_size = input_gradient_scratch_size(bank, limits);
  parallel_ranges(num_input_panels(bank), scratch.threads, [&](Index begin, Index end, Index thread) {
    Scalar* const packed = scratch.data + thread * scratch_size;
    Scalar* const data = packed + packed_gradient_rows * packed_gradient_stride<Scalar>(blocks.panels);
    for (Index panel = 0; panel < bank.num_panels(); panel += blocks.panels) {
      for (Index input = begin; input < end; input += blocks.input_panels) {
        const TurnedBlock block{panel, (std::min)(blocks.panels, bank.num_panels() - panel), input,
                                (std::min)(blocks.input_panels, end - input)};
        const TurnedPanels<Scalar> turned(bank, block, data);
        for (Index p = 0; p < block.panels; ++p) {
          for (Index i = 0; i < block.input_panels; ++i) {
            for (Index s = 0; s < turned.num_strips; ++s) turned.merge(p, i, s, {&expert, &one, 1});
          }
        }
        PrefetchQueue nothing_ahead;
        for (Index first = 0; first < rows; first += packed_gradient_rows) {
          const Index count = (std::min)(packed_gradient_rows, rows - first);
          turned.pack(dy, first, count, packed);
          turned.multiply(packed, count, add, dx.from(first), nothing_ahead);
        }
      }
    }
  });
}

#define MEO_INSTANCES(instance, Scalar)                                                                  \
  instance void input_gradient(const PanelBank<Scalar, const Scalar>&, Index, Rows<const Scalar>, Index, \
                               bool, Rows<Scalar>, Scratch<Scalar>, const Blocks&);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

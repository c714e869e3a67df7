#pragma once

/// y = x Wᵀ + b with one expert of a bank.

#include <algorithm>

#include <meo/compiled.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/blocking.hpp>
#include <meo/kernels/parts/multiply.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// x: `rows` rows of in_features; y: as many of out_features, not overlapping x. Weights that are not stored
/// as scalars are converted for every few rows.
template <class Scalar, class Storage>
void dense_product(const PanelBank<Scalar, const Storage>& bank, Index expert, Rows<const Scalar> x,
                   Index rows, Rows<Scalar> y, const Blocks& limits = machine_blocks()) {
  if (rows == 0) return;  // x and y may be null then
  constexpr Index columns = Tile<Scalar>::columns;
  const Index group = panels_at_once<Scalar>(rows);
  const DenseBlocks blocks = dense_blocks<Scalar>(bank.in_features, rows, limits);
  parallel_ranges(bank.num_panels(), max_threads(), [&](Index begin, Index end, Index) {
    for (Index row = 0; row < rows; row += blocks.rows) {
      for (Index input = 0; input < bank.in_features; input += blocks.depth) {
        for (Index p = begin; p < end; p += group) {
          Panels<Scalar, Storage> panels = panels_of(bank, expert, p, (std::min)(group, end - p));
          panels.first += input * columns;
          panels.depth = (std::min)(blocks.depth, bank.in_features - input);
          if (input > 0) panels.starts = nullptr;
          const ProductRows<Scalar> product{x.from(row).from_column(input),
                                            y.from(row).from_column(p * columns)};
          const Index count = (std::min)(blocks.rows, rows - row);
          PrefetchQueue ahead;
          for (Index next = p + group; next < (std::min)(p + 2 * group, end); ++next) {
            ahead.add(bank.panel(next, expert) + input * columns,
                      panels.depth * columns * static_cast<Index>(sizeof(Storage)));
          }
          ahead.spread(prefetch_intervals(count, panels));
          multiply_panels(product, count, panels, ahead);
        }
      }
    }
  });
}

#define MEO_INSTANCES(instance, Scalar)                                                                 \
  instance void dense_product(const PanelBank<Scalar, const Scalar>&, Index, Rows<const Scalar>, Index, \
                              Rows<Scalar>, const Blocks&);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

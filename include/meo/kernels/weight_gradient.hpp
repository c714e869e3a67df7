#pragma once

/// The gradient of one expert's weight and bias: dW += Σ_t dy_tᵀ x_t, db += Σ_t dy_t.

#include <algorithm>

#include <meo/compiled.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/gradient_blocking.hpp>
#include <meo/kernels/parts/outer_product.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/parallel.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Inputs of a stretch of tokens that are packed at a time; they stay in L2 while all panels go by.
inline constexpr Index packed_inputs_at_once = 192;

/// Scalars of one panel's gradient of so many inputs and the biases.
template <class Scalar>
inline constexpr Index packed_panel_size = (packed_inputs_at_once + 1) * Tile<Scalar>::columns;

/// Sums of each panel that are kept beside the gradient of `count` rows.
template <class Scalar>
Index weight_gradient_depth(Index count, const Blocks& limits) {
  return pairwise_depth(num_parts(count, serial_tokens<Scalar>(limits)));
}

/// Panels that inputs are packed for at a time: all, where their sums fit into half of a thread's scratch.
template <class Scalar>
Index weight_gradient_panels(Index depth, Index panels, const Blocks& limits) {
  const Index space = limits.scratch_bytes / 2 / static_cast<Index>(sizeof(Scalar));
  return depth == 0 ? panels : std::clamp<Index>(space / (depth * packed_panel_size<Scalar>), 1, panels);
}

/// Scalars of scratch that weight_gradient needs for each thread, with so many panels and no more rows than
/// `count`.
template <class Scalar>
Index weight_gradient_scratch_size(Index panels, Index count, const Blocks& limits = {}) {
  Index sums = 0;
  for (Index depth = weight_gradient_depth<Scalar>(count, limits); depth > 0; --depth) {
    sums = (std::max)(
        sums, depth * weight_gradient_panels<Scalar>(depth, panels, limits) * packed_panel_size<Scalar>);
  }
  return outer_product_tokens<Scalar>(limits) *
             (padded_inputs<Scalar>(packed_inputs_at_once) + Tile<Scalar>::columns) +
         sums;
}

/// The same for some panels of an expert's gradient; belongs to one thread.
template <class Scalar>
class WeightGradient {
 public:
  /// scratch: weight_gradient_scratch_size scalars.
  WeightGradient(const PanelBank<Scalar>& gradients, Index expert, const Rows<const Scalar>& x,
                 const Rows<const Scalar>& dy, Index count, Scalar* scratch, const Blocks& limits)
      : limits_(limits),
        gradients_(gradients),
        expert_(expert),
        x_(x),
        dy_(dy),
        count_(count),
        packed_x_(scratch),
        packed_dy_(packed_x_ + tokens_ * packed_inputs_at_once),
        sums_(packed_dy_ + tokens_ * columns) {}

  /// Panels begin … end − 1.
  void run(Index begin, Index end) const {
    const Index most =
        weight_gradient_panels<Scalar>(weight_gradient_depth<Scalar>(count_, limits_), end - begin, limits_);
    for (Index panel = begin; panel < end; panel += most) {
      for (Index input = 0; input < gradients_.in_features; input += packed_inputs_at_once) {
        run({panel, (std::min)(most, end - panel), input,
             (std::min)(packed_inputs_at_once, gradients_.in_features - input),
             gradients_.has_bias && input == 0});
      }
    }
  }

 private:
  static constexpr Index columns = Tile<Scalar>::columns;

  /// Rows of some panels.
  struct Block {
    Index panel;
    Index panels;
    Index input;
    Index inputs;
    bool has_bias_row;  ///< the first row is that of the biases

    Index size() const { return (inputs + (has_bias_row ? 1 : 0)) * columns; }
  };

  void run(const Block& block) const {
    PairwiseOrder order;
    const auto add = [&](Index to, Index from) {
      for (Index p = 0; p < block.panels; ++p) {
        Scalar* const sum = sum_of(block, p, to);
        const Scalar* const term = sum_of(block, p, from);
        for (Index i = 0; i < block.size(); ++i) sum[i] += term[i];
      }
    };
    const Index serial = serial_tokens<Scalar>(limits_);
    for (Index part = 0; part < count_; part += serial) {
      const Index end = (std::min)(part + serial, count_);
      for (Index first = part; first < end; first += tokens_) {
        const Index stretch = (std::min)(tokens_, end - first);
        pack_inputs(x_, first, stretch, block.input, block.inputs, packed_x_);
        for (Index p = 0; p < block.panels; ++p)
          add_stretch(block, p, first, stretch, part == 0 || first > part, sum_of(block, p, order.slot()));
      }
      order.next(add);
    }
    order.finish(add);
  }

  /// The first part is added to the gradient itself.
  Scalar* sum_of(const Block& block, Index p, Index slot) const {
    if (slot > 0) return sums_ + ((slot - 1) * block.panels + p) * packed_panel_size<Scalar>;
    const Index row = block.input + (gradients_.has_bias && !block.has_bias_row ? 1 : 0);
    return gradients_.panel(block.panel + p, expert_) + row * columns;
  }

  void add_stretch(const Block& block, Index p, Index first, Index stretch, bool add, Scalar* sum) const {
    pack_columns(dy_.from_column((block.panel + p) * columns), first, stretch,
                 gradients_.valid_columns(block.panel + p), packed_dy_);
    if (block.has_bias_row) column_sums(packed_dy_, stretch, add, sum);
    PrefetchQueue nothing_ahead;
    outer_product(packed_x_, block.inputs, packed_dy_, stretch, add, sum + (block.has_bias_row ? columns : 0),
                  nothing_ahead);
  }

  const Blocks& limits_;
  const PanelBank<Scalar>& gradients_;
  Index expert_;
  const Rows<const Scalar>& x_;
  const Rows<const Scalar>& dy_;
  Index count_;
  Index tokens_ = outer_product_tokens<Scalar>(limits_);
  Scalar* packed_x_;
  Scalar* packed_dy_;
  Scalar* sums_;
};

/// Adds the gradient of `count` rows to an expert of the bank of gradients. x: rows of in_features; dy: rows
/// of out_features, each times its weight; scratch: weight_gradient_scratch_size.
template <class Scalar>
void weight_gradient(const PanelBank<Scalar>& gradients, Index expert, Rows<const Scalar> x,
                     Rows<const Scalar> dy, Index count, Scratch<Scalar> scratch, const Blocks& limits = {}) {
  const Index scratch_size = weight_gradient_scratch_size<Scalar>(gradients.num_panels(), count, limits);
  parallel_ranges(gradients.num_panels(), scratch.threads, [&](Index begin, Index end, Index thread) {
    WeightGradient<Scalar>(gradients, expert, x, dy, count, scratch.data + thread * scratch_size, limits)
        .run(begin, end);
  });
}

#define MEO_INSTANCES(instance, Scalar)                                                                  \
  instance void weight_gradient(const PanelBank<Scalar>&, Index, Rows<const Scalar>, Rows<const Scalar>, \
                                Index, Scratch<Scalar>, const Blocks&);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

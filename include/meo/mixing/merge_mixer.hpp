#pragma once

/// Experts merged into one: y_t = x_t Ŵ_rᵀ + b̂_r with Ŵ_r = Σ_i g_ri W_i for the tokens t of row r (He et al.
/// 2023, section 3). A row of so few tokens that merging does not pay has its experts' outputs combined.

#include <algorithm>
#include <span>

#include <meo/compiled.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/dispatched_product.hpp>
#include <meo/kernels/merge_plan.hpp>
#include <meo/kernels/merged_input_gradient.hpp>
#include <meo/kernels/merged_product.hpp>
#include <meo/kernels/merged_weight_gradient.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/mixing/merge_order.hpp>
#include <meo/mixing/mixture.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

template <class Scalar, class Storage = Scalar>
class MergeMixer {
 public:
  MergeMixer(MergeOrder order, Level level) : order_(order), level_(level) {}

  /// x: T × in_features; y: T × out_features, overwritten.
  void forward(const Mixture<Scalar, Storage>& of, const MatrixView<Scalar>& x, MatrixRef<Scalar> y,
               MixingMemory<Scalar>& memory) const;

  /// Through the merged experts of all rows, also where forward combined their outputs.
  void backward(const Mixture<Scalar>& of, const MixtureGradient<Scalar>& gradient,
                MixingMemory<Scalar>& memory, MixingGradientMemory<Scalar>& gradient_memory) const;

 private:
  /// Which rows are merged and which have their outputs combined. What happens to a row depends on no other.
  void choose(const Mixture<Scalar, Storage>& of, MixingMemory<Scalar>& memory) const;

  /// The same merges, but apart where the gradients of the weights have to be.
  static void split_by_gradient(const Assignment<Scalar>& assignment, const MergePlan<Scalar>& merges,
                                MergePlan<Scalar>& split);

  /// From the plan's order to the assignment's. Of rows that share a merge, one takes the sum of all.
  static void add_products(const Assignment<Scalar>& assignment, const MergePlan<Scalar>& merges,
                           const Scalar* products, std::span<Scalar> d_weights);

  MergeOrder order_;
  Level level_;
};

template <class Scalar, class Storage>
void MergeMixer<Scalar, Storage>::forward(const Mixture<Scalar, Storage>& of, const MatrixView<Scalar>& x,
                                          MatrixRef<Scalar> y, MixingMemory<Scalar>& memory) const {
  zero_rows_without_experts(of.assignment, of.governed, y);
  choose(of, memory);
  const Pairs<Scalar> pairs = pairs_of(of.assignment);
  plan_merges<Scalar>(pairs, of.governed, memory.merges, memory.is_combined.data());
  dispatch_tokens<Scalar>(pairs, of.experts.num_experts(), of.governed, memory.dispatch,
                          memory.is_merged.data());
  const auto bank = of.experts.panels();
  const Blocks limits = machine_blocks();  // once: memory and product have to agree
  const MergedProductMemory<Scalar> work{
      reserve(memory.packed_rows, merged_product_packed_size(bank, x.rows(), limits)),
      memory.reserve_scratch(
          (std::max)(merged_product_scratch_size(bank, limits), dispatched_product_scratch_size(bank)))};
  merged_product<Scalar>(bank, memory.merges, of.governed, rows_of(x), rows_of(y), work, limits);
  dispatched_product<Scalar>(bank, memory.dispatch, rows_of(x), rows_of(y), work.scratch);
}

template <class Scalar, class Storage>
void MergeMixer<Scalar, Storage>::backward(const Mixture<Scalar>& of, const MixtureGradient<Scalar>& gradient,
                                           MixingMemory<Scalar>& memory,
                                           MixingGradientMemory<Scalar>& gradient_memory) const {
  MatrixRef<Scalar> dx = gradient.dx;
  zero_rows_without_experts(of.assignment, of.governed, dx);
  const Pairs<Scalar> pairs = pairs_of(of.assignment);
  plan_merges<Scalar>(pairs, of.governed, memory.merges);
  split_by_gradient(of.assignment, memory.merges, gradient_memory.weight_merges);
  const MergePlan<Scalar>& merges = gradient_memory.weight_merges;
  const MatrixView<Scalar>&x = gradient.x, &dy = gradient.dy;
  const auto bank = of.experts.panels();
  // For as many merges as there may be: another batch of as many rows is to find memory enough.
  const Scratch<Scalar> scratch =
      memory.reserve_scratch((std::max)(merged_weight_gradient_scratch_size(bank, pairs.rows, x.rows()),
                                        merged_input_gradient_scratch_size(bank, pairs.rows)));
  Scalar* const products = reserve(gradient_memory.merge_products, pairs.size());
  const MergedWeightGradientMemory<Scalar> work{
      reserve(gradient_memory.partial_products, product_chunks(bank.num_panels()) * pairs.size()),
      reserve(gradient_memory.packed_inputs, x.rows() * padded_inputs<Scalar>(x.cols())), scratch,
      reserve(gradient_memory.partial_gradients, scratch.threads * partial_gradients_size(bank, pairs.rows))};
  merged_weight_gradient<Scalar>(bank, gradient.experts.mutable_panels(), merges, of.governed, rows_of(x),
                                 rows_of(dy), products, work);
  add_products(of.assignment, merges, products, gradient.d_weights);
  merged_input_gradient<Scalar>(bank, memory.merges, of.governed, rows_of(dy), rows_of(dx), scratch);
}

template <class Scalar, class Storage>
void MergeMixer<Scalar, Storage>::choose(const Mixture<Scalar, Storage>& of,
                                         MixingMemory<Scalar>& memory) const {
  const Pairs<Scalar> pairs = pairs_of(of.assignment);
  memory.is_merged.resize(static_cast<std::size_t>(pairs.rows));
  memory.is_combined.resize(static_cast<std::size_t>(pairs.rows));
  for (Index row = 0; row < pairs.rows; ++row) {
    const auto r = static_cast<std::size_t>(row);
    const bool merges = merges_row(order_, level_, pairs.row(row), of.governed[r + 1] - of.governed[r]);
    memory.is_merged[r] = merges ? 1 : 0;
    memory.is_combined[r] = merges ? 0 : 1;
  }
}

template <class Scalar, class Storage>
void MergeMixer<Scalar, Storage>::split_by_gradient(const Assignment<Scalar>& assignment,
                                                    const MergePlan<Scalar>& merges,
                                                    MergePlan<Scalar>& split) {
  split.clear_merges(assignment.rows);
  split = merges;
  split.merge_begins.clear();
  split.product_begins.clear();
  const std::vector<Index>& groups = assignment.gradient_groups;
  const auto share = [&](Index a, Index b) {
    return !groups.empty() && groups[static_cast<std::size_t>(a)] == groups[static_cast<std::size_t>(b)];
  };
  for (Index m = 0; m < merges.num_merges(); ++m) {
    const Index begin = merges.begin(m);
    for (Index i = begin; i < merges.begin(m + 1); ++i) {
      if (i == begin || !share(merges.sequence(i - 1), merges.sequence(i))) split.begin_merge(i);
    }
  }
  split.finish_merges();
}

template <class Scalar, class Storage>
void MergeMixer<Scalar, Storage>::add_products(const Assignment<Scalar>& assignment,
                                               const MergePlan<Scalar>& merges, const Scalar* products,
                                               std::span<Scalar> d_weights) {
  for (Index m = 0; m < merges.num_merges(); ++m) {
    const Index row = merges.sequence(merges.begin(m));
    const std::span<const Index> experts = assignment.row_experts(row);
    const MergeTerms<Scalar> terms = merges.terms(m);
    for (Index i = 0; i < terms.count; ++i) {
      const auto place = std::find(experts.begin(), experts.end(), terms.experts[i]) - experts.begin();
      d_weights[static_cast<std::size_t>(assignment.begin(row) + place)] +=
          products[merges.products_begin(m) + i];
    }
  }
}

#define MEO_INSTANCES(instance, Scalar) instance class MergeMixer<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

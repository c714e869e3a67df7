#pragma once

/// Work that is done expert by expert, on the tokens dispatched to each; and its backward, which is one for
/// experts that are projections and for those that are whole blocks.

#include <algorithm>
#include <span>

#include <meo/experts/expert_bank.hpp>
#include <meo/kernels/bias_product.hpp>
#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/input_gradient.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/kernels/weight_gradient.hpp>
#include <meo/mixing/mixture.hpp>
#include <meo/parallel.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// The tokens of one expert.
template <class Scalar>
struct ExpertTokens {
  Index expert;
  Index first_slot;  ///< of the dispatch
  Index count;
  const Index* tokens;
  const Scalar* weights;
  const unsigned char* is_first;
};

/// Calls f(tokens) for each expert that has some.
template <class Scalar, class Function>
void for_experts(const Dispatch<Scalar>& dispatch, const Function& f) {
  for (Index expert = 0; expert + 1 < static_cast<Index>(dispatch.begins.size()); ++expert) {
    const Index first = dispatch.begin(expert), count = dispatch.begin(expert + 1) - first;
    if (count == 0) continue;
    f(ExpertTokens<Scalar>{expert, first, count, dispatch.tokens.data() + first,
                           dispatch.weights.data() + first, dispatch.is_first.data() + first});
  }
}

/// Adds up the products of all slots of a row's pair, of each pair to its place in d_weights. governed: see
/// Mixture.
template <class Scalar>
void collect_weights_gradient(const Assignment<Scalar>& assignment, std::span<const Index> governed,
                              const Dispatch<Scalar>& dispatch, std::span<const Sum<Scalar>> slot_products,
                              std::span<Scalar> d_weights) {
  for_experts(dispatch, [&](const ExpertTokens<Scalar>& expert) {
    std::size_t row = 0;
    for (Index i = 0; i < expert.count;) {
      while (governed[row + 1] <= expert.tokens[i]) ++row;
      const std::span<const Index> experts = assignment.row_experts(static_cast<Index>(row));
      const auto place = std::find(experts.begin(), experts.end(), expert.expert) - experts.begin();
      // All tokens of a row that has the expert are dispatched to it.
      const Index end = i + governed[row + 1] - governed[row];
      Scalar& d_weight =
          d_weights[static_cast<std::size_t>(assignment.begin(static_cast<Index>(row)) + place)];
      const Sum<Scalar> sum =
          pairwise_sum<Sum<Scalar>>(expert.first_slot + i, expert.first_slot + end,
                                    [&](Index s) { return slot_products[static_cast<std::size_t>(s)]; });
      d_weight = static_cast<Scalar>(Sum<Scalar>(static_cast<Sum<Scalar>>(d_weight) + sum));
      i = end;
    }
  });
}

/// Backward of y_t = Σ_i g_ti (h_t W_iᵀ + b_i), where h_t is what expert i makes of x_t: with q_t = dy_t W_i,
/// g_ti q_t is the gradient of h_t, and dg_ti = ⟨dy_t, h_t W_iᵀ + b_i⟩ = ⟨q_t, h_t⟩ + ⟨dy_t, b_i⟩ needs no
/// output of the expert.
///
/// inputs(tokens): the rows h of an expert's tokens. through(tokens, d_inputs): from the gradients of h,
/// contiguous rows, to those of x, contiguous rows of as many columns as dx has. Both may use the memory of
/// `scratch`.
template <class Scalar, class Inputs, class Through>
void backward_by_expert(const Mixture<Scalar>& of, const Dispatch<Scalar>& dispatch,
                        const MixtureGradient<Scalar>& gradient, MixingGradientMemory<Scalar>& memory,
                        Scalar* q, Scratch<Scalar> scratch, const Inputs& inputs, const Through& through) {
  const auto bank = of.experts.panels();
  const auto bank_gradients = gradient.experts.mutable_panels();
  const MatrixView<Scalar>& dy = gradient.dy;
  MatrixRef<Scalar> dx = gradient.dx;
  zero_rows_without_experts(of.assignment, of.governed, dx);
  memory.slot_products.resize(dispatch.tokens.size());
  for_experts(dispatch, [&](const ExpertTokens<Scalar>& at) {
    const Rows<const Scalar> h = inputs(at);
    const Rows<const Scalar> weighted_dy{dy.data(), dy.row_stride(), at.tokens, at.weights};
    weight_gradient<Scalar>(bank_gradients, at.expert, h, weighted_dy, at.count, scratch);
    input_gradient<Scalar>(bank, at.expert, {dy.data(), dy.row_stride(), at.tokens}, at.count, false,
                           {q, bank.in_features}, scratch);
    parallel_ranges(at.count, scratch.threads, [&](Index begin, Index end, Index) {
      for (Index r = begin; r < end; ++r) {
        Eigen::Map<Vector<Scalar>> q_row(q + r * bank.in_features, bank.in_features);
        const Eigen::Map<const Vector<Scalar>> h_row(h.row(r), bank.in_features);
        memory.slot_products[static_cast<std::size_t>(at.first_slot + r)] =
            dot(q_row, h_row) + bias_product(bank, at.expert, dy.row(at.tokens[r]));
        q_row *= at.weights[r];
      }
    });
    const Scalar* const d_rows = through(at, q);
    parallel_ranges(at.count, scratch.threads, [&](Index begin, Index end, Index) {
      for (Index r = begin; r < end; ++r) {
        const Eigen::Map<const Vector<Scalar>> row(d_rows + r * dx.cols(), dx.cols());
        if (at.is_first[r] != 0) dx.row(at.tokens[r]) = row.transpose();
        else dx.row(at.tokens[r]) += row.transpose();
      }
    });
  });
  collect_weights_gradient<Scalar>(of.assignment, of.governed, dispatch, memory.slot_products,
                                   gradient.d_weights);
}

}  // namespace meo::detail

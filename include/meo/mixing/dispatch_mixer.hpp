#pragma once

/// The vanilla mixture: each expert works on the tokens dispatched to it, and their outputs are combined,
/// y_t = Σ_i g_ti (x_t W_iᵀ + b_i).

#include <algorithm>

#include <meo/compiled.hpp>
#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/dispatched_product.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/mixing/by_expert.hpp>
#include <meo/mixing/mixture.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

template <class Scalar, class Storage = Scalar>
class DispatchMixer {
 public:
  /// x: T × in_features; y: T × out_features, overwritten.
  void forward(const Mixture<Scalar, Storage>& of, const MatrixView<Scalar>& x, MatrixRef<Scalar> y,
               MixingMemory<Scalar>& memory) const;

  void backward(const Mixture<Scalar>& of, const MixtureGradient<Scalar>& gradient,
                MixingMemory<Scalar>& memory, MixingGradientMemory<Scalar>& gradient_memory) const;

 private:
  static void dispatch(const Mixture<Scalar, Storage>& of, MixingMemory<Scalar>& memory) {
    dispatch_tokens<Scalar>(pairs_of(of.assignment), of.experts.num_experts(), of.governed, memory.dispatch);
  }
};

template <class Scalar, class Storage>
void DispatchMixer<Scalar, Storage>::forward(const Mixture<Scalar, Storage>& of, const MatrixView<Scalar>& x,
                                             MatrixRef<Scalar> y, MixingMemory<Scalar>& memory) const {
  zero_rows_without_experts(of.assignment, of.governed, y);
  dispatch(of, memory);
  const auto bank = of.experts.panels();
  dispatched_product<Scalar>(bank, memory.dispatch, rows_of(x), rows_of(y),
                             memory.reserve_scratch(dispatched_product_scratch_size(bank)));
}

template <class Scalar, class Storage>
void DispatchMixer<Scalar, Storage>::backward(const Mixture<Scalar>& of,
                                              const MixtureGradient<Scalar>& gradient,
                                              MixingMemory<Scalar>& memory,
                                              MixingGradientMemory<Scalar>& gradient_memory) const {
  dispatch(of, memory);
  const auto bank = of.experts.panels();
  const MatrixView<Scalar>& x = gradient.x;
  const Scratch<Scalar> scratch = memory.reserve_scratch((std::max)(
      weight_gradient_scratch_size<Scalar>(bank.num_panels(), x.rows()), input_gradient_scratch_size(bank)));
  Scalar* const q = reserve(gradient_memory.expert_rows, x.rows() * x.cols());
  backward_by_expert(
      of, memory.dispatch, gradient, gradient_memory, q, scratch,
      [&](const ExpertTokens<Scalar>& at) {
        return Rows<const Scalar>{x.data(), x.row_stride(), at.tokens};
      },
      [](const ExpertTokens<Scalar>&, const Scalar* d_inputs) { return d_inputs; });
}

#define MEO_INSTANCES(instance, Scalar) instance class DispatchMixer<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

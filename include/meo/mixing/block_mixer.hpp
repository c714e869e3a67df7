#pragma once

/// The vanilla mixture of experts that are whole feed-forward blocks, y_t = Σ_i g_ti block_i(x_t): one
/// decision for all projections of a block.
///
/// Letters: T tokens, D features, H hidden features.

#include <algorithm>

#include <meo/experts/expert_bank.hpp>
#include <meo/kernels/dispatch.hpp>
#include <meo/kernels/dispatched_product.hpp>
#include <meo/kernels/input_gradient.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/kernels/weight_gradient.hpp>
#include <meo/mixing/by_expert.hpp>
#include <meo/mixing/hidden.hpp>
#include <meo/mixing/mixture.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// The experts' projections but for `down`, which the mixture has. Pointers: null unless gated.
template <class Scalar, class Storage = Scalar>
struct BlockInputs {
  const ExpertBank<Scalar, Storage>& up;
  const ExpertBank<Scalar, Storage>* gate_up;
};
template <class Scalar>
struct BlockInputsGradient {
  ExpertBank<Scalar>& up;
  ExpertBank<Scalar>* gate_up;
  Scalar* hidden;       ///< T × H of memory
  Scalar* gate_hidden;  ///< the same, where gated
};

template <class Scalar, class Activation, class Storage = Scalar>
class BlockMixer {
 public:
  explicit BlockMixer(const Activation& activation) : activation_(activation) {}

  /// x: T × D; y: T × D, overwritten; h: memory of T rows.
  void forward(const Mixture<Scalar, Storage>& of, const BlockInputs<Scalar, Storage>& inputs,
               const MatrixView<Scalar>& x, MatrixRef<Scalar> y, const Hidden<Scalar>& h,
               MixingMemory<Scalar>& memory) const;

  /// gradient: of `down` as the mixture's experts. The hidden activations are computed again, expert by
  /// expert, into h, whose pre_activation is apart from its hidden.
  void backward(const Mixture<Scalar>& of, const BlockInputs<Scalar>& inputs,
                const MixtureGradient<Scalar>& gradient, const BlockInputsGradient<Scalar>& inputs_gradient,
                const Hidden<Scalar>& h, MixingMemory<Scalar>& memory,
                MixingGradientMemory<Scalar>& gradient_memory) const;

 private:
  static void dispatch(const Mixture<Scalar, Storage>& of, MixingMemory<Scalar>& memory) {
    dispatch_tokens<Scalar>(pairs_of(of.assignment), of.experts.num_experts(), of.governed, memory.dispatch);
  }

  /// Of the tokens of one expert, one after another.
  void compute_hidden(const ExpertTokens<Scalar>& at, const BlockInputs<Scalar, Storage>& inputs,
                      const Dispatch<Scalar>& dispatch, const MatrixView<Scalar>& x, const Hidden<Scalar>& h,
                      Scratch<Scalar> scratch) const {
    gathered_product<Scalar>(inputs.up.panels(), at.expert, dispatch, rows_of(x),
                             {h.pre_activation, h.features}, scratch);
    if (inputs.gate_up != nullptr) {
      gathered_product<Scalar>(inputs.gate_up->panels(), at.expert, dispatch, rows_of(x),
                               {h.gate_hidden, h.features}, scratch);
    }
    activate_rows(activation_, h, at.count);
  }

  const Activation& activation_;
};

template <class Scalar, class Activation, class Storage>
void BlockMixer<Scalar, Activation, Storage>::forward(const Mixture<Scalar, Storage>& of,
                                                      const BlockInputs<Scalar, Storage>& inputs,
                                                      const MatrixView<Scalar>& x, MatrixRef<Scalar> y,
                                                      const Hidden<Scalar>& h,
                                                      MixingMemory<Scalar>& memory) const {
  zero_rows_without_experts(of.assignment, of.governed, y);
  dispatch(of, memory);
  const Scratch<Scalar> scratch =
      memory.reserve_scratch((std::max)(dispatched_product_scratch_size(inputs.up.panels()),
                                        dispatched_product_scratch_size(of.experts.panels())));
  for_experts(memory.dispatch, [&](const ExpertTokens<Scalar>& at) {
    compute_hidden(at, inputs, memory.dispatch, x, h, scratch);
    combined_product<Scalar>(of.experts.panels(), at.expert, memory.dispatch, {h.hidden, h.features},
                             rows_of(y), scratch);
  });
}

template <class Scalar, class Activation, class Storage>
void BlockMixer<Scalar, Activation, Storage>::backward(const Mixture<Scalar>& of,
                                                       const BlockInputs<Scalar>& inputs,
                                                       const MixtureGradient<Scalar>& gradient,
                                                       const BlockInputsGradient<Scalar>& inputs_gradient,
                                                       const Hidden<Scalar>& h, MixingMemory<Scalar>& memory,
                                                       MixingGradientMemory<Scalar>& gradient_memory) const {
  dispatch(of, memory);
  const MatrixView<Scalar>& x = gradient.x;
  const auto up = inputs.up.panels(), down = of.experts.panels();
  const Scratch<Scalar> scratch = memory.reserve_scratch((std::max)(
      {weight_gradient_scratch_size<Scalar>((std::max)(up.num_panels(), down.num_panels()), x.rows()),
       input_gradient_scratch_size(up), input_gradient_scratch_size(down)}));
  Scalar* const rows_of_x = reserve(gradient_memory.expert_rows, x.rows() * x.cols());
  backward_by_expert(
      of, memory.dispatch, gradient, gradient_memory, inputs_gradient.hidden, scratch,
      [&](const ExpertTokens<Scalar>& at) {
        compute_hidden(at, inputs, memory.dispatch, x, h, scratch);
        return Rows<const Scalar>{h.hidden, h.features};
      },
      [&](const ExpertTokens<Scalar>& at, Scalar* d_hidden) -> const Scalar* {
        activate_rows_backward(activation_, h, at.count, d_hidden, inputs_gradient.gate_hidden);
        const auto through = [&](const ExpertBank<Scalar>& experts, ExpertBank<Scalar>& gradients,
                                 const Scalar* d_output, bool add) {
          weight_gradient<Scalar>(gradients.mutable_panels(), at.expert,
                                  {x.data(), x.row_stride(), at.tokens}, {d_output, h.features}, at.count,
                                  scratch);
          input_gradient<Scalar>(experts.panels(), at.expert, {d_output, h.features}, at.count, add,
                                 {rows_of_x, x.cols()}, scratch);
        };
        through(inputs.up, inputs_gradient.up, d_hidden, false);
        if (inputs.gate_up != nullptr)
          through(*inputs.gate_up, *inputs_gradient.gate_up, inputs_gradient.gate_hidden, true);
        return rows_of_x;
      });
}

}  // namespace meo::detail

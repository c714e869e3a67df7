#pragma once

/// The vanilla mixture of experts, y_t = Σ_{i ∈ S(t)} g_ti (x_t W_iᵀ + b_i): pays for K experts (Shazeer et
/// al. 2017, arXiv 1701.06538, equation 1).

#include <algorithm>
#include <span>

#include <meo/kernels/dispatched_product.hpp>
#include <meo/kernels/input_gradient.hpp>
#include <meo/kernels/weight_gradient.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/routed_layer.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// S(t) is the selection of the row that gates token t: at token level its own, else that of its sequence.
template <class Scalar, int NumExperts = Eigen::Dynamic>
class MoeLayer : public RoutedLayer<MoeLayer<Scalar, NumExperts>, Scalar, NumExperts> {
  using Base = RoutedLayer<MoeLayer<Scalar, NumExperts>, Scalar, NumExperts>;

 public:
  /// At token level every token is a row of the gate.
  static constexpr bool gates_tokens = true;
  static constexpr bool merges_experts = false;

  /// All parameters zero. Throws std::invalid_argument for options that make no layer.
  explicit MoeLayer(const LayerOptions& options) : Base(options) {}

  using Base::forward;

  /// x: T × D; y: T × F; what it holds is overwritten. Returns workspace.routing. Throws
  /// std::invalid_argument if y overlaps x. Allocates only where the workspace has to grow. If it throws, y
  /// is untouched.
  const Routing<Scalar>& forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                 MatrixRef<Scalar> y, Workspace<Scalar>& workspace) const {
    const detail::Offsets offsets = Base::begin(x, inputs, workspace);
    Base::check_output(x, y);
    route_tokens(x, offsets, inputs, workspace);
    combine(x, offsets, workspace.routing, y, workspace);
    Base::finish(offsets, inputs, true, workspace);
    return workspace.routing;
  }

  /// The gate alone. Returns workspace.routing.
  const Routing<Scalar>& route(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                               Workspace<Scalar>& workspace) const {
    const detail::Offsets offsets = Base::begin(x, inputs, workspace);
    route_tokens(x, offsets, inputs, workspace);
    return workspace.routing;
  }

  /// The experts alone, with a routing from elsewhere; of `inputs` only the sequences count. Throws as
  /// forward does, and std::invalid_argument for a routing that does not fit.
  void forward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                      const Routing<Scalar>& routing, MatrixRef<Scalar> y,
                      Workspace<Scalar>& workspace) const {
    const detail::Offsets offsets = Base::begin(x, inputs, workspace);
    Base::check_output(x, y);
    Base::check_routing(routing, x.rows(), offsets.num_sequences());
    combine(x, offsets, routing, y, workspace);
    Base::finish(offsets, inputs, false, workspace);
  }

 private:
  friend Base;
  template <class Layer, class Activation>
  friend class FeedForward;

  // This layer has no token attention.
  template <class Generator>
  static void initialize_attention(Generator&) {}
  static void reset_attention() {}
  static bool is_attention_empty() { return false; }

  /// The tokens that each expert works on, as `routing` says; left in workspace.dispatch.
  const detail::Dispatch<Scalar>& dispatch(const Routing<Scalar>& routing, std::span<const Index> offsets,
                                           Workspace<Scalar>& workspace) const {
    detail::dispatch_tokens<Scalar>(routing.experts, routing.weights, routing.top_k, Base::num_experts(),
                                    gated_offsets(offsets, workspace), workspace.dispatch);
    return workspace.dispatch;
  }

  /// Of the rows of the gate: tokens or sequences.
  std::span<const Index> gated_offsets(std::span<const Index> offsets, Workspace<Scalar>& workspace) const {
    return Base::gates_by_token() ? Base::token_offsets(offsets.back(), workspace) : offsets;
  }

  /// Experts and gate, with what context.weights_gradient holds already.
  void backward_all(const MatrixView<Scalar>& x, std::span<const Index> offsets, const Inputs<Scalar>& inputs,
                    Context<Scalar>& context, const ConstMatrixRef<Scalar>& dy, MoeLayer& gradients,
                    MatrixRef<Scalar> dx, const Scalar& d_loss) const {
    backward_experts(x, offsets, context.routing, context, dy, gradients, dx, context.weights_gradient);
    backward_gate(x, offsets, inputs, context, d_loss, gradients, dx);
  }

  /// The gate's part: from context.weights_gradient and d_loss. Adds to dx and `gradients`.
  void backward_gate(const MatrixView<Scalar>& x, std::span<const Index> offsets,
                     const Inputs<Scalar>& inputs, Context<Scalar>& context, const Scalar& d_loss,
                     MoeLayer& gradients, MatrixRef<Scalar> dx) const {
    if (Base::gates_by_token()) {
      Base::gate().backward(x, context.routing, context.gate, context.weights_gradient, d_loss,
                            gradients.gate(), true, dx.data(), dx.outerStride(), context.gate_gradients,
                            context.scratch);
    } else {
      Base::backward_sequence_gate(offsets, inputs, context, context.weights_gradient, d_loss, gradients,
                                   dx.data(), dx.outerStride());
    }
  }

  /// Adds up what context.slot_products has for every slot of context.dispatch in d_weights.
  void collect_weights_gradient(const Routing<Scalar>& routing, std::span<const Index> offsets,
                                Context<Scalar>& context, std::span<Scalar> d_weights) const {
    using Sum = detail::Sum<Scalar>;
    const std::span<const Index> row_offsets = gated_offsets(offsets, context);
    for (Index expert = 0; expert < Base::num_experts(); ++expert) {
      std::size_t row = 0;
      for (Index slot = context.dispatch.begin(expert); slot < context.dispatch.begin(expert + 1);) {
        while (row_offsets[row + 1] <= context.dispatch.tokens[static_cast<std::size_t>(slot)]) ++row;
        const std::span<const Index> selected = routing.row_experts(static_cast<Index>(row));
        const auto place =
            static_cast<std::size_t>(std::find(selected.begin(), selected.end(), expert) - selected.begin());
        // All tokens of a row that has the expert are dispatched to it.
        const Index end = slot + row_offsets[row + 1] - row_offsets[row];
        Scalar& d_weight = d_weights[row * selected.size() + place];
        const Sum sum = detail::pairwise_sum<Sum>(
            slot, end, [&](Index s) { return context.slot_products[static_cast<std::size_t>(s)]; });
        d_weight = static_cast<Scalar>(Sum(static_cast<Sum>(d_weight) + sum));
        slot = end;
      }
    }
  }

  /// Expert by expert: with q_t = dy_t W_i, dx_t += g_ti q_t and dg_ti = ⟨dy_t, x_t W_iᵀ + b_i⟩ = ⟨q_t, x_t⟩
  /// + ⟨dy_t, b_i⟩, which needs no output of the expert. Writes dx, adds to d_weights.
  void backward_experts(const MatrixView<Scalar>& x, std::span<const Index> offsets,
                        const Routing<Scalar>& routing, Context<Scalar>& context,
                        const ConstMatrixRef<Scalar>& dy, MoeLayer& gradients, MatrixRef<Scalar> dx,
                        std::span<Scalar> d_weights) const {
    const auto bank = Base::experts().panels();
    const auto bank_gradients = gradients.experts().mutable_panels();
    const detail::Dispatch<Scalar>& dispatch = this->dispatch(routing, offsets, context);
    const Index threads = detail::max_threads();
    Scalar* const scratch = detail::reserve(
        context.scratch,
        threads * (std::max)(detail::weight_gradient_scratch_size<Scalar>(bank.num_panels(), x.rows()),
                             detail::input_gradient_scratch_size(bank)));
    Scalar* const q = detail::reserve(context.expert_rows_gradient, x.rows() * x.cols());
    context.slot_products.resize(dispatch.tokens.size());
    for (Index expert = 0; expert < Base::num_experts(); ++expert) {
      const Index begin = dispatch.begin(expert), rows = dispatch.begin(expert + 1) - begin;
      if (rows == 0) continue;
      const Index* const tokens = dispatch.tokens.data() + begin;
      const Scalar* const weights = dispatch.weights.data() + begin;
      detail::weight_gradient<Scalar>(bank_gradients, expert, {x.data(), x.row_stride(), tokens},
                                      {dy.data(), dy.outerStride(), tokens, weights}, rows, scratch, threads);
      detail::input_gradient<Scalar>(bank, expert, {dy.data(), dy.outerStride(), tokens}, rows, false, q,
                                     x.cols(), scratch, threads);
      detail::parallel_ranges(rows, threads, [&](Index first, Index end, Index) {
        for (Index r = first; r < end; ++r) {
          const Eigen::Map<const Vector<Scalar>> q_row(q + r * x.cols(), x.cols());
          const Eigen::Map<const Vector<Scalar>> x_row(x.row(tokens[r]), x.cols());
          const auto slot = static_cast<std::size_t>(begin + r);
          context.slot_products[slot] =
              detail::dot(q_row, x_row) +
              detail::product_with_bias(bank, expert, dy.data() + tokens[r] * dy.outerStride());
          if (dispatch.is_first[slot] != 0) dx.row(tokens[r]) = weights[r] * q_row.transpose();
          else dx.row(tokens[r]) += weights[r] * q_row.transpose();
        }
      });
    }
    collect_weights_gradient(routing, offsets, context, d_weights);
  }

  void route_tokens(const MatrixView<Scalar>& x, std::span<const Index> offsets, const Inputs<Scalar>& inputs,
                    Workspace<Scalar>& workspace) const {
    if (Base::gates_by_token()) {
      Base::gate().route(x, inputs.noise, workspace.routing, workspace.gate);
    } else {
      Base::route_sequences(x, offsets, inputs, workspace);
    }
  }

  void combine(const MatrixView<Scalar>& x, std::span<const Index> offsets, const Routing<Scalar>& routing,
               MatrixRef<Scalar> y, Workspace<Scalar>& workspace) const {
    detail::dispatched_product(Base::experts().panels(), dispatch(routing, offsets, workspace), x.data(),
                               x.row_stride(), y.data(), y.outerStride());
  }
};

}  // namespace meo

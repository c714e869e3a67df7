#pragma once

/// Merging experts into one: Ŵ_b = Σ_{i ∈ S(b)} g_bi W_i, b̂_b = Σ g_bi b_i, y_t = x_t Ŵ_bᵀ + b̂_b for the
/// tokens t of sequence b; pays for one expert (He et al. 2023, arXiv 2310.09832, section 3).

#include <algorithm>
#include <optional>
#include <span>

#include <meo/kernels/dispatched_product.hpp>
#include <meo/kernels/merged_input_gradient.hpp>
#include <meo/kernels/merged_product.hpp>
#include <meo/kernels/merged_weight_gradient.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/routed_layer.hpp>
#include <meo/layers/token_attention.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// At token level token attention comes first, x ← x + TokenAttention(x), and the gate sees the new x, or the
/// old one with options.gate_before_attention. Sequences with the same selection and weights, as those of one
/// task, share one merge. A sequence so short that merging does not pay has its experts' outputs combined
/// instead; see options.merge_order.
template <class Scalar, int NumExperts = Eigen::Dynamic>
class MeoLayer : public RoutedLayer<MeoLayer<Scalar, NumExperts>, Scalar, NumExperts> {
  using Base = RoutedLayer<MeoLayer<Scalar, NumExperts>, Scalar, NumExperts>;

 public:
  /// The gate decides on sequences at every level.
  static constexpr bool gates_tokens = false;
  static constexpr bool merges_experts = true;

  /// All parameters zero. Throws std::invalid_argument for options that make no layer.
  explicit MeoLayer(const LayerOptions& options) : Base(options) {
    if (options.level == Level::token) {
      token_attention_.emplace(options.in_features,
                               detail::reduced_features(options.in_features, options.reduce_factor));
    }
  }

  /// Throws std::invalid_argument at other levels than token.
  TokenAttention<Scalar>& token_attention() {
    require_token_level();
    return *token_attention_;
  }
  const TokenAttention<Scalar>& token_attention() const {
    require_token_level();
    return *token_attention_;
  }

  using Base::forward;

  /// x: T × D; y: T × F; what it holds is overwritten. Returns workspace.routing. Throws
  /// std::invalid_argument if y overlaps x. Allocates only where the workspace has to grow. If it throws, y
  /// is untouched.
  const Routing<Scalar>& forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                 MatrixRef<Scalar> y, Workspace<Scalar>& workspace) const {
    const detail::Offsets offsets = Base::begin(x, inputs, workspace);
    Base::check_output(x, y);
    const MatrixView<Scalar> attended = attend(x, workspace);
    route_attended(x, attended, offsets, inputs, workspace);
    merge(attended, offsets, workspace.routing, y, workspace);
    Base::finish(offsets, inputs, true, workspace);
    return workspace.routing;
  }

  /// The gate alone, with the token attention that it sees. Returns workspace.routing.
  const Routing<Scalar>& route(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                               Workspace<Scalar>& workspace) const {
    const detail::Offsets offsets = Base::begin(x, inputs, workspace);
    const bool sees_attention = !Base::options().gate_before_attention;
    route_attended(x, sees_attention ? attend(x, workspace) : MatrixView<Scalar>(x), offsets, inputs,
                   workspace);
    return workspace.routing;
  }

  /// Token attention and the experts, with a routing from elsewhere; of `inputs` only the sequences count.
  /// Throws as forward does, and std::invalid_argument for a routing that does not fit.
  void forward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                      const Routing<Scalar>& routing, MatrixRef<Scalar> y,
                      Workspace<Scalar>& workspace) const {
    const detail::Offsets offsets = Base::begin(x, inputs, workspace);
    Base::check_output(x, y);
    Base::check_routing(routing, x.rows(), offsets.num_sequences());
    merge(attend(x, workspace), offsets, routing, y, workspace);
    Base::finish(offsets, inputs, false, workspace);
  }

 private:
  friend Base;
  template <class Layer, class Activation>
  friend class FeedForward;

  void require_token_level() const {
    detail::require(token_attention_.has_value(), "token_attention: expected a layer at token level, got ",
                    to_string(Base::options().level), " level");
  }

  template <class Generator>
  void initialize_attention(Generator& rng) {
    if (token_attention_) token_attention_->initialize(rng);
  }
  void reset_attention() {
    if (token_attention_) token_attention_->reset();
  }
  bool is_attention_empty() const { return token_attention_ && token_attention_->empty(); }

  /// What the experts see: x + TokenAttention(x) at token level, else x.
  MatrixView<Scalar> attend(const MatrixView<Scalar>& x, Workspace<Scalar>& workspace) const {
    if (!token_attention_) return x;
    Scalar* const rows =
        detail::reserve(workspace.attention_rows, x.rows() * token_attention_->reduced_features());
    Scalar* const attended = detail::reserve(workspace.attended, x.rows() * x.cols());
    token_attention_->apply(x, rows, attended);
    return {attended, x.rows(), x.cols(), x.cols()};
  }

  void route_attended(const MatrixView<Scalar>& x, const MatrixView<Scalar>& attended,
                      std::span<const Index> offsets, const Inputs<Scalar>& inputs,
                      Workspace<Scalar>& workspace) const {
    Base::route_sequences(Base::options().gate_before_attention ? x : attended, offsets, inputs, workspace);
  }

  /// y of every sequence, by its merged expert or from its experts' outputs.
  void merge(const MatrixView<Scalar>& x, std::span<const Index> offsets, const Routing<Scalar>& routing,
             MatrixRef<Scalar> y, Workspace<Scalar>& workspace) const {
    const LayerOptions& options = Base::options();
    const Index fewest_tokens =
        fewest_tokens_to_merge<Scalar>(options.merge_order, options.level, routing.top_k);
    detail::plan_merges<Scalar>(routing.experts, routing.weights, routing.top_k, offsets, workspace.merges,
                                fewest_tokens);
    detail::dispatch_tokens<Scalar>(routing.experts, routing.weights, routing.top_k, Base::num_experts(),
                                    offsets, workspace.dispatch, fewest_tokens - 1);
    const auto bank = Base::experts().panels();
    const Index threads = detail::max_threads();
    Scalar* const scratch =
        detail::reserve(workspace.scratch, threads * detail::merge_scratch_size(bank, routing.rows));
    detail::merged_product(bank, workspace.merges, offsets, x.data(), x.row_stride(), y.data(),
                           y.outerStride(), scratch, threads);
    detail::dispatched_product(bank, workspace.dispatch, x.data(), x.row_stride(), y.data(), y.outerStride());
  }

  /// What attend left in the context.
  MatrixView<Scalar> attended(const MatrixView<Scalar>& x, const Context<Scalar>& context) const {
    if (!token_attention_) return x;
    return {context.attended.data(), x.rows(), x.cols(), x.cols()};
  }

  static Eigen::Map<Matrix<Scalar>> attended_gradient(const MatrixView<Scalar>& x, Context<Scalar>& context) {
    return {detail::reserve(context.attended_gradient, x.rows() * x.cols()), x.rows(), x.cols()};
  }

  /// Merge, gate and token attention, with what context.weights_gradient holds already.
  void backward_all(const MatrixView<Scalar>& x, std::span<const Index> offsets, const Inputs<Scalar>& inputs,
                    Context<Scalar>& context, const ConstMatrixRef<Scalar>& dy, MeoLayer& gradients,
                    MatrixRef<Scalar> dx, const Scalar& d_loss) const {
    const auto backward_gate = [&](MatrixRef<Scalar> d_tokens) {
      Base::backward_sequence_gate(offsets, inputs, context, context.weights_gradient, d_loss, gradients,
                                   d_tokens.data(), d_tokens.outerStride());
    };
    plan_backward_merges(offsets, context.routing, context, shares_gradient(inputs, context));
    if (!token_attention_) {
      backward_merge(x, offsets, context.routing, context, dy, gradients, dx, context.weights_gradient);
      backward_gate(dx);
      return;
    }
    Eigen::Map<Matrix<Scalar>> d_attended = attended_gradient(x, context);
    backward_merge(attended(x, context), offsets, context.routing, context, dy, gradients, d_attended,
                   context.weights_gradient);
    if (!Base::options().gate_before_attention) backward_gate(d_attended);
    backward_attention(x, context, d_attended, gradients, dx);
    if (Base::options().gate_before_attention) backward_gate(dx);
  }

  /// Experts and token attention alone, with a gradient of its own for each row of the routing.
  void backward_experts(const MatrixView<Scalar>& x, std::span<const Index> offsets,
                        const Routing<Scalar>& routing, Context<Scalar>& context,
                        const ConstMatrixRef<Scalar>& dy, MeoLayer& gradients, MatrixRef<Scalar> dx,
                        std::span<Scalar> d_weights) const {
    backward_experts(x, offsets, routing, context, dy, gradients, dx, d_weights,
                     [](Index, Index) { return false; });
  }

  /// shares: as in plan_backward_merges.
  template <class Shares>
  void backward_experts(const MatrixView<Scalar>& x, std::span<const Index> offsets,
                        const Routing<Scalar>& routing, Context<Scalar>& context,
                        const ConstMatrixRef<Scalar>& dy, MeoLayer& gradients, MatrixRef<Scalar> dx,
                        std::span<Scalar> d_weights, const Shares& shares) const {
    plan_backward_merges(offsets, routing, context, shares);
    if (!token_attention_) {
      backward_merge(x, offsets, routing, context, dy, gradients, dx, d_weights);
      return;
    }
    Eigen::Map<Matrix<Scalar>> d_attended = attended_gradient(x, context);
    backward_merge(attended(x, context), offsets, routing, context, dy, gradients, d_attended, d_weights);
    backward_attention(x, context, d_attended, gradients, dx);
  }

  void backward_attention(const MatrixView<Scalar>& x, Context<Scalar>& context,
                          const MatrixView<Scalar>& d_attended, MeoLayer& gradients,
                          MatrixRef<Scalar> dx) const {
    Scalar* const d_rows =
        detail::reserve(context.attention_rows_gradient, x.rows() * token_attention_->reduced_features());
    token_attention_->backward(x, context.attention_rows.data(), d_attended, d_rows,
                               gradients.token_attention(), dx.data(), dx.outerStride(), context.scratch);
  }

  /// Through the merged experts: writes dx, adds to the experts' gradients and to that of the routing's
  /// weights.
  void backward_merge(const MatrixView<Scalar>& x, std::span<const Index> offsets,
                      const Routing<Scalar>& routing, Context<Scalar>& context,
                      const ConstMatrixRef<Scalar>& dy, MeoLayer& gradients, MatrixRef<Scalar> dx,
                      std::span<Scalar> d_weights) const {
    const detail::MergePlan<Scalar>& merges = context.weight_merges;
    const auto bank = Base::experts().panels();
    const Index threads = detail::max_threads();
    // For as many merges as there may be: another batch of as many sequences is to find memory enough.
    Scalar* const scratch = detail::reserve(
        context.scratch,
        threads * (std::max)(detail::merged_weight_gradient_scratch_size(bank, routing.rows, x.rows()),
                             detail::merged_input_gradient_scratch_size(bank, routing.rows)));
    Scalar* const packed_x =
        detail::reserve(context.packed_inputs, x.rows() * detail::padded_inputs<Scalar>(x.cols()));
    const Index pairs = routing.rows * routing.top_k;
    Scalar* const products = detail::reserve(context.merge_products, pairs);
    const detail::MergedWeightGradientMemory<Scalar> memory{
        detail::reserve(context.partial_products, detail::product_chunks(bank.num_panels()) * pairs),
        packed_x, scratch,
        detail::reserve(context.partial_gradients,
                        threads * detail::partial_gradients_size(bank, routing.rows))};
    detail::merged_weight_gradient<Scalar>(bank, gradients.experts().mutable_panels(), merges, offsets,
                                           {x.data(), x.row_stride()}, {dy.data(), dy.outerStride()},
                                           products, memory, threads);
    for (Index m = 0; m < merges.num_merges(); ++m) {
      // Sequences that share a merge here share what follows from the gradient as well: one takes it for all.
      const Index sequence = merges.sequence(merges.begin(m));
      const std::span<const Index> selected = routing.row_experts(sequence);
      const std::size_t row = static_cast<std::size_t>(sequence) * selected.size();
      for (Index i = 0; i < routing.top_k; ++i) {
        const auto place = static_cast<std::size_t>(
            std::find(selected.begin(), selected.end(), merges.terms(m).experts[i]) - selected.begin());
        d_weights[row + place] += products[m * routing.top_k + i];
      }
    }
    detail::merged_input_gradient<Scalar>(bank, context.merges, offsets, dy.data(), dy.outerStride(),
                                          dx.data(), dx.outerStride(), scratch, threads);
  }

  /// Equal weights of two sequences have gradients of their own, from which the gate's follow with what it
  /// saw of each. So one may take those of both only where that is the same, or where weights are constant,
  /// as a single one of this layer's gate always is 1. `inputs` and `context` must outlive the answer.
  auto shares_gradient(const Inputs<Scalar>& inputs, const Context<Scalar>& context) const {
    return [&](Index a, Index b) {
      if (context.routing.top_k == 1) return true;
      return !context.gate.is_noisy && Base::share_gate_input(inputs, a, b);
    };
  }

  /// Backward merges the experts of all sequences, also where forward combined their outputs. Sequences that
  /// share a merge share its gradient as well if shares(a, b) says so of sequences a and b.
  template <class Shares>
  void plan_backward_merges(std::span<const Index> offsets, const Routing<Scalar>& routing,
                            Context<Scalar>& context, const Shares& shares) const {
    detail::plan_merges<Scalar>(routing.experts, routing.weights, routing.top_k, offsets, context.merges);
    detail::MergePlan<Scalar>& merges = context.weight_merges;
    merges.clear_merges(routing.rows);
    merges = context.merges;
    merges.merge_begins.clear();
    for (Index m = 0; m < context.merges.num_merges(); ++m) {
      const Index begin = context.merges.begin(m);
      for (Index i = begin; i < context.merges.begin(m + 1); ++i) {
        if (i == begin || !shares(merges.sequence(i - 1), merges.sequence(i)))
          merges.merge_begins.push_back(i);
      }
    }
    merges.merge_begins.push_back(static_cast<Index>(merges.sequences.size()));
  }

  std::optional<TokenAttention<Scalar>> token_attention_;
};

}  // namespace meo

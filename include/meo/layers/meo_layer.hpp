#pragma once

/// Merging experts into one: Ŵ_b = Σ_{i ∈ S(b)} g_bi W_i, b̂_b = Σ g_bi b_i, y_t = x_t Ŵ_bᵀ + b̂_b for the
/// tokens t of sequence b; pays for one expert (He et al. 2023, arXiv 2310.09832, section 3).

#include <array>
#include <optional>
#include <span>

#include <meo/kernels/merged_product.hpp>
#include <meo/layers/routed_layer.hpp>
#include <meo/layers/token_attention.hpp>
#include <meo/types.hpp>

namespace meo {

/// At token level token attention comes first, x ← x + TokenAttention(x), and the gate sees the new x, or the
/// old one with options.gate_before_attention. Sequences with the same selection and weights, as those of one
/// task, share one merge.
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

  /// x: T × D; y: T × F, not overlapping x; what it holds is overwritten. Returns workspace.routing.
  /// Allocates only where the workspace has to grow. If it throws, y is untouched.
  const Routing<Scalar>& forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                 MatrixRef<Scalar> y, Workspace<Scalar>& workspace) const {
    std::array<Index, 2> single;
    const std::span<const Index> offsets = Base::check(x, inputs, single);
    Base::check_output(x, y);
    const MatrixView<Scalar> attended = attend(x, workspace);
    route_attended(x, attended, offsets, inputs, workspace);
    merge(attended, offsets, workspace.routing, y, workspace);
    return workspace.routing;
  }

  /// The gate alone, with the token attention that it sees. Returns workspace.routing.
  const Routing<Scalar>& route(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                               Workspace<Scalar>& workspace) const {
    std::array<Index, 2> single;
    const std::span<const Index> offsets = Base::check(x, inputs, single);
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
    std::array<Index, 2> single;
    const std::span<const Index> offsets = Base::check(x, inputs, single);
    Base::check_output(x, y);
    Base::check_routing(routing, x.rows(), static_cast<Index>(offsets.size()) - 1);
    merge(attend(x, workspace), offsets, routing, y, workspace);
  }

 private:
  friend Base;

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

  void merge(const MatrixView<Scalar>& x, std::span<const Index> offsets, const Routing<Scalar>& routing,
             MatrixRef<Scalar> y, Workspace<Scalar>& workspace) const {
    detail::plan_merges<Scalar>(routing.experts, routing.weights, routing.top_k, offsets, workspace.merges);
    const auto bank = Base::experts().panels();
    const Index threads = detail::max_threads();
    Scalar* const scratch = detail::reserve(
        workspace.scratch,
        threads * detail::merge_scratch_size(bank, workspace.merges.num_merges(), offsets.back()));
    detail::merged_product(bank, workspace.merges, offsets, x.data(), x.row_stride(), y.data(),
                           y.outerStride(), scratch, threads);
  }

  std::optional<TokenAttention<Scalar>> token_attention_;
};

}  // namespace meo

#pragma once

/// The vanilla mixture of experts, y_t = Σ_{i ∈ S(t)} g_ti (x_t W_iᵀ + b_i): pays for K experts (Shazeer et
/// al. 2017, arXiv 1701.06538, equation 1).

#include <array>
#include <span>

#include <meo/kernels/dispatched_product.hpp>
#include <meo/layers/routed_layer.hpp>
#include <meo/types.hpp>

namespace meo {

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

  /// x: T × D; y: T × F, not overlapping x; what it holds is overwritten. Returns workspace.routing.
  /// Allocates only where the workspace has to grow. If it throws, y is untouched.
  const Routing<Scalar>& forward(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                                 MatrixRef<Scalar> y, Workspace<Scalar>& workspace) const {
    std::array<Index, 2> single;
    const std::span<const Index> offsets = Base::check(x, inputs, single);
    Base::check_output(x, y);
    route_tokens(x, offsets, inputs, workspace);
    combine(x, offsets, workspace.routing, y, workspace);
    return workspace.routing;
  }

  /// The gate alone. Returns workspace.routing.
  const Routing<Scalar>& route(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                               Workspace<Scalar>& workspace) const {
    std::array<Index, 2> single;
    route_tokens(x, Base::check(x, inputs, single), inputs, workspace);
    return workspace.routing;
  }

  /// The experts alone, with a routing from elsewhere; of `inputs` only the sequences count. Throws as
  /// forward does, and std::invalid_argument for a routing that does not fit.
  void forward_routed(const ConstMatrixRef<Scalar>& x, const Inputs<Scalar>& inputs,
                      const Routing<Scalar>& routing, MatrixRef<Scalar> y,
                      Workspace<Scalar>& workspace) const {
    std::array<Index, 2> single;
    const std::span<const Index> offsets = Base::check(x, inputs, single);
    Base::check_output(x, y);
    Base::check_routing(routing, x.rows(), static_cast<Index>(offsets.size()) - 1);
    combine(x, offsets, routing, y, workspace);
  }

  /// The tokens that each expert works on, as `routing` says; left in workspace.dispatch.
  const detail::Dispatch<Scalar>& dispatch(const Routing<Scalar>& routing, std::span<const Index> offsets,
                                           Workspace<Scalar>& workspace) const {
    if (Base::options().level == Level::token) offsets = Base::token_offsets(offsets.back(), workspace);
    detail::dispatch_tokens<Scalar>(routing.experts, routing.weights, routing.top_k, Base::num_experts(),
                                    offsets, workspace.dispatch);
    return workspace.dispatch;
  }

 private:
  void route_tokens(const MatrixView<Scalar>& x, std::span<const Index> offsets, const Inputs<Scalar>& inputs,
                    Workspace<Scalar>& workspace) const {
    if (Base::options().level == Level::token) {
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

#pragma once

/// How a layer that starts from a dense one is made to train.

#include <meo/errors.hpp>
#include <meo/scalar_options.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Spreads of uniform draws. One of them must be above 0.
struct Upcycling {
  /// W_g is drawn from ±router_spread/√(gate features); 1 as PyTorch's nn.Linear starts. Which experts a row
  /// selects does not depend on how large it is, but how much their weights differ does: with a small one
  /// they start near 1/K. The outputs start as the dense layer's all the same.
  double router_spread = 1;
  /// To each weight of an expert, a shared one as well, is added a draw from ±expert_spread times the root
  /// mean square of the dense layer's weights. Outputs then start only near the dense layer's. The gate has a
  /// gradient from the task from the first step on, not just once the experts have parted.
  double expert_spread = 0;
};

namespace detail {

/// Throws std::invalid_argument for spreads that are negative, not finite, in Scalar as well, or both 0.
template <class Scalar>
void check_spreads(const Upcycling& upcycling) {
  require_not_negative<Scalar>(upcycling.router_spread, "router_spread");
  require_not_negative<Scalar>(upcycling.expert_spread, "expert_spread");
  require(upcycling.router_spread > 0 || upcycling.expert_spread > 0,
          "router_spread, expert_spread: expected one above 0, got 0 for both");
}

}  // namespace detail
}  // namespace meo

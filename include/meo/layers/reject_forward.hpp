#pragma once

/// Forwards that cannot be, with a message of one line instead of all the overloads that do not fit.

#include <concepts>

#include <meo/routing/inputs.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// A base of layers and blocks, whose forwards are preferred where they fit. Memory: what they work in.
template <class Scalar, class... Memory>
class RejectForward {
  template <class Y>
  static constexpr bool is_output = std::convertible_to<Y, MatrixRef<Scalar>>;
  template <class M>
  static constexpr bool is_memory = (std::convertible_to<M&, Memory&> || ...);

 public:
  template <class Other, class... More>
  requires(!std::same_as<typename Other::Scalar, Scalar>) void forward(const Eigen::MatrixBase<Other>&,
                                                                       const More&...) const {
    static_assert(std::same_as<typename Other::Scalar, Scalar>,
                  "meo: x has another scalar than the layer or block; convert it with x.cast<Scalar>()");
  }

  template <class X, class Y, class M>
  requires(std::same_as<typename X::Scalar, Scalar> &&
           !(is_output<Y> && is_memory<M>)) void forward(const Eigen::MatrixBase<X>&, const Inputs<Scalar>&,
                                                         Y&&, M&) const {
    static_assert(is_output<Y>,
                  "meo: y must be a meo::Matrix of the layer's or block's scalar, or a block or map of one");
    static_assert(
        is_memory<M>,
        "meo: the workspace must be of the layer's or block's scalar: a Workspace or Context, for a "
        "block a FeedForwardWorkspace or FeedForwardContext");
  }
};

}  // namespace meo::detail

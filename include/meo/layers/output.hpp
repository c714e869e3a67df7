#pragma once

/// What a layer's forward gives back, where it is not given memory for it.

#include <meo/routing/routing.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// What forward gives back.
template <class Scalar>
struct Output {
  Matrix<Scalar> y;         ///< tokens × out_features
  Routing<Scalar> routing;  ///< what the gate decided
};

}  // namespace meo

#pragma once

/// Eigen's scalar of automatic differentiation (unsupported/Eigen/AutoDiff) as a layer's: with the functions
/// that gates and activations call and that Eigen leaves out, erf, erfc and log1p. For layers of this scalar
/// include this header instead of Eigen's.

#include <cmath>
#include <numbers>

#include <Eigen/Core>
#include <unsupported/Eigen/AutoDiff>

namespace Eigen {  // where calls with this scalar look

/// erf' = 2/√π exp(−x²)
template <class Derivatives>
auto erf(const AutoDiffScalar<Derivatives>& x) {
  using std::erf;
  using std::exp;
  using Value = std::decay_t<decltype(x.value())>;
  const Value slope = Value(2 * std::numbers::inv_sqrtpi) * exp(-x.value() * x.value());
  return MakeAutoDiffScalar(Value(erf(x.value())), x.derivatives() * slope);
}

/// erfc(x) and its derivative.
template <class Derivatives>
auto erfc(const AutoDiffScalar<Derivatives>& x) {
  using std::erfc;
  using std::exp;
  using Value = std::decay_t<decltype(x.value())>;
  const Value slope = Value(-2 * std::numbers::inv_sqrtpi) * exp(-x.value() * x.value());
  return MakeAutoDiffScalar(Value(erfc(x.value())), x.derivatives() * slope);
}

/// log1p' = 1 / (1 + x)
template <class Derivatives>
auto log1p(const AutoDiffScalar<Derivatives>& x) {
  using std::log1p;
  using Value = std::decay_t<decltype(x.value())>;
  return MakeAutoDiffScalar(Value(log1p(x.value())),
                            x.derivatives() * Value(Value(1) / (Value(1) + x.value())));
}

}  // namespace Eigen

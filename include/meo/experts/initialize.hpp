#pragma once

/// Random start values, from a generator of the caller's.

#include <cmath>
#include <cstddef>
#include <random>
#include <type_traits>
#include <vector>

#include <meo/experts/expert_bank.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Weights and biases uniform in ±spread/√in_features, with 1 as PyTorch's nn.Linear starts; drawn in the
/// order experts, weight row by row, bias.
template <class Scalar, class Generator>
void initialize_uniform(ExpertBank<Scalar>& bank, Generator& rng, double spread = 1) {
  const double limit = spread / std::sqrt(static_cast<double>(bank.in_features()));
  std::uniform_real_distribution<double> uniform(-limit, limit);
  std::vector<Scalar> row(static_cast<std::size_t>(bank.in_features()));
  std::vector<Scalar> biases(static_cast<std::size_t>(bank.has_bias() ? bank.out_features() : 0));
  const auto draw = [&](std::vector<Scalar>& values) {
    for (Scalar& value : values) value = static_cast<Scalar>(uniform(rng));
  };
  for (Index expert = 0; expert < bank.num_experts(); ++expert) {
    for (Index out = 0; out < bank.out_features(); ++out) {
      draw(row);
      bank.write_row(expert, out, 0, row);
    }
    draw(biases);
    bank.write_bias(expert, 0, biases);
  }
}

/// Weights uniform around those of `center` (out_features × in_features), off by at most `spread` times their
/// root mean square, or for all but the first `count` experts uniform around 0; drawn in the order experts,
/// weight row by row.
template <class Scalar, class Generator>
void initialize_around(ExpertBank<Scalar>& bank, Index count, const ConstMatrixRef<Scalar>& center,
                       double spread, Generator& rng) {
  using std::sqrt;
  using Wide = std::conditional_t<std::is_constructible_v<double, Scalar>, double, Scalar>;
  const Matrix<Wide> values = center.unaryExpr([](const Scalar& value) { return static_cast<Wide>(value); });
  const Wide size = sqrt(values.squaredNorm() / Wide(static_cast<double>(values.size())));
  std::uniform_real_distribution<double> uniform(-spread, spread);
  Matrix<Scalar> weight(center.rows(), center.cols());
  for (Index expert = 0; expert < bank.num_experts(); ++expert) {
    for (Index i = 0; i < weight.size(); ++i) {
      const Wide middle = expert < count ? values.data()[i] : Wide(0);
      weight.data()[i] = static_cast<Scalar>(middle + Wide(uniform(rng)) * size);
    }
    bank.set_weight(expert, weight);
  }
}

}  // namespace meo::detail

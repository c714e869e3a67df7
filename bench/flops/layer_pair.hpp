#pragma once

/// The layer as MoE and as MEO beside the dense products, ready to run, and how far their outputs are apart.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <random>

#include <Eigen/Core>

#include <meo/experts/linear.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/types.hpp>

#include "flops/arguments.hpp"
#include "flops/layer.hpp"
#include "support/bounds.hpp"

namespace bench::flops {

using Matrix = meo::Matrix<Scalar>;
using MoeLayer = meo::MoeLayer<Scalar>;
using MeoLayer = meo::MeoLayer<Scalar>;

/// The largest error of `y` as a share of what rounding allows, element by element: two sums of the same
/// terms are each within γ_terms Σ |terms| of the exact one, see support/bounds.hpp.
inline double error_of_bound(const Matrix& y, const Matrix& expected, const Matrix& magnitude, Index terms) {
  const double factor = 2 * meo::test::gamma<Scalar>(terms);
  return meo::test::compare(y, expected.cast<double>(), factor * magnitude.cast<double>()).worst;
}

/// Both layers with the same parameters, their input and their output.
class LayerPair {
 public:
  LayerPair(const Arguments& arguments, Index top_k)
      : moe_(up_projection(arguments, top_k, Level::sequence)),
        meo_(moe_.options()),
        linear_(arguments.model.features, arguments.model.hidden_features, false),
        x_(arguments.model.tokens, arguments.model.features),
        y_(arguments.model.tokens, arguments.model.hidden_features) {
    std::mt19937_64 rng(42);
    meo_.initialize(rng);
    for (Index expert = 0; expert < arguments.experts; ++expert) moe_.set_weight(expert, meo_.weight(expert));
    moe_.gate().set_weight(meo_.gate().weight());
    std::uniform_real_distribution<Scalar> uniform(-1, 1);
    for (Scalar& value : x_.reshaped()) value = uniform(rng);
    dense_weight_ = meo_.weight(0);
    linear_.set_weight(dense_weight_);
  }

  void run_eigen() { y_.noalias() = x_ * dense_weight_.transpose(); }
  void run_linear() { linear_.apply(meo::MatrixView<Scalar>(x_), y_.data(), y_.cols()); }
  void run_moe() { moe_.forward(x_, {}, y_, workspace_); }
  void run_meo() { meo_.forward(x_, {}, y_, workspace_); }

  /// The largest of MEO's error against Eigen's product with the merged weight, of MoE's against MEO and of
  /// meo::Linear's against Eigen's, as a share of what rounding allows; infinite where the selections differ.
  double error() const {
    const auto [y_moe, routing_moe] = moe_.forward(x_);
    const auto [y_meo, routing_meo] = meo_.forward(x_);
    if (routing_moe.experts != routing_meo.experts || routing_moe.weights != routing_meo.weights)
      return std::numeric_limits<double>::infinity();

    Matrix merged = Matrix::Zero(dense_weight_.rows(), dense_weight_.cols());
    Matrix merged_magnitude = merged;
    for (std::size_t i = 0; i < routing_meo.experts.size(); ++i) {
      const Matrix weight = meo_.weight(routing_meo.experts[i]);
      merged += routing_meo.weights[i] * weight;
      merged_magnitude += routing_meo.weights[i] * weight.cwiseAbs();
    }
    const Matrix expected = x_ * merged.transpose();
    const Matrix magnitude = x_.cwiseAbs() * merged_magnitude.transpose();
    const Index terms = x_.cols() + routing_meo.top_k + 1;
    const Matrix dense = x_ * dense_weight_.transpose();
    const Matrix dense_magnitude = x_.cwiseAbs() * dense_weight_.cwiseAbs().transpose();
    return std::max({error_of_bound(y_meo, expected, magnitude, terms),
                     error_of_bound(y_moe, y_meo, magnitude, terms),
                     error_of_bound(linear_.forward(x_), dense, dense_magnitude, x_.cols())});
  }

 private:
  MoeLayer moe_;
  MeoLayer meo_;
  meo::Linear<Scalar> linear_;
  Matrix dense_weight_;
  Matrix x_;
  Matrix y_;
  meo::Workspace<Scalar> workspace_;
};

}  // namespace bench::flops

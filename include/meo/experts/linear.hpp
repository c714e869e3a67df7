#pragma once

/// One dense projection, y = x Wᵀ + b, on the packed kernel: what gates, token attention and task projections
/// are made of.

#include <meo/errors.hpp>
#include <meo/experts/expert_bank.hpp>
#include <meo/experts/initialize.hpp>
#include <meo/kernels/dense_product.hpp>
#include <meo/types.hpp>

namespace meo {

template <class Scalar>
class Linear {
 public:
  /// Zero weight and bias. Throws std::invalid_argument for sizes that are not positive.
  Linear(Index in_features, Index out_features, bool bias = true)
      : bank_(1, in_features, out_features, bias) {}

  Index in_features() const { return bank_.in_features(); }
  Index out_features() const { return bank_.out_features(); }
  bool has_bias() const { return bank_.has_bias(); }

  /// out_features × in_features; setters throw std::invalid_argument for another shape.
  Matrix<Scalar> weight() const { return bank_.weight(0); }
  void set_weight(const ConstMatrixRef<Scalar>& weight) { bank_.set_weight(0, weight); }
  Vector<Scalar> bias() const { return bank_.bias(0); }
  void set_bias(const ConstVectorRef<Scalar>& bias) { bank_.set_bias(0, bias); }

  /// x: T × in_features. Returns T × out_features. Throws std::invalid_argument for another shape.
  Matrix<Scalar> forward(const ConstMatrixRef<Scalar>& x) const {
    detail::require(x.cols() == in_features(), "x: expected ", in_features(), " features, got ", x.cols());
    Matrix<Scalar> y(x.rows(), out_features());
    apply(MatrixView<Scalar>(x), y.data(), out_features());
    return y;
  }

  /// The same without checks or allocation; y at y_stride, not overlapping x.
  void apply(const MatrixView<Scalar>& x, Scalar* y, Index y_stride) const {
    detail::dense_product(bank_.panels(), 0, x.data(), x.row_stride(), x.rows(), y, y_stride);
  }

  /// y += x Wᵀ, without the bias.
  void add_product(const MatrixView<Scalar>& x, Scalar* y, Index y_stride) const {
    detail::dense_product(bank_.panels(), 0, x.data(), x.row_stride(), x.rows(), y, y_stride, true);
  }

  /// PyTorch's start values: weight and bias uniform in ±1/√in_features.
  template <class Generator>
  void initialize(Generator& rng) {
    detail::initialize_uniform(bank_, rng);
  }

 private:
  ExpertBank<Scalar> bank_;
};

}  // namespace meo

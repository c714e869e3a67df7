#pragma once

/// One dense projection, y = x Wᵀ + b, on the packed kernel: what gates, token attention and task projections
/// are made of.

#include <algorithm>
#include <span>
#include <type_traits>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/experts/aligned_vector.hpp>
#include <meo/experts/expert_bank.hpp>
#include <meo/experts/initialize.hpp>
#include <meo/kernels/dense_product.hpp>
#include <meo/kernels/input_gradient.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/kernels/scratch.hpp>
#include <meo/kernels/weight_gradient.hpp>
#include <meo/overlap.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// y = x Wᵀ + b; W is packed, and set and read in PyTorch's form. Storage: what the weight is stored as, see
/// ExpertBank.
template <class ScalarType, class StorageType = ScalarType>
class Linear {
 public:
  /// What weights and inputs are of.
  using Scalar = ScalarType;
  using Storage = StorageType;

  /// Zero weight and bias. Throws std::invalid_argument for sizes that are not positive.
  Linear(Index in_features, Index out_features, bool bias = true)
      : bank_(1, in_features, out_features, bias) {}

  /// What it was made with.
  Index in_features() const { return bank_.in_features(); }
  Index out_features() const { return bank_.out_features(); }
  bool has_bias() const { return bank_.has_bias(); }
  /// Whether it was moved from. Then all that reads or writes weight or bias throws std::logic_error until it
  /// is assigned to.
  bool empty() const { return bank_.empty(); }

  /// out_features × in_features; setters throw std::invalid_argument for another shape.
  Matrix<Scalar> weight() const { return bank_.weight(0); }
  void set_weight(const ConstMatrixRef<Scalar>& weight) { bank_.set_weight(0, weight); }
  Vector<Scalar> bias() const { return bank_.bias(0); }
  void set_bias(const ConstVectorRef<Scalar>& bias) { bank_.set_bias(0, bias); }

  /// Zero weight and bias, as of a new one.
  void set_zero() {
    for (Scalar& value : values()) value = Scalar(0);
  }

  /// The one expert of a bank that the projection is kept in.
  ExpertBank<Scalar, Storage>& bank() { return bank_; }
  const ExpertBank<Scalar, Storage>& bank() const { return bank_; }

  /// x: T × in_features. Returns T × out_features. Throws std::invalid_argument for another shape.
  Matrix<Scalar> forward(const ConstMatrixRef<Scalar>& x) const;

  /// The same without allocation; y: T × out_features at y_stride. Throws std::invalid_argument if y overlaps
  /// x; checks nothing else.
  void apply(const MatrixView<Scalar>& x, Scalar* y, Index y_stride) const;

  /// Gradients of a forward pass of x (T × in_features) whose output has the gradient dy (T × out_features).
  /// Adds those of weight and bias to `gradients`, a projection of the same shape, and writes dx = dy W, T ×
  /// in_features at dx_stride, or adds to it with `add`. Throws std::invalid_argument if dx overlaps x or dy
  /// or if `gradients` is this very projection, and then changes nothing; checks nothing else. Allocates only
  /// where scratch has to grow.
  void backward(const MatrixView<Scalar>& x, const MatrixView<Scalar>& dy, Linear& gradients, bool add,
                Scalar* dx, Index dx_stride, AlignedVector<Scalar>& scratch) const;

  /// Weight and bias as they are packed; see ExpertBank::values.
  std::span<Scalar> values() requires(detail::stores_scalars<ScalarType, StorageType>) {
    return bank_.values();
  }
  std::span<const Scalar> values() const requires(detail::stores_scalars<ScalarType, StorageType>) {
    return bank_.values();
  }

  /// Weight and bias uniform in ±spread/√in_features; with 1 PyTorch's start values.
  template <class Generator>
  void initialize(Generator& rng, double spread = 1) {
    detail::initialize_uniform(bank_, rng, spread);
  }

 private:
  void check_output(const MatrixView<Scalar>& x, const Scalar* y, Index y_stride) const {
    detail::require_apart(MatrixView<Scalar>(y, x.rows(), out_features(), y_stride), "y", x, "x");
  }

  ExpertBank<Scalar, Storage> bank_;
};

template <class ScalarType, class StorageType>
auto Linear<ScalarType, StorageType>::forward(const ConstMatrixRef<Scalar>& x) const -> Matrix<Scalar> {
  detail::require(x.cols() == in_features(), "x: expected ", in_features(), " features, got ", x.cols());
  Matrix<Scalar> y(x.rows(), out_features());
  apply(MatrixView<Scalar>(x), y.data(), out_features());
  return y;
}

template <class ScalarType, class StorageType>
void Linear<ScalarType, StorageType>::apply(const MatrixView<Scalar>& x, Scalar* y, Index y_stride) const {
  check_output(x, y, y_stride);
  detail::dense_product<Scalar>(bank_.panels(), 0, detail::rows_of(x), x.rows(), {y, y_stride});
}

template <class ScalarType, class StorageType>
void Linear<ScalarType, StorageType>::backward(const MatrixView<Scalar>& x, const MatrixView<Scalar>& dy,
                                               Linear& gradients, bool add, Scalar* dx, Index dx_stride,
                                               AlignedVector<Scalar>& scratch) const {
  detail::require(&gradients != this, "gradients: expected another projection, got the one itself");
  const MatrixView<Scalar> written(dx, x.rows(), in_features(), dx_stride);
  detail::require_apart(written, "dx", x, "x");
  detail::require_apart(written, "dx", dy, "dy");
  const Index threads = detail::max_threads();
  const auto panels = bank_.panels();
  const Index size = (std::max)(detail::weight_gradient_scratch_size<Scalar>(panels.num_panels(), x.rows()),
                                detail::input_gradient_scratch_size(panels));
  const detail::Scratch<Scalar> memory{detail::reserve(scratch, threads * size), threads};
  detail::weight_gradient<Scalar>(gradients.bank_.mutable_panels(), 0, detail::rows_of(x),
                                  detail::rows_of(dy), x.rows(), memory);
  detail::input_gradient<Scalar>(panels, 0, detail::rows_of(dy), dy.rows(), add, {dx, dx_stride}, memory);
}

/// A projection whose weight is read and written turned, in_features × out_features, as files have those of
/// gates. A view.
template <class LinearType>
class TurnedWeight {
 public:
  /// What the projection is of.
  using Scalar = typename std::remove_const_t<LinearType>::Scalar;

  /// Of a projection that outlives it.
  explicit TurnedWeight(LinearType& linear) : linear_(linear) {}

  /// Of the projection.
  Index in_features() const { return linear_.in_features(); }
  Index out_features() const { return linear_.out_features(); }
  /// in_features × out_features.
  Matrix<Scalar> weight() const { return linear_.weight().transpose(); }
  /// weight: in_features × out_features.
  void set_weight(const ConstMatrixRef<Scalar>& weight) const { linear_.set_weight(weight.transpose()); }
  auto values() const { return linear_.values(); }
  LinearType& linear() const { return linear_; }

 private:
  LinearType& linear_;
};

/// The same of one row of values that belong to a layer, and to its files, but are no parameters: training
/// has other ways than gradients to change them. A view.
template <class LinearType>
class TurnedBuffer : public TurnedWeight<LinearType> {
 public:
  using TurnedWeight<LinearType>::TurnedWeight;
};
template <class LinearType>
TurnedBuffer(LinearType&) -> TurnedBuffer<LinearType>;

namespace detail {

/// Whether a part that a visit names is no parameter.
template <class Part>
inline constexpr bool is_buffer = false;
template <class LinearType>
inline constexpr bool is_buffer<TurnedBuffer<LinearType>> = true;

}  // namespace detail

#define MEO_INSTANCES(instance, Scalar) instance class Linear<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

#pragma once

/// The matrix types and the closed sets of choices that every header uses.
///
/// Letters: T tokens, D in_features, F out_features, N num_experts, K top_k.

#include <algorithm>
#include <concepts>
#include <string_view>
#include <type_traits>

#include <Eigen/Core>

#include <meo/abi.hpp>

namespace meo::inline MEO_ABI {

/// Of sizes and places; signed.
using Index = Eigen::Index;

/// Activations, tokens × features: row-major, so that a PyTorch buffer can be mapped.
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
/// A column of values.
template <class Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

/// Arguments. Row-major with any outer stride is taken as it is; any other expression is copied first.
template <class Scalar>
using ConstMatrixRef = Eigen::Ref<const Matrix<Scalar>, 0, Eigen::OuterStride<>>;
template <class Scalar>
using MatrixRef = Eigen::Ref<Matrix<Scalar>, 0, Eigen::OuterStride<>>;
template <class Scalar>
using ConstVectorRef = Eigen::Ref<const Vector<Scalar>>;

/// A row-major matrix that somebody else owns and that must outlive the view; a default one is absent.
template <class Scalar>
class MatrixView {
 public:
  MatrixView() = default;
  MatrixView(const Scalar* data, Index rows, Index cols, Index row_stride)
      : data_(data), rows_(rows), cols_(cols), row_stride_(row_stride), present_(true) {}

  /// Views a row-major matrix, block or map of the same scalar without a copy.
  template <class Derived>
  MatrixView(const Eigen::MatrixBase<Derived>& matrix)  // NOLINT: meant to convert
      : MatrixView(matrix.derived().data(), matrix.rows(), matrix.cols(), matrix.derived().outerStride()) {
    static_assert(std::same_as<typename Derived::Scalar, Scalar>,
                  "meo: a matrix of another scalar cannot be viewed; convert it with x.cast<Scalar>()");
    static_assert(
        (Derived::Flags & Eigen::RowMajorBit) != 0 && Derived::InnerStrideAtCompileTime == 1,
        "meo: only a row-major matrix with contiguous rows can be viewed; copy it to a meo::Matrix");
  }

  /// Whether there is a matrix.
  explicit operator bool() const { return present_; }
  /// Where it lies, and how: row_stride is from a row to the next, in scalars.
  const Scalar* data() const { return data_; }
  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index row_stride() const { return row_stride_; }
  const Scalar* row(Index r) const { return data_ + r * row_stride_; }

 private:
  const Scalar* data_ = nullptr;
  Index rows_ = 0;
  Index cols_ = 0;
  Index row_stride_ = 0;
  bool present_ = false;
};

/// What one gate decision covers: every token by itself, all tokens of a sequence, all sequences of a task,
/// or a segment of a sequence, decided on by the segment before it (Zhong et al. 2024, arXiv 2405.03133,
/// section 2).
enum class Level { token, sequence, task, segment };

/// The level's name, as "token"; "unknown" for no level.
constexpr std::string_view to_string(Level level) {
  switch (level) {
    case Level::token:
      return "token";
    case Level::sequence:
      return "sequence";
    case Level::task:
      return "task";
    case Level::segment:
      return "segment";
  }
  return "unknown";
}

namespace detail {

/// A constant in the precision of the scalar.
template <class Scalar>
Scalar constant(long double value) {
  if constexpr (std::same_as<Scalar, long double>) return value;
  else return static_cast<Scalar>(static_cast<double>(value));
}

/// ⌊features / reduce_factor⌋, at least one.
constexpr Index reduced_features(Index features, Index reduce_factor) {
  return (std::max<Index>)(features / reduce_factor, 1);
}

}  // namespace detail
}  // namespace meo

#pragma once

/// A matrix amid values that must be neither used nor written.

#include <algorithm>
#include <cmath>
#include <limits>

#include <meo/kernels/panel.hpp>
#include <meo/kernels/rows.hpp>
#include <meo/types.hpp>

namespace meo::test {

/// rows × cols within a larger matrix, whose other elements are guards: a panel's width to either side, a row
/// above and one below. NaN, so that whatever is computed from a guard shows.
template <class S>
class GuardedMatrix {
 public:
  static constexpr S nan = std::numeric_limits<S>::quiet_NaN();

  /// Filled with NaN: all of it is to be written before it is read.
  GuardedMatrix(Index rows, Index cols)
      : rows_(rows), cols_(cols), all_(Matrix<S>::Constant(rows + 2, cols + 2 * margin, nan)) {}

  explicit GuardedMatrix(const Matrix<S>& values) : GuardedMatrix(values.rows(), values.cols()) {
    all_.block(1, margin, rows_, cols_) = values;
  }

  S* data() { return all_.data() + all_.cols() + margin; }
  Index stride() const { return all_.cols(); }
  /// As kernels are given it.
  detail::Rows<S> rows() { return {data(), stride()}; }
  /// The same to be read only.
  detail::Rows<const S> inputs() { return {data(), stride()}; }
  /// The matrix itself, as layers are given one.
  Eigen::Map<Matrix<S>, 0, Eigen::OuterStride<>> map() {
    return {data(), rows_, cols_, Eigen::OuterStride<>(stride())};
  }
  Matrix<S> values() const { return all_.block(1, margin, rows_, cols_); }

  bool guards_intact() const {
    Matrix<S> guards = all_;
    guards.block(1, margin, rows_, cols_).setConstant(nan);
    return std::all_of(guards.data(), guards.data() + guards.size(),
                       [](S guard) { return std::isnan(guard); });
  }

 private:
  static constexpr Index margin = detail::Tile<S>::columns;
  Index rows_;
  Index cols_;
  Matrix<S> all_;
};

}  // namespace meo::test

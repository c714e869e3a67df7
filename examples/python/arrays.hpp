#pragma once

/// NumPy arrays as the library's arguments, without copies: what cannot be taken as it is, is an error that
/// says why.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <meo/meo.hpp>

namespace meo_python {

namespace py = pybind11;
using meo::Index;

template <class Scalar>
std::string dtype_name() {
  return py::str(py::dtype::of<Scalar>());
}

/// As "(3, 5)".
inline std::string text_of(const Index* values, Index count) {
  std::string text = "(";
  for (Index i = 0; i < count; ++i) text += (i > 0 ? ", " : "") + std::to_string(values[i]);
  return text + ")";
}
inline std::string text_of(const std::vector<Index>& values) {
  return text_of(values.data(), static_cast<Index>(values.size()));
}

/// Throws TypeError unless the array has the scalar's dtype in the machine's byte order, ValueError unless
/// its values are where this scalar may be.
template <class Scalar>
void check_scalar(const py::array& array, const std::string& name) {
  if (!py::isinstance<py::array_t<Scalar>>(array)) {
    throw py::type_error(name + ": expected " + dtype_name<Scalar>() + ", got " +
                         std::string(py::str(array.dtype())) + "; array.astype converts it");
  }
  if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(Scalar) != 0)
    throw py::value_error(name +
                          ": expected aligned values; numpy.require(array, requirements='A') makes them");
}

inline void check_writeable(const py::array& array, const std::string& name) {
  if (!array.writeable())
    throw py::value_error(name + ": expected an array to write to, got a read-only one");
}

/// Tokens × features, the rows of an array of two dimensions, or of three: sequences × tokens × features.
template <class Scalar>
class Rows {
 public:
  /// Rows may be apart, as those of array[:, :8] are; the values of a row may not.
  Rows(py::array array, const std::string& name) : array_(std::move(array)) {
    check_scalar<Scalar>(array_, name);
    const auto dimensions = array_.ndim();
    if (dimensions != 2 && dimensions != 3) {
      throw py::value_error(name +
                            ": expected tokens x features or sequences x tokens x features, got shape " +
                            text_of(array_.shape(), dimensions));
    }
    cols_ = array_.shape(dimensions - 1);
    rows_ = array_.size() > 0 || cols_ > 0 ? product_of_leading(dimensions) : 0;
    stride_ = rows_ > 1 ? row_bytes(dimensions) / static_cast<Index>(sizeof(Scalar)) : cols_;
    if (!in_rows(dimensions)) {
      throw py::value_error(
          name + ": expected values of a row side by side and rows at one distance, got strides " +
          text_of(array_.strides(), dimensions) + " of shape " + text_of(array_.shape(), dimensions) +
          "; numpy.ascontiguousarray makes such an array");
    }
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  bool has_sequences() const { return array_.ndim() == 3; }
  Index num_sequences() const { return has_sequences() ? array_.shape(0) : 1; }
  Index sequence_length() const { return has_sequences() ? array_.shape(1) : rows_; }

  Eigen::Map<const meo::Matrix<Scalar>, 0, Eigen::OuterStride<>> matrix() const {
    return {static_cast<const Scalar*>(array_.data()), rows_, cols_, Eigen::OuterStride<>(stride_)};
  }
  Eigen::Map<meo::Matrix<Scalar>, 0, Eigen::OuterStride<>> mutable_matrix() {
    return {static_cast<Scalar*>(array_.mutable_data()), rows_, cols_, Eigen::OuterStride<>(stride_)};
  }

  /// The array's shape with another number of features.
  std::vector<Index> shape_with(Index features) const {
    std::vector<Index> shape(array_.shape(), array_.shape() + array_.ndim());
    shape.back() = features;
    return shape;
  }

 private:
  Index product_of_leading(Index dimensions) const {
    Index product = 1;
    for (Index i = 0; i + 1 < dimensions; ++i) product *= array_.shape(i);
    return product;
  }

  /// From a row to the next: that of tokens, or of sequences where each is one token.
  Index row_bytes(Index dimensions) const {
    return array_.strides(array_.shape(dimensions - 2) > 1 ? dimensions - 2 : 0);
  }

  bool in_rows(Index dimensions) const {
    if (array_.size() == 0) return true;
    if (cols_ > 1 && array_.strides(dimensions - 1) != static_cast<Index>(sizeof(Scalar))) return false;
    if (rows_ <= 1) return true;
    const Index bytes = row_bytes(dimensions);
    if (bytes % static_cast<Index>(sizeof(Scalar)) != 0 || stride_ < cols_) return false;
    return dimensions == 2 || array_.shape(0) == 1 || array_.strides(0) == bytes * array_.shape(1);
  }

  py::array array_;
  Index rows_ = 0;
  Index cols_ = 0;
  Index stride_ = 0;
};

/// Rows to write to: the array that the caller has given, which has to have that shape, or a new one.
template <class Scalar>
py::array output_array(const py::object& given, const std::vector<Index>& shape, const std::string& name) {
  if (given.is_none()) return py::array_t<Scalar>(shape);
  if (!py::isinstance<py::array>(given)) throw py::type_error(name + ": expected a numpy array");
  const auto array = py::reinterpret_borrow<py::array>(given);
  if (std::vector<Index>(array.shape(), array.shape() + array.ndim()) != shape) {
    throw py::value_error(name + ": expected shape " + text_of(shape) + ", got " +
                          text_of(array.shape(), array.ndim()));
  }
  check_writeable(array, name);
  return array;
}

/// Values in row-major order without gaps, of that shape.
template <class Scalar>
void check_packed(const py::array& array, const std::vector<Index>& shape, const std::string& name) {
  check_scalar<Scalar>(array, name);
  if (std::vector<Index>(array.shape(), array.shape() + array.ndim()) != shape) {
    throw py::value_error(name + ": expected shape " + text_of(shape) + ", got " +
                          text_of(array.shape(), array.ndim()));
  }
  if ((array.flags() & py::array::c_style) == 0)
    throw py::value_error(name + ": expected a C-contiguous array; numpy.ascontiguousarray makes one");
}

}  // namespace meo_python

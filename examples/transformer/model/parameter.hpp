#pragma once

/// How a model shows its parameters: visit(name, part) is called for each part that has some, by the names of
/// published checkpoints, with
///
///     Parameter        one tensor, under its name
///     LinearTensors    a projection and the tensors that it is in files
///     what meo::MixtureLayer::visit names, under the projection's name and a dot.
///
/// Each has values(), the flat range that optimisers work on: meo::parameters(model) lists them. Mixtures
/// whose experts are stored in fewer bits show none: nothing trains them.
///
/// What a model is made of has visit as a static function, which takes it const or not as its first argument.

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meo/experts/linear.hpp>
#include <meo/types.hpp>

namespace transformer {

using meo::Index;

/// A matrix, or a vector where it has one row and says so. Zero at first.
template <class Scalar>
struct Parameter {
  meo::Matrix<Scalar> matrix;
  bool is_vector = false;

  /// of as many values
  static Parameter vector(Index size) { return {meo::Matrix<Scalar>::Zero(1, size), true}; }
  static Parameter table(Index rows, Index columns) { return {meo::Matrix<Scalar>::Zero(rows, columns)}; }

  std::vector<Index> shape() const {
    if (is_vector) return {matrix.cols()};
    return {matrix.rows(), matrix.cols()};
  }
  std::span<Scalar> values() { return {matrix.data(), static_cast<std::size_t>(matrix.size())}; }
  std::span<const Scalar> values() const { return {matrix.data(), static_cast<std::size_t>(matrix.size())}; }
};

/// The tensors of some outputs of a projection.
struct LinearTensor {
  std::string weight, bias;  ///< names; none for the bias: it is not in files
  Index first = 0;           ///< of the outputs
  Index count = 0;
  bool turned = false;  ///< the weight is in × out instead of out × in
};

/// A view. LinearType is meo::Linear, const or not.
template <class LinearType>
struct LinearTensors {
  LinearType& linear;
  std::vector<LinearTensor> tensors;

  auto values() const { return linear.values(); }
};

template <class LinearType>
LinearTensors<LinearType> tensors_named(LinearType& linear, const std::string& weight,
                                        const std::string& bias, bool turned = false) {
  return {linear, {{weight, bias, 0, linear.out_features(), turned}}};
}

/// NAME.weight, out × in, and NAME.bias, as nn.Linear has them; with `turned` in × out, as GPT-2's Conv1D.
template <class LinearType>
LinearTensors<LinearType> tensors_of(LinearType& linear, std::string_view name, bool turned = false) {
  const std::string prefix = std::string(name) + ".";
  return tensors_named(linear, prefix + "weight", prefix + "bias", turned);
}

/// Projections of one input that are computed as one, their outputs one after another.
template <class LinearType>
LinearTensors<LinearType> stacked(LinearType& linear, std::string_view prefix,
                                  std::span<const std::string_view> names) {
  LinearTensors<LinearType> all{linear, {}};
  const Index count = linear.out_features() / static_cast<Index>(names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::string name = std::string(prefix).append(names[i]) + ".";
    all.tensors.push_back({name + "weight", name + "bias", static_cast<Index>(i) * count, count});
  }
  return all;
}

}  // namespace transformer

#pragma once

/// A mixture whose experts are stored in fewer bits, whatever its kind and theirs: it computes, and nothing
/// trains it.
///
/// Letters: T tokens.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <meo/io/tensor_parts.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/types.hpp>

#include "activations.hpp"
#include "past.hpp"

namespace transformer {

template <class Scalar>
class StoredMixture {
 public:
  using Tensors = std::vector<meo::io::TensorPart<Scalar>>;

  virtual ~StoredMixture() = default;
  virtual std::unique_ptr<StoredMixture> copy() const = 0;

  virtual const meo::LayerOptions& options() const = 0;
  /// See Projection::forward.
  virtual Scalar forward(const ConstRows<Scalar>& x, const meo::Inputs<Scalar>& inputs,
                         KeptExperts<Scalar>* kept, Rows<Scalar> y, meo::Context<Scalar>& context) const = 0;
  /// See the first form of meo::MixtureLayer::initialize_from_dense.
  virtual void initialize_from_dense(const meo::Matrix<Scalar>& weight, const meo::Vector<Scalar>& bias) = 0;
  /// See meo::io::tensor_parts. Of a const one they are to be read.
  virtual Tensors tensors(const std::string& prefix) = 0;
  virtual Tensors tensors(const std::string& prefix) const = 0;
};

/// Owns one, and is copied with it.
template <class Scalar>
class StoredMixtureValue {
 public:
  explicit StoredMixtureValue(std::unique_ptr<StoredMixture<Scalar>> mixture)
      : mixture_(std::move(mixture)) {}
  StoredMixtureValue(const StoredMixtureValue& other) : mixture_(other->copy()) {}
  StoredMixtureValue(StoredMixtureValue&&) noexcept = default;
  StoredMixtureValue& operator=(const StoredMixtureValue& other) {
    mixture_ = other->copy();
    return *this;
  }
  StoredMixtureValue& operator=(StoredMixtureValue&&) noexcept = default;
  ~StoredMixtureValue() = default;

  StoredMixture<Scalar>* operator->() { return mixture_.get(); }
  const StoredMixture<Scalar>* operator->() const { return mixture_.get(); }

 private:
  std::unique_ptr<StoredMixture<Scalar>> mixture_;
};

}  // namespace transformer

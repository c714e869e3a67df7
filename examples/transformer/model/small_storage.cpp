#include "small_storage.hpp"

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "config.hpp"
#include "stored_mixture.hpp"

namespace transformer {

namespace {

/// Layer: a meo::MoeLayer or meo::MeoLayer of float.
template <class Layer>
class StoredLayer final : public StoredMixture<float> {
 public:
  explicit StoredLayer(const meo::LayerOptions& options) : layer_(options) {}

  std::unique_ptr<StoredMixture> copy() const override { return std::make_unique<StoredLayer>(*this); }
  const meo::LayerOptions& options() const override { return layer_.options(); }
  float forward(const ConstRows<float>& x, const meo::Inputs<float>& inputs, KeptExperts<float>* kept,
                Rows<float> y, meo::Context<float>& context) const override {
    return forward_keeping(layer_, x, inputs, kept, y, context);
  }
  void initialize_from_dense(const meo::Matrix<float>& weight, const meo::Vector<float>& bias) override {
    layer_.initialize_from_dense(weight, bias);
  }
  Tensors tensors(const std::string& prefix) override { return meo::io::tensor_parts(layer_, prefix); }
  Tensors tensors(const std::string& prefix) const override { return meo::io::tensor_parts(layer_, prefix); }

 private:
  Layer layer_;
};

/// Experts whose weights are of Stored.
template <class Stored>
class StorageAs final : public Storage {
 public:
  explicit constexpr StorageAs(std::string_view name) : name_(name) {}

  std::string_view name() const override { return name_; }
  std::unique_ptr<StoredMixture<float>> make(Mixture kind, const meo::LayerOptions& options) const override {
    if (kind == Mixture::moe)
      return std::make_unique<StoredLayer<meo::MoeLayer<float, Eigen::Dynamic, Stored>>>(options);
    return std::make_unique<StoredLayer<meo::MeoLayer<float, Eigen::Dynamic, Stored>>>(options);
  }

 private:
  std::string_view name_;
};

}  // namespace

const std::array<const Storage*, 3>& small_storages() {
  static const StorageAs<Eigen::bfloat16> bfloat16("bf16");
  static const StorageAs<Eigen::half> half("half");
  static const StorageAs<std::int8_t> int8("int8");
  static const std::array<const Storage*, 3> all{&bfloat16, &half, &int8};
  return all;
}

}  // namespace transformer

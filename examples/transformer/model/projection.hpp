#pragma once

/// One projection of a feed-forward block: dense, or a mixture of experts with a gate of its own.

#include <random>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include <meo/experts/aligned_vector.hpp>
#include <meo/experts/linear.hpp>
#include <meo/io/tensor_parts.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "activations.hpp"
#include "config.hpp"
#include "initialize.hpp"
#include "parameter.hpp"
#include "pass.hpp"
#include "past.hpp"
#include "require.hpp"
#include "stored_mixture.hpp"

namespace transformer {

template <class Scalar>
class Projection {
 public:
  using Dense = meo::Linear<Scalar>;
  using Moe = meo::MoeLayer<Scalar>;
  using Meo = meo::MeoLayer<Scalar>;
  using Context = meo::Context<Scalar>;

  /// All parameters zero. Throws std::invalid_argument for experts in fewer bits unless Scalar is float.
  Projection(const Config& config, Index in_features, Index out_features)
      : kind_(made(config, in_features, out_features)), turned_(config.family == Family::gpt2) {}

  bool is_dense() const { return std::holds_alternative<Dense>(kind_); }
  /// Of a mixture.
  const meo::LayerOptions& mixture_options() const {
    if (const auto* moe = std::get_if<Moe>(&kind_)) return moe->options();
    if (const auto* meo = std::get_if<Meo>(&kind_)) return meo->options();
    return std::get<Stored>(kind_)->options();
  }
  /// Of a mixture, under names that begin with the prefix; none of a dense projection.
  std::vector<meo::io::TensorPart<Scalar>> mixture_tensors(const std::string& prefix) {
    return mixture_tensors_of(*this, prefix);
  }
  std::vector<meo::io::TensorPart<Scalar>> mixture_tensors(const std::string& prefix) const {
    return mixture_tensors_of(*this, prefix);
  }
  /// Whether files have a dense weight in × out, as GPT-2's have.
  bool is_turned() const { return turned_; }

  /// x: T × in_features, y: T × out_features. kept: of the text that x is of, or null. Returns the balance
  /// loss.
  Scalar forward(const ConstRows<Scalar>& x, const meo::Inputs<Scalar>& inputs, KeptExperts<Scalar>* kept,
                 Rows<Scalar> y, Context& context) const {
    if (const auto* dense = std::get_if<Dense>(&kind_)) {
      dense->apply(x, y.data(), y.cols());
      return 0;
    }
    if (const auto* moe = std::get_if<Moe>(&kind_)) return forward_keeping(*moe, x, inputs, kept, y, context);
    if (const auto* meo = std::get_if<Meo>(&kind_)) return forward_keeping(*meo, x, inputs, kept, y, context);
    return std::get<Stored>(kind_)->forward(x, inputs, kept, y, context);
  }

  /// Of a forward that left the context: from dy to dx, which is overwritten; adds to gradients, and at task
  /// level to d_task_embeddings. The balance loss counts in full. For a model that can be trained.
  void backward(const ConstRows<Scalar>& x, const meo::Inputs<Scalar>& inputs, Context& context,
                const ConstRows<Scalar>& dy, Projection& gradients, Rows<Scalar> dx,
                Rows<Scalar> d_task_embeddings, meo::AlignedVector<Scalar>& scratch) const {
    if (const auto* dense = std::get_if<Dense>(&kind_)) {
      dense->backward(x, dy, std::get<Dense>(gradients.kind_), false, dx.data(), dx.cols(), scratch);
      return;
    }
    if (const auto* moe = std::get_if<Moe>(&kind_))
      moe->backward(x, inputs, context, dy, std::get<Moe>(gradients.kind_), dx);
    else std::get<Meo>(kind_).backward(x, inputs, context, dy, std::get<Meo>(gradients.kind_), dx);
    if (inputs.task_embeddings) d_task_embeddings += context.task_embeddings_gradient();
  }

  /// A mixture becomes copies of a dense projection, without a generator by the first form of
  /// meo::MixtureLayer::initialize_from_dense, else by the one to train from; a dense one becomes that.
  void initialize_from_dense(const meo::Matrix<Scalar>& weight, const meo::Vector<Scalar>& bias,
                             std::mt19937_64* rng = nullptr) {
    if (auto* dense = std::get_if<Dense>(&kind_)) {
      dense->set_weight(weight);
      dense->set_bias(bias);
    } else if (auto* moe = std::get_if<Moe>(&kind_)) {
      start_from_dense(*moe, weight, bias, rng);
    } else if (auto* meo = std::get_if<Meo>(&kind_)) {
      start_from_dense(*meo, weight, bias, rng);
    } else {
      std::get<Stored>(kind_)->initialize_from_dense(weight, bias);
    }
  }

  /// Start values: a mixture's as meo's layers have them, a dense weight normal. For a model that can be
  /// trained.
  void initialize(std::mt19937_64& rng, double deviation) {
    if (auto* dense = std::get_if<Dense>(&kind_)) initialize_normal(*dense, rng, deviation);
    else if (auto* moe = std::get_if<Moe>(&kind_)) moe->initialize(rng);
    else std::get<Meo>(kind_).initialize(rng);
  }

  template <class Visitor>
  void visit(std::string_view name, const Visitor& visit) {
    visit_parts(*this, name, visit);
  }
  template <class Visitor>
  void visit(std::string_view name, const Visitor& visit) const {
    visit_parts(*this, name, visit);
  }

 private:
  using Stored = StoredMixtureValue<Scalar>;
  using Kind = std::variant<Dense, Moe, Meo, Stored>;

  static Kind made(const Config& config, Index in_features, Index out_features) {
    const MixtureConfig& mixture = config.mixture;
    if (mixture.kind == Mixture::none) return Dense(in_features, out_features);
    const meo::LayerOptions options = layer_options(config, in_features, out_features);
    if (mixture.storage != nullptr) {
      if constexpr (std::is_same_v<Scalar, float>)
        return Stored(mixture.storage->make(mixture.kind, options));
      else require(false, "storage: expected none in a model of other scalars than float, got one");
    }
    if (mixture.kind == Mixture::moe) return Moe(options);
    return Meo(options);
  }

  template <class Layer>
  static void start_from_dense(Layer& layer, const meo::Matrix<Scalar>& weight,
                               const meo::Vector<Scalar>& bias, std::mt19937_64* rng) {
    if (rng == nullptr) layer.initialize_from_dense(weight, bias);
    else layer.initialize_from_dense(weight, bias, *rng);
  }

  template <class Self>
  static std::vector<meo::io::TensorPart<Scalar>> mixture_tensors_of(Self& self, const std::string& prefix) {
    if (auto* moe = std::get_if<Moe>(&self.kind_)) return meo::io::tensor_parts(*moe, prefix);
    if (auto* meo = std::get_if<Meo>(&self.kind_)) return meo::io::tensor_parts(*meo, prefix);
    if (auto* stored = std::get_if<Stored>(&self.kind_)) return (*stored)->tensors(prefix);
    return {};
  }

  template <class Self, class Visitor>
  static void visit_parts(Self& self, std::string_view name, const Visitor& visit) {
    const auto under_name = [&](std::string_view part_name, auto&& part) {
      visit(std::string(name) + "." + std::string(part_name), part);
    };
    if (auto* dense = std::get_if<Dense>(&self.kind_)) visit(name, tensors_of(*dense, name, self.turned_));
    else if (auto* moe = std::get_if<Moe>(&self.kind_)) moe->visit(under_name);
    else if (auto* meo = std::get_if<Meo>(&self.kind_)) meo->visit(under_name);
  }

  Kind kind_;
  bool turned_;
};

}  // namespace transformer

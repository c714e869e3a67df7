#pragma once

/// One projection of a feed-forward block: dense, or a mixture of experts with a gate of its own.

#include <random>
#include <string>
#include <string_view>
#include <variant>

#include <meo/experts/aligned_vector.hpp>
#include <meo/experts/linear.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "activations.hpp"
#include "config.hpp"
#include "initialize.hpp"
#include "parameter.hpp"
#include "pass.hpp"

namespace transformer {

template <class Scalar>
class Projection {
 public:
  using Dense = meo::Linear<Scalar>;
  using Moe = meo::MoeLayer<Scalar>;
  using Meo = meo::MeoLayer<Scalar>;
  using Context = meo::Context<Scalar>;

  /// All parameters zero.
  Projection(const Config& config, Index in_features, Index out_features)
      : kind_(made(config, in_features, out_features)), turned_(config.family == Family::gpt2) {}

  bool is_dense() const { return std::holds_alternative<Dense>(kind_); }
  /// Of a mixture.
  const meo::LayerOptions& mixture_options() const {
    if (const auto* moe = std::get_if<Moe>(&kind_)) return moe->options();
    return std::get<Meo>(kind_).options();
  }
  /// Calls visit(layer) with the meo::MoeLayer or meo::MeoLayer, unless this is dense.
  template <class Visitor>
  void visit_mixture(const Visitor& visit) {
    visit_mixture_of(*this, visit);
  }
  template <class Visitor>
  void visit_mixture(const Visitor& visit) const {
    visit_mixture_of(*this, visit);
  }
  /// Whether files have a dense weight in × out, as GPT-2's have.
  bool is_turned() const { return turned_; }

  /// x: T × in_features, y: T × out_features. Returns the balance loss.
  Scalar forward(const ConstRows<Scalar>& x, const meo::Inputs<Scalar>& inputs, Rows<Scalar> y,
                 Context& context) const {
    if (const auto* dense = std::get_if<Dense>(&kind_)) {
      dense->apply(x, y.data(), y.cols());
      return 0;
    }
    if (const auto* moe = std::get_if<Moe>(&kind_)) return moe->forward(x, inputs, y, context).loss;
    return std::get<Meo>(kind_).forward(x, inputs, y, context).loss;
  }

  /// Of a forward that left the context: from dy to dx, which is overwritten; adds to gradients, and at task
  /// level to d_task_embeddings. The balance loss counts in full.
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
    } else {
      start_from_dense(std::get<Meo>(kind_), weight, bias, rng);
    }
  }

  /// Start values: a mixture's as meo's layers have them, a dense weight normal.
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
  using Kind = std::variant<Dense, Moe, Meo>;

  static Kind made(const Config& config, Index in_features, Index out_features) {
    const meo::LayerOptions options = layer_options(config, in_features, out_features);
    switch (config.mixture.kind) {
      case Mixture::none:
        break;
      case Mixture::moe:
        return Moe(options);
      case Mixture::meo:
        return Meo(options);
    }
    return Dense(in_features, out_features);
  }

  template <class Layer>
  static void start_from_dense(Layer& layer, const meo::Matrix<Scalar>& weight,
                               const meo::Vector<Scalar>& bias, std::mt19937_64* rng) {
    if (rng == nullptr) layer.initialize_from_dense(weight, bias);
    else layer.initialize_from_dense(weight, bias, *rng);
  }

  template <class Self, class Visitor>
  static void visit_mixture_of(Self& self, const Visitor& visit) {
    if (auto* moe = std::get_if<Moe>(&self.kind_)) visit(*moe);
    else if (auto* meo = std::get_if<Meo>(&self.kind_)) visit(*meo);
  }

  template <class Self, class Visitor>
  static void visit_parts(Self& self, std::string_view name, const Visitor& visit) {
    const auto under_name = [&](std::string_view part_name, auto&& part) {
      visit(std::string(name) + "." + std::string(part_name), part);
    };
    if (auto* dense = std::get_if<Dense>(&self.kind_)) visit(name, tensors_of(*dense, name, self.turned_));
    else visit_mixture_of(self, [&](auto& layer) { layer.visit(under_name); });
  }

  Kind kind_;
  bool turned_;
};

}  // namespace transformer

#pragma once

/// What a text's words leave for those that follow them, so that a model computes each word once: the keys
/// and values of attention, and what the gates decided for the prompt, which is what the first forward with a
/// Past reads. Its words have the decisions that they have in any forward; all later ones have that of the
/// prompt's mean, which is kept (Zhong et al. 2024, arXiv 2405.03133, as of segments). So their
/// experts can be merged once, and a word then costs what one costs in a dense model. Vanilla mixtures at
/// token level decide for each word, and keep nothing.
///
/// Letters: T tokens, P tokens of the past, d width, D features.

#include <optional>
#include <vector>

#include <meo/experts/aligned_vector.hpp>
#include <meo/layers/context.hpp>
#include <meo/layers/merged_expert.hpp>
#include <meo/routing/assignment.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/types.hpp>

#include "activations.hpp"
#include "config.hpp"
#include "require.hpp"

namespace transformer {

/// What becomes of the experts that are selected for a prompt.
enum class Merging {
  once,  ///< merged, and kept
  anew   ///< mixed for every word as their layer does
};

/// Whether a text's words have the decision of their prompt, instead of each its own.
inline bool keeps_decisions(const MixtureConfig& mixture) {
  return mixture.kind == Mixture::meo || (mixture.kind == Mixture::moe && mixture.level != meo::Level::token);
}

/// Of one attention: P × 2d, which grows.
template <class Scalar>
class KeysAndValues {
 public:
  Index tokens() const { return tokens_; }

  /// rows: T × 2d.
  template <class Matrix>
  void add(const Matrix& rows) {
    const Index begin = tokens_ * rows.cols();
    columns_ = rows.cols();
    values_.resize(static_cast<std::size_t>(begin + rows.size()));
    Rows<Scalar>(values_.data() + begin, rows.rows(), rows.cols()) = rows;
    tokens_ += rows.rows();
  }

  ConstRows<Scalar> get() const { return {values_.data(), tokens_, columns_}; }

 private:
  meo::AlignedVector<Scalar> values_;
  Index tokens_ = 0, columns_ = 0;
};

/// The experts of one projection that a prompt's decision selected.
template <class Scalar>
class KeptExperts {
 public:
  explicit KeptExperts(Merging merging) : merging_(merging) {}

  bool has_decision() const { return decision_.rows > 0; }

  /// By the mean of x: T × D. Layer: meo::MoeLayer or meo::MeoLayer.
  template <class Layer>
  void decide(const Layer& layer, const ConstRows<Scalar>& x, meo::Workspace<Scalar>& memory) {
    // The gate sees the mean of a text of one token, the token.
    const meo::Matrix<Scalar> mean = x.template cast<double>().colwise().mean().template cast<Scalar>();
    decision_ = layer.route(mean, {}, memory);
    if (merging_ == Merging::once) merged_.emplace(layer, decision_);
  }

  /// After decide of the same layer. x: T × D, y: T × out_features.
  template <class Layer>
  void forward(const Layer& layer, const ConstRows<Scalar>& x, Rows<Scalar> y,
               meo::Workspace<Scalar>& memory) const {
    if (merged_) merged_->forward(x, {}, y, memory);
    else layer.forward_routed(x, {}, decision_, y, memory);
  }

 private:
  Merging merging_;
  meo::Assignment<Scalar> decision_;
  std::optional<meo::MergedExpert<Scalar>> merged_;
};

/// A mixture's forward of tokens of a text whose experts are kept, or with null of any. x: T × D, y: T ×
/// out_features. Returns the balance loss.
template <class Layer, class Scalar>
Scalar forward_keeping(const Layer& layer, const ConstRows<Scalar>& x, const meo::Inputs<Scalar>& inputs,
                       KeptExperts<Scalar>* kept, Rows<Scalar> y, meo::Context<Scalar>& context) {
  const bool keeps = kept != nullptr && !layer.routes_tokens();
  if (keeps && kept->has_decision()) {
    kept->forward(layer, x, y, context);
    return 0;
  }
  const Scalar loss = layer.forward(x, inputs, y, context).loss;
  if (keeps) kept->decide(layer, x, context);
  return loss;
}

template <class Scalar>
struct LayerPast {
  explicit LayerPast(Merging merging) : up(merging), down(merging) {}

  KeysAndValues<Scalar> attention;
  KeptExperts<Scalar> up, down;
};

/// Of one text. Forwards that throw leave it of no use.
template <class Scalar>
class Past {
 public:
  /// For models of this config. Throws std::invalid_argument for BERT, whose words see those that follow.
  explicit Past(const Config& config, Merging merging = Merging::once)
      : layers_(static_cast<std::size_t>(config.layers), LayerPast<Scalar>(merging)) {
    require(config.family == Family::gpt2,
            "past: expected GPT-2, whose words see none that follow, got BERT");
  }

  Index tokens() const { return layers_.front().attention.tokens(); }
  Index size() const { return static_cast<Index>(layers_.size()); }
  LayerPast<Scalar>& operator[](Index layer) { return layers_[static_cast<std::size_t>(layer)]; }

 private:
  std::vector<LayerPast<Scalar>> layers_;
};

}  // namespace transformer

#pragma once

/// GPT-2 without a head: embeddings of words and positions, decoder layers and a last norm (Radford et al.
/// 2019, Language Models are Unsupervised Multitask Learners).
///
/// Letters: T tokens, d width.

#include <random>
#include <string>
#include <vector>

#include "activations.hpp"
#include "batch.hpp"
#include "config.hpp"
#include "decoder_layer.hpp"
#include "initialize.hpp"
#include "layer_norm.hpp"
#include "parameter.hpp"
#include "pass.hpp"
#include "words.hpp"

namespace transformer {

template <class Scalar>
class Gpt2 {
 public:
  using Layer = DecoderLayer<Scalar>;
  static constexpr const char* prefix = "transformer.";  ///< that published names may begin with

  struct Context {
    std::vector<typename Layer::Context> layers;  ///< inference uses the first for all
    typename LayerNorm<Scalar>::Context norm;
    Activations<Scalar> embedded, output;
    std::vector<Index> places;
    typename Layer::Gradients gradients;  ///< of backward
  };

  explicit Gpt2(const Config& config)
      : config_(config),
        words_(config.vocabulary, config.width, false),
        positions_(Parameter<Scalar>::table(config.positions, config.width)),
        norm_(config.width, config.norm_epsilon) {
    layers_.reserve(static_cast<std::size_t>(config.layers));
    for (Index i = 0; i < config.layers; ++i) layers_.emplace_back(config);
  }

  Words<Scalar>& words() { return words_; }
  const Words<Scalar>& words() const { return words_; }

  /// Throws std::invalid_argument for a batch that the model cannot read.
  void check(const Batch& batch) const { require_batch(batch, config_.vocabulary, config_.positions, 0); }

  /// What the layers read. The batch and the training have to live as long.
  Pass<Scalar> pass(const Batch& batch, const Training<Scalar>* training, Context&) const {
    return {batch.sequences, {}, nullptr, training};
  }

  /// Returns the last hidden states, T × d, in the context. loss: of the gates' balance.
  ConstRows<Scalar> forward(const Batch& batch, const Pass<Scalar>& pass, Scalar& loss,
                            Context& context) const {
    const std::size_t kept = pass.training != nullptr ? layers_.size() : 1;
    if (context.layers.size() < kept) context.layers.resize(kept);
    embed(batch, pass, context);
    ConstRows<Scalar> x = context.embedded.get();
    loss = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      auto& layer = context.layers[pass.training != nullptr ? i : 0];
      loss += layers_[i].forward(x, pass, static_cast<Index>(i), layer);
      new (&x) ConstRows<Scalar>(layer.output.get());
    }
    norm_.forward(x, context.output.resize(x.rows(), x.cols()), context.norm);
    return context.output.get();
  }

  /// What a forward in training returned.
  ConstRows<Scalar> hidden(const Context& context) const { return context.output.get(); }

  /// Of a forward in training that left the context. d: gradient of the last hidden states, T × d, which is
  /// overwritten. Adds to gradients.
  void backward(const Batch& batch, const Pass<Scalar>& pass, Context& context, Rows<Scalar> d,
                Gpt2& gradients) const {
    norm_.backward(context.norm, read<Scalar>(d), gradients.norm_, d);
    for (std::size_t i = layers_.size(); i-- > 0;) {
      layers_[i].backward(pass, static_cast<Index>(i), context.layers[i], d, gradients.layers_[i],
                          context.gradients);
    }
    pass.dropout(config_.embedding_dropout, dropout_place()).apply(d.data(), d.size());
    words_.look_up_backward(batch.words, -1, read<Scalar>(d), gradients.words_);
    for (Index t = 0; t < d.rows(); ++t)
      gradients.positions_.matrix.row(context.places[static_cast<std::size_t>(t)]) += d.row(t);
  }

  void initialize(std::mt19937_64& rng, double deviation) {
    initialize_normal(words_.table(), rng, deviation);
    initialize_normal(positions_, rng, deviation);
    for (Layer& layer : layers_) layer.initialize(rng, deviation);
  }

  template <class Visitor>
  void visit(const Visitor& visit) {
    visit_parts(*this, visit);
  }
  template <class Visitor>
  void visit(const Visitor& visit) const {
    visit_parts(*this, visit);
  }

  /// See DecoderLayer::visit_projections.
  template <class Visitor>
  void visit_projections(const Visitor& visit) {
    for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i].visit_projections(layer_prefix(i), visit);
  }

 private:
  Index dropout_place() const { return config_.layers * dropouts_per_layer; }

  void embed(const Batch& batch, const Pass<Scalar>& pass, Context& context) const {
    Rows<Scalar> x = context.embedded.resize(batch.tokens(), config_.width);
    places_of(batch, context.places);
    words_.look_up(batch.words, x);
    for (Index t = 0; t < x.rows(); ++t)
      x.row(t) += positions_.matrix.row(context.places[static_cast<std::size_t>(t)]);
    pass.dropout(config_.embedding_dropout, dropout_place()).apply(x.data(), x.size());
  }

  static std::string layer_prefix(std::size_t layer) {
    return std::string(prefix) + "h." + std::to_string(layer) + ".";
  }

  template <class Self, class Visitor>
  static void visit_parts(Self& self, const Visitor& visit) {
    self.words_.visit(std::string(prefix) + "wte.weight", "", visit);
    visit(std::string(prefix) + "wpe.weight", self.positions_);
    for (std::size_t i = 0; i < self.layers_.size(); ++i) self.layers_[i].visit(layer_prefix(i), visit);
    self.norm_.visit(std::string(prefix) + "ln_f", visit);
  }

  Config config_;
  Words<Scalar> words_;
  Parameter<Scalar> positions_;
  std::vector<Layer> layers_;
  LayerNorm<Scalar> norm_;
};

}  // namespace transformer

#pragma once

/// A model's first layer: the sum of the embeddings of words, positions and, in BERT, types, of which BERT
/// takes the norm.
///
/// Letters: T tokens, d width.

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "activations.hpp"
#include "batch.hpp"
#include "config.hpp"
#include "initialize.hpp"
#include "layer_norm.hpp"
#include "parameter.hpp"
#include "pass.hpp"
#include "words.hpp"

namespace transformer {

template <class Scalar>
class Embeddings {
 public:
  struct Context {
    typename LayerNorm<Scalar>::Context norm;
    Activations<Scalar> output;  ///< T × d
    std::vector<Index> places;
  };

  explicit Embeddings(const Config& config)
      : words_(config.vocabulary, config.width, config.task == Task::masked_words),
        positions_(Parameter<Scalar>::table(config.positions, config.width)),
        padding_(config.family == Family::bert ? config.padding_word : -1),
        dropout_(config.embedding_dropout),
        dropout_place_(config.layers * dropouts_per_layer) {
    if (config.family != Family::bert) return;
    types_ = Parameter<Scalar>::table(config.types, config.width);
    norm_.emplace(config.width, config.norm_epsilon);
  }

  Words<Scalar>& words() { return words_; }
  const Words<Scalar>& words() const { return words_; }

  /// Returns context.output. The batch: one that require_batch has seen.
  ConstRows<Scalar> forward(const Batch& batch, const Pass<Scalar>& pass, Context& context) const {
    Rows<Scalar> x = context.output.resize(batch.tokens(), positions_.matrix.cols());
    places_of(batch, pass.past == nullptr ? 0 : pass.past->tokens(), context.places);
    words_.look_up(batch.words, x);
    for (Index t = 0; t < x.rows(); ++t) {
      x.row(t) += positions_.matrix.row(context.places[static_cast<std::size_t>(t)]);
      if (types_) x.row(t) += types_->matrix.row(type_of(batch, t));
    }
    if (norm_) norm_->forward(read(x), x, context.norm);
    pass.dropout(dropout_, dropout_place_).apply(x.data(), x.size());
    return context.output.get();
  }

  /// Of a forward that left the context. d: gradient of the output, T × d, which is overwritten.
  void backward(const Batch& batch, const Pass<Scalar>& pass, const Context& context, Rows<Scalar> d,
                Embeddings& gradients) const {
    pass.dropout(dropout_, dropout_place_).apply(d.data(), d.size());
    if (norm_) norm_->backward(context.norm, read(d), *gradients.norm_, d);
    words_.look_up_backward(batch.words, padding_, read(d), gradients.words_);
    for (Index t = 0; t < d.rows(); ++t) {
      gradients.positions_.matrix.row(context.places[static_cast<std::size_t>(t)]) += d.row(t);
      if (types_) gradients.types_->matrix.row(type_of(batch, t)) += d.row(t);
    }
  }

  void initialize(std::mt19937_64& rng, double deviation) {
    initialize_normal(words_.table(), rng, deviation);
    initialize_normal(positions_, rng, deviation);
    if (types_) initialize_normal(*types_, rng, deviation);
  }

  /// self: const or not; see parameter.hpp.
  template <class Self, class Visitor>
  static void visit(Self& self, const std::string& prefix, const Visitor& visit) {
    if (!self.types_) {
      Words<Scalar>::visit(self.words_, prefix + "wte.weight", "", visit);
      visit(prefix + "wpe.weight", self.positions_);
      return;
    }
    const std::string embeddings = prefix + "embeddings.";
    Words<Scalar>::visit(self.words_, embeddings + "word_embeddings.weight", "cls.predictions.bias", visit);
    visit(embeddings + "position_embeddings.weight", self.positions_);
    visit(embeddings + "token_type_embeddings.weight", *self.types_);
    LayerNorm<Scalar>::visit(*self.norm_, embeddings + "LayerNorm", visit);
  }

 private:
  static Index type_of(const Batch& batch, Index token) {
    return batch.types.empty() ? 0 : batch.types[static_cast<std::size_t>(token)];
  }

  Words<Scalar> words_;
  Parameter<Scalar> positions_;
  std::optional<Parameter<Scalar>> types_;  ///< BERT's
  std::optional<LayerNorm<Scalar>> norm_;   ///< BERT's
  Index padding_;
  double dropout_;
  Index dropout_place_;
};

}  // namespace transformer

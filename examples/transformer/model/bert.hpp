#pragma once

/// BERT without a head: embeddings of words, positions and types, their norm, and encoder layers (Devlin et
/// al. 2019, arXiv 1810.04805).
///
/// Letters: T tokens, d width.

#include <random>
#include <span>
#include <string>
#include <vector>

#include "activations.hpp"
#include "batch.hpp"
#include "config.hpp"
#include "encoder_layer.hpp"
#include "initialize.hpp"
#include "layer_norm.hpp"
#include "parameter.hpp"
#include "pass.hpp"
#include "words.hpp"

namespace transformer {

template <class Scalar>
class Bert {
 public:
  using Layer = EncoderLayer<Scalar>;
  static constexpr const char* prefix = "bert.";  ///< that published names may begin with

  struct Context {
    std::vector<typename Layer::Context> layers;  ///< inference uses the first for all
    typename LayerNorm<Scalar>::Context norm;
    Activations<Scalar> embedded, task_embeddings;
    std::vector<Index> places;
    // Of backward:
    typename Layer::Gradients gradients;
    Activations<Scalar> d_task_embeddings;
  };

  explicit Bert(const Config& config)
      : config_(config),
        words_(config.vocabulary, config.width, config.task == Task::masked_words),
        positions_(Parameter<Scalar>::table(config.positions, config.width)),
        types_(Parameter<Scalar>::table(config.types, config.width)),
        norm_(config.width, config.norm_epsilon) {
    if (config.has_tasks()) tasks_ = Parameter<Scalar>::table(config.vocabulary, config.description_size);
    layers_.reserve(static_cast<std::size_t>(config.layers));
    for (Index i = 0; i < config.layers; ++i) layers_.emplace_back(config);
  }

  Words<Scalar>& words() { return words_; }
  const Words<Scalar>& words() const { return words_; }

  /// Throws std::invalid_argument for a batch that the model cannot read.
  void check(const Batch& batch) const {
    require_batch(batch, config_.vocabulary, config_.positions, config_.types);
    if (!config_.has_tasks()) return;
    require_ids(batch.task_words, config_.vocabulary, "task word");
    const Index descriptions = batch.descriptions.size(), texts = batch.sequences.size();
    meo::detail::require(descriptions == 1 || descriptions == texts,
                         "descriptions: expected 1 or one for each of ", texts, " texts, got ", descriptions);
    meo::detail::require(batch.descriptions.tokens() == static_cast<Index>(batch.task_words.size()),
                         "descriptions: expected ", batch.task_words.size(),
                         " words in all, as there are task words, got ", batch.descriptions.tokens());
  }

  /// What the layers read. The batch, the training and the context have to live as long.
  Pass<Scalar> pass(const Batch& batch, const Training<Scalar>* training, Context& context) const {
    Pass<Scalar> pass{batch.sequences, {}, nullptr, training};
    if (!config_.has_tasks()) return pass;
    Rows<Scalar> embeddings =
        context.task_embeddings.resize(static_cast<Index>(batch.task_words.size()), config_.description_size);
    for (Index i = 0; i < embeddings.rows(); ++i)
      embeddings.row(i) = tasks_.matrix.row(batch.task_words[static_cast<std::size_t>(i)]);
    pass.task_embeddings = embeddings;
    pass.descriptions = &batch.descriptions;
    return pass;
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
    return x;
  }

  /// What a forward in training returned.
  ConstRows<Scalar> hidden(const Context& context) const {
    return context.layers[layers_.size() - 1].output.get();
  }

  /// Of a forward in training that left the context. d: gradient of the last hidden states, T × d, which is
  /// overwritten. Adds to gradients.
  void backward(const Batch& batch, const Pass<Scalar>& pass, Context& context, Rows<Scalar> d,
                Bert& gradients) const {
    Rows<Scalar> d_tasks =
        context.d_task_embeddings.resize(pass.task_embeddings.rows(), pass.task_embeddings.cols());
    d_tasks.setZero();
    for (std::size_t i = layers_.size(); i-- > 0;) {
      const ConstRows<Scalar> x = i > 0 ? context.layers[i - 1].output.get() : context.embedded.get();
      layers_[i].backward(x, pass, static_cast<Index>(i), context.layers[i], d, gradients.layers_[i], d_tasks,
                          context.gradients);
    }
    embed_backward(batch, pass, context, d, gradients);
    for (Index i = 0; i < d_tasks.rows(); ++i)
      gradients.tasks_.matrix.row(batch.task_words[static_cast<std::size_t>(i)]) += d_tasks.row(i);
  }

  void initialize(std::mt19937_64& rng, double deviation) {
    initialize_normal(words_.table(), rng, deviation);
    initialize_normal(positions_, rng, deviation);
    initialize_normal(types_, rng, deviation);
    initialize_tasks(rng, deviation);
    for (Layer& layer : layers_) layer.initialize(rng, deviation);
  }

  /// The table of the tasks' words alone, which dense models have not.
  void initialize_tasks(std::mt19937_64& rng, double deviation) {
    if (config_.has_tasks()) initialize_normal(tasks_, rng, deviation);
  }

  template <class Visitor>
  void visit(const Visitor& visit) {
    visit_parts(*this, visit);
  }
  template <class Visitor>
  void visit(const Visitor& visit) const {
    visit_parts(*this, visit);
  }

  /// See EncoderLayer::visit_projections.
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
    for (Index t = 0; t < x.rows(); ++t) {
      const auto token = static_cast<std::size_t>(t);
      x.row(t) += positions_.matrix.row(context.places[token]) +
                  types_.matrix.row(batch.types.empty() ? 0 : batch.types[token]);
    }
    norm_.forward(context.embedded.get(), x, context.norm);
    pass.dropout(config_.embedding_dropout, dropout_place()).apply(x.data(), x.size());
  }

  void embed_backward(const Batch& batch, const Pass<Scalar>& pass, Context& context, Rows<Scalar> d,
                      Bert& gradients) const {
    pass.dropout(config_.embedding_dropout, dropout_place()).apply(d.data(), d.size());
    norm_.backward(context.norm, read<Scalar>(d), gradients.norm_, d);
    words_.look_up_backward(batch.words, config_.padding_word, read<Scalar>(d), gradients.words_);
    for (Index t = 0; t < d.rows(); ++t) {
      const auto token = static_cast<std::size_t>(t);
      gradients.positions_.matrix.row(context.places[token]) += d.row(t);
      gradients.types_.matrix.row(batch.types.empty() ? 0 : batch.types[token]) += d.row(t);
    }
  }

  static std::string layer_prefix(std::size_t layer) {
    return std::string(prefix) + "encoder.layer." + std::to_string(layer) + ".";
  }

  template <class Self, class Visitor>
  static void visit_parts(Self& self, const Visitor& visit) {
    const std::string embeddings = std::string(prefix) + "embeddings.";
    self.words_.visit(embeddings + "word_embeddings.weight", "cls.predictions.bias", visit);
    visit(embeddings + "position_embeddings.weight", self.positions_);
    visit(embeddings + "token_type_embeddings.weight", self.types_);
    if (self.config_.has_tasks()) visit(embeddings + "task_embeddings.weight", self.tasks_);
    self.norm_.visit(embeddings + "LayerNorm", visit);
    for (std::size_t i = 0; i < self.layers_.size(); ++i) self.layers_[i].visit(layer_prefix(i), visit);
  }

  Config config_;
  Words<Scalar> words_;
  Parameter<Scalar> positions_, types_;
  Parameter<Scalar> tasks_;  ///< of the words in descriptions of tasks; none at other levels
  LayerNorm<Scalar> norm_;
  std::vector<Layer> layers_;
};

}  // namespace transformer

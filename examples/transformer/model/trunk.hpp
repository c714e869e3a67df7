#pragma once

/// BERT or GPT-2 without a head: embeddings, layers and, in GPT-2, a last norm (Devlin et al. 2019, arXiv
/// 1810.04805; Radford et al. 2019, Language Models are Unsupervised Multitask Learners).
///
/// Letters: T tokens, d width.

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "activations.hpp"
#include "batch.hpp"
#include "config.hpp"
#include "embeddings.hpp"
#include "initialize.hpp"
#include "layer.hpp"
#include "layer_norm.hpp"
#include "parameter.hpp"
#include "pass.hpp"
#include "require.hpp"
#include "words.hpp"

namespace transformer {

template <class Scalar>
class Trunk {
 public:
  struct Context {
    typename Embeddings<Scalar>::Context embeddings;
    std::vector<typename Layer<Scalar>::Context> layers;  ///< inference uses the first for all
    typename LayerNorm<Scalar>::Context norm;
    Activations<Scalar> normed, task_embeddings;
    // Of backward:
    typename Layer<Scalar>::Gradients gradients;
    Activations<Scalar> d_task_embeddings;
  };

  explicit Trunk(const Config& config) : config_(config), embeddings_(config) {
    if (config.has_tasks()) tasks_ = Parameter<Scalar>::table(config.vocabulary, config.description_size);
    layers_.reserve(static_cast<std::size_t>(config.layers));
    for (Index i = 0; i < config.layers; ++i) layers_.emplace_back(config);
    if (config.family == Family::gpt2) norm_.emplace(config.width, config.norm_epsilon);
  }

  Words<Scalar>& words() { return embeddings_.words(); }
  const Words<Scalar>& words() const { return embeddings_.words(); }
  const std::vector<Layer<Scalar>>& layers() const { return layers_; }

  /// Throws std::invalid_argument for a batch that the model cannot read.
  void check(const Batch& batch) const {
    const bool has_types = config_.family == Family::bert;
    require_batch(batch, config_.vocabulary, config_.positions, has_types ? config_.types : 0);
    if (config_.has_tasks()) require_descriptions(batch, config_.vocabulary);
  }

  /// What the layers read. The batch, the training and the context have to live as long.
  Pass<Scalar> pass(const Batch& batch, const Training<Scalar>* training, Context& context) const {
    Pass<Scalar> pass{batch.sequences, {}, nullptr, training};
    if (!config_.has_tasks()) return pass;
    Rows<Scalar> embeddings =
        context.task_embeddings.resize(static_cast<Index>(batch.task_words.size()), config_.description_size);
    for (Index i = 0; i < embeddings.rows(); ++i)
      embeddings.row(i) = tasks_->matrix.row(batch.task_words[static_cast<std::size_t>(i)]);
    pass.task_embeddings = embeddings;
    pass.descriptions = &batch.descriptions;
    return pass;
  }

  /// Returns the last hidden states, T × d, in the context. loss: of the gates' balance.
  ConstRows<Scalar> forward(const Batch& batch, const Pass<Scalar>& pass, Scalar& loss,
                            Context& context) const {
    const bool keeps = pass.training != nullptr;
    const std::size_t kept = keeps ? layers_.size() : 1;
    if (context.layers.size() < kept) context.layers.resize(kept);
    ConstRows<Scalar> x = embeddings_.forward(batch, pass, context.embeddings);
    loss = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      auto& layer = context.layers[keeps ? i : 0];
      loss += layers_[i].forward(x, pass, static_cast<Index>(i), layer);
      new (&x) ConstRows<Scalar>(layer.output.get());
    }
    if (!norm_) return x;
    norm_->forward(x, context.normed.resize(x.rows(), x.cols()), context.norm);
    return context.normed.get();
  }

  /// What a forward in training returned.
  ConstRows<Scalar> hidden(const Context& context) const {
    return norm_ ? context.normed.get() : context.layers[layers_.size() - 1].output.get();
  }

  /// Of a forward in training that left the context. d: gradient of the last hidden states, T × d, which is
  /// overwritten. Adds to gradients.
  void backward(const Batch& batch, const Pass<Scalar>& pass, Context& context, Rows<Scalar> d,
                Trunk& gradients) const {
    Rows<Scalar> d_tasks =
        context.d_task_embeddings.resize(pass.task_embeddings.rows(), pass.task_embeddings.cols());
    d_tasks.setZero();
    if (norm_) norm_->backward(context.norm, read(d), *gradients.norm_, d);
    for (std::size_t i = layers_.size(); i-- > 0;) {
      const auto& input = i > 0 ? context.layers[i - 1].output : context.embeddings.output;
      layers_[i].backward(input.get(), pass, static_cast<Index>(i), context.layers[i], d,
                          gradients.layers_[i], d_tasks, context.gradients);
    }
    embeddings_.backward(batch, pass, context.embeddings, d, gradients.embeddings_);
    for (Index i = 0; i < d_tasks.rows(); ++i)
      gradients.tasks_->matrix.row(batch.task_words[static_cast<std::size_t>(i)]) += d_tasks.row(i);
  }

  void initialize(std::mt19937_64& rng, double deviation) {
    embeddings_.initialize(rng, deviation);
    initialize_tasks(rng, deviation);
    for (Layer<Scalar>& layer : layers_) layer.initialize(rng, deviation);
  }

  /// The table of the tasks' words alone, which dense models have not.
  void initialize_tasks(std::mt19937_64& rng, double deviation) {
    if (tasks_) initialize_normal(*tasks_, rng, deviation);
  }

  /// self: const or not; see parameter.hpp.
  template <class Self, class Visitor>
  static void visit(Self& self, const Visitor& visit) {
    const std::string prefix(prefix_of(self.config_.family));
    Embeddings<Scalar>::visit(self.embeddings_, prefix, visit);
    if (self.tasks_) visit(prefix + "embeddings.task_embeddings.weight", *self.tasks_);
    for (std::size_t i = 0; i < self.layers_.size(); ++i)
      Layer<Scalar>::visit(self.layers_[i], self.layer_prefix(i), visit);
    if (self.norm_) LayerNorm<Scalar>::visit(*self.norm_, prefix + "ln_f", visit);
  }

  /// See Layer::visit_projections.
  template <class Self, class Visitor>
  static void visit_projections(Self& self, const Visitor& visit) {
    for (std::size_t i = 0; i < self.layers_.size(); ++i)
      Layer<Scalar>::visit_projections(self.layers_[i], self.layer_prefix(i), visit);
  }

 private:
  std::string layer_prefix(std::size_t layer) const {
    const char* const layers = config_.family == Family::bert ? "encoder.layer." : "h.";
    return std::string(prefix_of(config_.family)) + layers + std::to_string(layer) + ".";
  }

  Config config_;
  Embeddings<Scalar> embeddings_;
  std::optional<Parameter<Scalar>> tasks_;  ///< of the words in descriptions of tasks, at task level
  std::vector<Layer<Scalar>> layers_;
  std::optional<LayerNorm<Scalar>> norm_;  ///< GPT-2's
};

}  // namespace transformer

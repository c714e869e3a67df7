#pragma once

/// A whole model: BERT or GPT-2 and the head of the config's task.
///
///     transformer::Model<float> model(config);
///     transformer::Model<float>::Context context;
///     logits = model.forward(batch, nullptr, context);           // inference
///
///     model.forward(batch, &training, context);                  // a step of training
///     loss = transformer::cross_entropy(context.logits(), labels) + context.balance_loss;
///     model.backward(batch, &training, context, gradients);
///
/// gradients is a model of the same config: parameters and gradients are of one form, and
/// meo::parameters(model) lists them for meo's optimisers.
///
/// What takes long to compile, of float and double, is compiled with model.cpp alone.

#include <random>
#include <vector>

#include <meo/training/parameters.hpp>

#include "activations.hpp"
#include "batch.hpp"
#include "config.hpp"
#include "heads.hpp"
#include "losses.hpp"
#include "pass.hpp"
#include "require.hpp"
#include "trunk.hpp"

namespace transformer {

template <class ScalarType>
class Model {
 public:
  using Scalar = ScalarType;

  /// Memory of a forward and of the backward that follows it. Keeps what it has grown to.
  struct Context {
    typename Trunk<Scalar>::Context trunk;
    typename Head<Scalar>::Context head;
    Activations<Scalar> outputs, hidden_gradient;
    Scalar balance_loss = 0;  ///< of all gates, times their coefficient

    /// Of the last forward; losses replace them by their gradient.
    Rows<Scalar> logits() {
      const ConstRows<Scalar> rows = outputs.get();
      return outputs.resize(rows.rows(), rows.cols());
    }
  };

  /// Norms' weights one, all else zero. Throws std::invalid_argument for a config that makes no model.
  explicit Model(const Config& config);

  const Config& config() const { return config_; }
  Trunk<Scalar>& trunk() { return trunk_; }
  const Trunk<Scalar>& trunk() const { return trunk_; }

  /// training: null for inference, which keeps the activations of one layer at a time; else all are kept for
  /// backward. Throws std::invalid_argument for a batch that the model cannot read.
  Rows<Scalar> forward(const Batch& batch, const Training<Scalar>* training, Context& context) const {
    trunk_.check(batch);
    return forward(batch, trunk_.pass(batch, training, context.trunk), context);
  }

  /// Inference of words that follow those that the past is of, which they then belong to. The batch: one
  /// text. Throws std::invalid_argument also for more words than the model has positions.
  Rows<Scalar> forward(const Batch& batch, Past<Scalar>& past, Context& context) const {
    trunk_.check(batch);
    require(past.size() == config_.layers, "past: expected one of ", config_.layers, " layers, got ",
            past.size());
    require(batch.sequences.size() == 1, "batch: expected one text, got ", batch.sequences.size());
    require(past.tokens() + batch.tokens() <= config_.positions, "text: expected at most ", config_.positions,
            " tokens, as the model has positions, got ", past.tokens() + batch.tokens());
    Pass<Scalar> pass = trunk_.pass(batch, nullptr, context.trunk);
    pass.past = &past;
    return forward(batch, pass, context);
  }

  /// Of a forward with the same arguments, after which context.logits() was replaced by its gradient: adds
  /// the parameters' to `gradients`, those of the balance loss included. Throws std::invalid_argument for
  /// experts in fewer bits.
  void backward(const Batch& batch, const Training<Scalar>* training, Context& context,
                Model& gradients) const;

  /// Start values as BERT and GPT-2 have them. Throws std::invalid_argument unless the model can be trained.
  void initialize(std::mt19937_64& rng, double deviation = 0.02) {
    require_trainable(config_);
    trunk_.initialize(rng, deviation);
    head_.initialize(rng, deviation);
  }

  /// The same for what a dense model of another task may lack: a head, and embeddings of tasks.
  void initialize_new(std::mt19937_64& rng, double deviation = 0.02) {
    trunk_.initialize_tasks(rng, deviation);
    head_.initialize(rng, deviation);
  }

  /// See parameter.hpp.
  template <class Visitor>
  void visit(const Visitor& visit) {
    Trunk<Scalar>::visit(trunk_, visit);
    Head<Scalar>::visit(head_, visit);
  }
  template <class Visitor>
  void visit(const Visitor& visit) const {
    Trunk<Scalar>::visit(trunk_, visit);
    Head<Scalar>::visit(head_, visit);
  }

  /// Calls visit(name, projection) for those of all feed-forward blocks.
  template <class Visitor>
  void visit_projections(const Visitor& visit) {
    Trunk<Scalar>::visit_projections(trunk_, visit);
  }
  template <class Visitor>
  void visit_projections(const Visitor& visit) const {
    Trunk<Scalar>::visit_projections(trunk_, visit);
  }

 private:
  Rows<Scalar> forward(const Batch& batch, const Pass<Scalar>& pass, Context& context) const;

  static const Config& checked(const Config& config) {
    check_config(config);
    return config;
  }

  Config config_;
  Trunk<Scalar> trunk_;
  Head<Scalar> head_;
};

template <class Scalar>
Model<Scalar>::Model(const Config& config) : config_(checked(config)), trunk_(config), head_(config) {}

template <class Scalar>
Rows<Scalar> Model<Scalar>::forward(const Batch& batch, const Pass<Scalar>& pass, Context& context) const {
  const ConstRows<Scalar> h = trunk_.forward(batch, pass, context.balance_loss, context.trunk);
  Rows<Scalar> logits = context.outputs.resize(head_.output_rows(batch), head_.output_columns());
  head_.forward(h, batch, trunk_.words(), pass, logits, context.head);
  return logits;
}

template <class Scalar>
void Model<Scalar>::backward(const Batch& batch, const Training<Scalar>* training, Context& context,
                             Model& gradients) const {
  require(training != nullptr, "training: expected that of the forward, got none");
  require(&gradients != this, "gradients: expected another model, got the one itself");
  require_trainable(config_);
  const Pass<Scalar> pass = trunk_.pass(batch, training, context.trunk);
  const ConstRows<Scalar> h = trunk_.hidden(context.trunk);
  Rows<Scalar> d = context.hidden_gradient.resize(h.rows(), h.cols());
  head_.backward(h, batch, trunk_.words(), pass, context.outputs.get(), context.head, gradients.head_,
                 gradients.trunk_.words(), d);
  trunk_.backward(batch, pass, context.trunk, d, gradients.trunk_);
}

extern template class Model<float>;
extern template class Model<double>;

}  // namespace transformer

#pragma once

/// What stands on a model's last hidden states h and gives its outputs:
///
///     ClassificationHead   classes, or values of a regression, from a text's first token, B × labels:
///                          tanh(h₀ Pᵀ + p), dropout, a projection (BERT's pooler and classifier)
///     MaskedWordsHead      words at every token, or those asked for, T × V: dense, activation, norm, and the
///                          words' decoder
///     NextWordHead         words at every token, or those asked for, T × V: the words' decoder
///     NoHead               the hidden states themselves, T × d
///
/// Each has forward(h, batch, words, pass, logits, context); backward(…), from d_logits to dh, which is
/// overwritten; output_rows and output_columns; initialize and visit. Head is one of them, by the task.
///
/// Letters: T tokens, B texts, V vocabulary, d width.

#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <variant>

#include <meo/experts/activate.hpp>
#include <meo/experts/aligned_vector.hpp>
#include <meo/experts/linear.hpp>

#include "activations.hpp"
#include "batch.hpp"
#include "config.hpp"
#include "initialize.hpp"
#include "layer_norm.hpp"
#include "parameter.hpp"
#include "pass.hpp"
#include "words.hpp"

namespace transformer {

/// The rows of h that the batch asks for: h, or a copy of them in `memory`.
template <class Scalar>
ConstRows<Scalar> asked_rows(const ConstRows<Scalar>& h, const Batch& batch, Activations<Scalar>& memory) {
  if (batch.asked.empty()) return h;
  Rows<Scalar> rows = memory.resize(static_cast<Index>(batch.asked.size()), h.cols());
  for (Index i = 0; i < rows.rows(); ++i) rows.row(i) = h.row(batch.asked[static_cast<std::size_t>(i)]);
  return memory.get();
}

/// Its backward: calls backward(d_rows), which writes the gradient of these rows, and makes dh of it.
template <class Scalar, class Backward>
void asked_rows_backward(const Batch& batch, Activations<Scalar>& memory, Rows<Scalar> dh,
                         const Backward& backward) {
  if (batch.asked.empty()) return backward(dh);
  Rows<Scalar> rows = memory.resize(static_cast<Index>(batch.asked.size()), dh.cols());
  backward(rows);
  dh.setZero();
  for (Index i = 0; i < rows.rows(); ++i) dh.row(batch.asked[static_cast<std::size_t>(i)]) += rows.row(i);
}

/// How many they are.
inline Index num_asked(const Batch& batch) {
  return batch.asked.empty() ? batch.tokens() : static_cast<Index>(batch.asked.size());
}

template <class Scalar>
class ClassificationHead {
 public:
  struct Context {
    Activations<Scalar> first, pooled, dropped;  ///< B × d
    Activations<Scalar> d_first, d_pooled;       ///< of backward
    meo::AlignedVector<Scalar> scratch;
  };

  explicit ClassificationHead(const Config& config)
      : pooler_(config.width, config.width),
        classifier_(config.width, config.labels),
        dropout_(config.classifier_dropout),
        dropout_place_(config.layers * dropouts_per_layer + 1) {}

  Index output_rows(const Batch& batch) const { return batch.sequences.size(); }
  Index output_columns() const { return classifier_.out_features(); }

  void forward(const ConstRows<Scalar>& h, const Batch& batch, const Words<Scalar>&, const Pass<Scalar>& pass,
               Rows<Scalar> logits, Context& context) const {
    const Index texts = batch.sequences.size();
    Rows<Scalar> first = context.first.resize(texts, h.cols());
    Rows<Scalar> pooled = context.pooled.resize(texts, h.cols());
    Rows<Scalar> dropped = context.dropped.resize(texts, h.cols());
    for (Index b = 0; b < texts; ++b) first.row(b) = h.row(batch.sequences.begin(b));
    pooler_.apply(first, pooled.data(), pooled.cols());
    for (Index i = 0; i < pooled.size(); ++i) pooled.data()[i] = std::tanh(pooled.data()[i]);
    dropped = pooled;
    pass.dropout(dropout_, dropout_place_).apply(dropped.data(), dropped.size());
    classifier_.apply(dropped, logits.data(), logits.cols());
  }

  void backward(const ConstRows<Scalar>&, const Batch& batch, const Words<Scalar>&, const Pass<Scalar>& pass,
                const ConstRows<Scalar>& d_logits, Context& context, ClassificationHead& gradients,
                Words<Scalar>&, Rows<Scalar> dh) const {
    const ConstRows<Scalar> pooled = context.pooled.get();
    Rows<Scalar> d_pooled = context.d_pooled.resize(pooled.rows(), pooled.cols());
    Rows<Scalar> d_first = context.d_first.resize(pooled.rows(), pooled.cols());
    classifier_.backward(context.dropped.get(), d_logits, gradients.classifier_, false, d_pooled.data(),
                         d_pooled.cols(), context.scratch);
    pass.dropout(dropout_, dropout_place_).apply(d_pooled.data(), d_pooled.size());
    d_pooled.array() *= Scalar(1) - pooled.array().square();
    pooler_.backward(context.first.get(), d_pooled, gradients.pooler_, false, d_first.data(), d_first.cols(),
                     context.scratch);
    dh.setZero();
    for (Index b = 0; b < d_first.rows(); ++b) dh.row(batch.sequences.begin(b)) = d_first.row(b);
  }

  void initialize(std::mt19937_64& rng, double deviation) {
    initialize_normal(pooler_, rng, deviation);
    initialize_normal(classifier_, rng, deviation);
  }

  template <class Self, class Visitor>
  static void visit(Self& self, const Visitor& visit) {
    visit("bert.pooler.dense", tensors_of(self.pooler_, "bert.pooler.dense"));
    visit("classifier", tensors_of(self.classifier_, "classifier"));
  }

 private:
  meo::Linear<Scalar> pooler_, classifier_;
  double dropout_;
  Index dropout_place_;
};

template <class Scalar>
class MaskedWordsHead {
 public:
  struct Context {
    Activations<Scalar> asked, before, normed;  ///< T × d
    typename LayerNorm<Scalar>::Context norm;
    Activations<Scalar> d, d_asked;  ///< of backward
    meo::AlignedVector<Scalar> scratch;
  };

  explicit MaskedWordsHead(const Config& config)
      : dense_(config.width, config.width),
        norm_(config.width, config.norm_epsilon),
        activation_(config.activation),
        vocabulary_(config.vocabulary) {}

  Index output_rows(const Batch& batch) const { return num_asked(batch); }
  Index output_columns() const { return vocabulary_; }

  void forward(const ConstRows<Scalar>& h, const Batch& batch, const Words<Scalar>& words,
               const Pass<Scalar>&, Rows<Scalar> logits, Context& context) const {
    const ConstRows<Scalar> asked = asked_rows(h, batch, context.asked);
    Rows<Scalar> before = context.before.resize(asked.rows(), asked.cols());
    Rows<Scalar> normed = context.normed.resize(asked.rows(), asked.cols());
    dense_.apply(asked, before.data(), before.cols());
    meo::activate<Scalar>(activation_, context.before.get(), normed);
    norm_.forward(context.normed.get(), normed, context.norm);
    words.decode(context.normed.get(), logits);
  }

  void backward(const ConstRows<Scalar>& h, const Batch& batch, const Words<Scalar>& words,
                const Pass<Scalar>&, const ConstRows<Scalar>& d_logits, Context& context,
                MaskedWordsHead& gradients, Words<Scalar>& words_gradients, Rows<Scalar> dh) const {
    const ConstRows<Scalar> asked = batch.asked.empty() ? h : context.asked.get();
    Rows<Scalar> d = context.d.resize(asked.rows(), asked.cols());
    words.decode_backward(context.normed.get(), d_logits, words_gradients, d, context.scratch);
    norm_.backward(context.norm, context.d.get(), gradients.norm_, d);
    meo::activate_backward<Scalar>(activation_, context.before.get(), d);
    asked_rows_backward(batch, context.d_asked, dh, [&](Rows<Scalar> d_asked) {
      dense_.backward(asked, d, gradients.dense_, false, d_asked.data(), d_asked.cols(), context.scratch);
    });
  }

  void initialize(std::mt19937_64& rng, double deviation) { initialize_normal(dense_, rng, deviation); }

  template <class Self, class Visitor>
  static void visit(Self& self, const Visitor& visit) {
    visit("cls.predictions.transform.dense", tensors_of(self.dense_, "cls.predictions.transform.dense"));
    LayerNorm<Scalar>::visit(self.norm_, "cls.predictions.transform.LayerNorm", visit);
  }

 private:
  meo::Linear<Scalar> dense_;
  LayerNorm<Scalar> norm_;
  meo::AnyActivation activation_;
  Index vocabulary_;
};

template <class Scalar>
class NextWordHead {
 public:
  struct Context {
    Activations<Scalar> asked;    ///< T × d
    Activations<Scalar> d_asked;  ///< of backward
    meo::AlignedVector<Scalar> scratch;
  };

  explicit NextWordHead(const Config& config) : vocabulary_(config.vocabulary) {}

  Index output_rows(const Batch& batch) const { return num_asked(batch); }
  Index output_columns() const { return vocabulary_; }

  void forward(const ConstRows<Scalar>& h, const Batch& batch, const Words<Scalar>& words,
               const Pass<Scalar>&, Rows<Scalar> logits, Context& context) const {
    words.decode(asked_rows(h, batch, context.asked), logits);
  }

  void backward(const ConstRows<Scalar>& h, const Batch& batch, const Words<Scalar>& words,
                const Pass<Scalar>&, const ConstRows<Scalar>& d_logits, Context& context, NextWordHead&,
                Words<Scalar>& words_gradients, Rows<Scalar> dh) const {
    const ConstRows<Scalar> asked = batch.asked.empty() ? h : context.asked.get();
    asked_rows_backward(batch, context.d_asked, dh, [&](Rows<Scalar> d_asked) {
      words.decode_backward(asked, d_logits, words_gradients, d_asked, context.scratch);
    });
  }

  void initialize(std::mt19937_64&, double) {}

  template <class Self, class Visitor>
  static void visit(Self&, const Visitor&) {}

 private:
  Index vocabulary_;
};

template <class Scalar>
class NoHead {
 public:
  struct Context {};

  explicit NoHead(const Config& config) : width_(config.width) {}

  Index output_rows(const Batch& batch) const { return batch.tokens(); }
  Index output_columns() const { return width_; }

  void forward(const ConstRows<Scalar>& h, const Batch&, const Words<Scalar>&, const Pass<Scalar>&,
               Rows<Scalar> outputs, Context&) const {
    outputs = h;
  }

  void backward(const ConstRows<Scalar>&, const Batch&, const Words<Scalar>&, const Pass<Scalar>&,
                const ConstRows<Scalar>& d_outputs, Context&, NoHead&, Words<Scalar>&,
                Rows<Scalar> dh) const {
    dh = d_outputs;
  }

  void initialize(std::mt19937_64&, double) {}

  template <class Self, class Visitor>
  static void visit(Self&, const Visitor&) {}

 private:
  Index width_;
};

/// The head that the config's task asks for.
template <class Scalar>
class Head {
 public:
  /// Of each kind: one that is not used takes no memory.
  using Context =
      std::tuple<typename ClassificationHead<Scalar>::Context, typename MaskedWordsHead<Scalar>::Context,
                 typename NextWordHead<Scalar>::Context, typename NoHead<Scalar>::Context>;

  explicit Head(const Config& config) : kind_(made(config)) {}

  Index output_rows(const Batch& batch) const {
    return std::visit([&](const auto& head) { return head.output_rows(batch); }, kind_);
  }
  Index output_columns() const {
    return std::visit([](const auto& head) { return head.output_columns(); }, kind_);
  }

  void forward(const ConstRows<Scalar>& h, const Batch& batch, const Words<Scalar>& words,
               const Pass<Scalar>& pass, Rows<Scalar> outputs, Context& context) const {
    std::visit(
        [&](const auto& head) { head.forward(h, batch, words, pass, outputs, context_of(head, context)); },
        kind_);
  }

  void backward(const ConstRows<Scalar>& h, const Batch& batch, const Words<Scalar>& words,
                const Pass<Scalar>& pass, const ConstRows<Scalar>& d_outputs, Context& context,
                Head& gradients, Words<Scalar>& words_gradients, Rows<Scalar> dh) const {
    std::visit(
        [&](const auto& head) {
          using HeadOfKind = std::decay_t<decltype(head)>;
          head.backward(h, batch, words, pass, d_outputs, context_of(head, context),
                        std::get<HeadOfKind>(gradients.kind_), words_gradients, dh);
        },
        kind_);
  }

  void initialize(std::mt19937_64& rng, double deviation) {
    std::visit([&](auto& head) { head.initialize(rng, deviation); }, kind_);
  }

  template <class Self, class Visitor>
  static void visit(Self& self, const Visitor& visit) {
    std::visit([&](auto& head) { std::decay_t<decltype(head)>::visit(head, visit); }, self.kind_);
  }

 private:
  using Kind =
      std::variant<ClassificationHead<Scalar>, MaskedWordsHead<Scalar>, NextWordHead<Scalar>, NoHead<Scalar>>;

  static Kind made(const Config& config) {
    switch (config.task) {
      case Task::classification:
      case Task::regression:
        break;
      case Task::masked_words:
        return MaskedWordsHead<Scalar>(config);
      case Task::next_word:
        return NextWordHead<Scalar>(config);
      case Task::hidden_states:
        return NoHead<Scalar>(config);
    }
    return ClassificationHead<Scalar>(config);
  }

  template <class HeadOfKind>
  static typename HeadOfKind::Context& context_of(const HeadOfKind&, Context& context) {
    return std::get<typename HeadOfKind::Context>(context);
  }

  Kind kind_;
};

}  // namespace transformer

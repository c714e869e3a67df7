#pragma once

/// A layer of BERT, with the norms after the additions: h = norm(x + attention(x)), y = norm(h + ffn(h))
/// (Devlin et al. 2019, arXiv 1810.04805).
///
/// Letters: T tokens, d width.

#include <array>
#include <string>
#include <string_view>

#include "activations.hpp"
#include "config.hpp"
#include "feed_forward.hpp"
#include "layer_norm.hpp"
#include "pass.hpp"
#include "self_attention.hpp"

namespace transformer {

template <class Scalar>
class EncoderLayer {
 public:
  /// What a forward leaves for backward.
  struct Context {
    typename SelfAttention<Scalar>::Context attention;
    typename LayerNorm<Scalar>::Context attention_norm, norm;
    typename FeedForward<Scalar>::Context feed_forward;
    Activations<Scalar> sum;     ///< T × d, what a norm reads; of the forward alone
    Activations<Scalar> middle;  ///< T × d, h
    Activations<Scalar> output;  ///< T × d, y
  };

  /// Memory of backward.
  struct Gradients {
    Activations<Scalar> branch, middle;
    typename SelfAttention<Scalar>::Gradients attention;
    typename FeedForward<Scalar>::Gradients feed_forward;
  };

  explicit EncoderLayer(const Config& config)
      : attention_({config.width, config.heads, false, config.attention_dropout}),
        attention_norm_(config.width, config.norm_epsilon),
        feed_forward_(config),
        norm_(config.width, config.norm_epsilon),
        dropout_(config.hidden_dropout) {}

  /// x: T × d, which may be context.output; that has y afterwards. layer: its number. Returns the balance
  /// loss.
  Scalar forward(const ConstRows<Scalar>& x, const Pass<Scalar>& pass, Index layer, Context& context) const {
    const Index place = layer * dropouts_per_layer;
    Rows<Scalar> sum = context.sum.resize(x.rows(), x.cols());
    Rows<Scalar> middle = context.middle.resize(x.rows(), x.cols());
    attention_.forward(x, pass, place, sum, context.attention);
    pass.dropout(dropout_, place + 1).apply(sum.data(), sum.size());
    sum += x;
    attention_norm_.forward(context.sum.get(), middle, context.attention_norm);
    const Scalar loss = feed_forward_.forward(context.middle.get(), pass, layer, sum, context.feed_forward);
    pass.dropout(dropout_, place + 2).apply(sum.data(), sum.size());
    sum += middle;
    norm_.forward(context.sum.get(), context.output.resize(x.rows(), x.cols()), context.norm);
    return loss;
  }

  /// Of a forward of x that left the context: turns d, the gradient of y, into that of x, and adds the
  /// parameters' to gradients.
  void backward(const ConstRows<Scalar>& x, const Pass<Scalar>& pass, Index layer, Context& context,
                Rows<Scalar> d, EncoderLayer& gradients, Rows<Scalar> d_task_embeddings,
                Gradients& memory) const {
    const Index place = layer * dropouts_per_layer;
    Rows<Scalar> d_branch = memory.branch.resize(x.rows(), x.cols());
    Rows<Scalar> d_middle = memory.middle.resize(x.rows(), x.cols());
    norm_.backward(context.norm, read<Scalar>(d), gradients.norm_, d);
    d_branch = d;
    pass.dropout(dropout_, place + 2).apply(d_branch.data(), d_branch.size());
    feed_forward_.backward(context.middle.get(), pass, layer, context.feed_forward, memory.branch.get(),
                           gradients.feed_forward_, d_middle, d_task_embeddings, memory.feed_forward);
    d += d_middle;
    attention_norm_.backward(context.attention_norm, read<Scalar>(d), gradients.attention_norm_, d);
    d_branch = d;
    pass.dropout(dropout_, place + 1).apply(d_branch.data(), d_branch.size());
    attention_.backward(x, pass, place, context.attention, memory.branch.get(), gradients.attention_, d,
                        memory.attention);
  }

  void initialize(std::mt19937_64& rng, double deviation) {
    attention_.initialize(rng, deviation);
    feed_forward_.initialize(rng, deviation);
  }

  template <class Visitor>
  void visit(const std::string& prefix, const Visitor& visit) {
    visit_parts(*this, prefix, visit);
  }
  template <class Visitor>
  void visit(const std::string& prefix, const Visitor& visit) const {
    visit_parts(*this, prefix, visit);
  }

  /// Calls visit(name, projection) for both of the feed-forward block.
  template <class Visitor>
  void visit_projections(const std::string& prefix, const Visitor& visit) {
    visit(prefix + up_name, feed_forward_.up());
    visit(prefix + down_name, feed_forward_.down());
  }

 private:
  static constexpr const char* up_name = "intermediate.dense";
  static constexpr const char* down_name = "output.dense";

  template <class Self, class Visitor>
  static void visit_parts(Self& self, const std::string& prefix, const Visitor& visit) {
    static constexpr std::array<std::string_view, 3> parts{"query", "key", "value"};
    visit(prefix + "attention.self", stacked(self.attention_.qkv(), prefix + "attention.self.", parts));
    const std::string output = prefix + "attention.output.dense";
    visit(output, tensors_of(self.attention_.output(), output));
    self.attention_norm_.visit(prefix + "attention.output.LayerNorm", visit);
    self.feed_forward_.up().visit(prefix + up_name, visit);
    self.feed_forward_.down().visit(prefix + down_name, visit);
    self.norm_.visit(prefix + "output.LayerNorm", visit);
  }

  SelfAttention<Scalar> attention_;
  LayerNorm<Scalar> attention_norm_;
  FeedForward<Scalar> feed_forward_;
  LayerNorm<Scalar> norm_;
  double dropout_;
};

}  // namespace transformer

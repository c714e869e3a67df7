#pragma once

/// A layer of GPT-2, with the norms before: h = x + attention(norm(x)), y = h + ffn(norm(h)), where a token
/// sees none that follow it (Radford et al. 2019).
///
/// Letters: T tokens, d width.

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
class DecoderLayer {
 public:
  /// What a forward leaves for backward.
  struct Context {
    typename SelfAttention<Scalar>::Context attention;
    typename LayerNorm<Scalar>::Context attention_norm, norm;
    typename FeedForward<Scalar>::Context feed_forward;
    Activations<Scalar> attention_input;     ///< T × d, norm(x)
    Activations<Scalar> feed_forward_input;  ///< T × d, norm(h)
    Activations<Scalar> sum;                 ///< T × d, h; of the forward alone
    Activations<Scalar> output;              ///< T × d, y
  };

  /// Memory of backward.
  struct Gradients {
    Activations<Scalar> branch, input;
    typename SelfAttention<Scalar>::Gradients attention;
    typename FeedForward<Scalar>::Gradients feed_forward;
  };

  explicit DecoderLayer(const Config& config)
      : attention_({config.width, config.heads, true, config.attention_dropout}),
        attention_norm_(config.width, config.norm_epsilon),
        feed_forward_(config),
        norm_(config.width, config.norm_epsilon),
        dropout_(config.hidden_dropout) {}

  /// x: T × d, which may be context.output; that has y afterwards. layer: its number. Returns the balance
  /// loss.
  Scalar forward(const ConstRows<Scalar>& x, const Pass<Scalar>& pass, Index layer, Context& context) const {
    const Index place = layer * dropouts_per_layer;
    Rows<Scalar> sum = context.sum.resize(x.rows(), x.cols());
    attention_norm_.forward(x, context.attention_input.resize(x.rows(), x.cols()), context.attention_norm);
    attention_.forward(context.attention_input.get(), pass, place, sum, context.attention);
    pass.dropout(dropout_, place + 1).apply(sum.data(), sum.size());
    sum += x;
    norm_.forward(context.sum.get(), context.feed_forward_input.resize(x.rows(), x.cols()), context.norm);
    Rows<Scalar> output = context.output.resize(x.rows(), x.cols());
    const Scalar loss =
        feed_forward_.forward(context.feed_forward_input.get(), pass, layer, output, context.feed_forward);
    pass.dropout(dropout_, place + 2).apply(output.data(), output.size());
    output += sum;
    return loss;
  }

  /// Of a forward that left the context: turns d, the gradient of y, into that of x, and adds the parameters'
  /// to gradients.
  void backward(const Pass<Scalar>& pass, Index layer, Context& context, Rows<Scalar> d,
                DecoderLayer& gradients, Gradients& memory) const {
    const Index place = layer * dropouts_per_layer;
    Rows<Scalar> d_branch = memory.branch.resize(d.rows(), d.cols());
    Rows<Scalar> d_input = memory.input.resize(d.rows(), d.cols());
    d_branch = d;
    pass.dropout(dropout_, place + 2).apply(d_branch.data(), d_branch.size());
    feed_forward_.backward(context.feed_forward_input.get(), pass, layer, context.feed_forward,
                           memory.branch.get(), gradients.feed_forward_, d_input, Rows<Scalar>(nullptr, 0, 0),
                           memory.feed_forward);
    norm_.backward(context.norm, memory.input.get(), gradients.norm_, d_input);
    d += d_input;
    d_branch = d;
    pass.dropout(dropout_, place + 1).apply(d_branch.data(), d_branch.size());
    d_input.setZero();
    attention_.backward(context.attention_input.get(), pass, place, context.attention, memory.branch.get(),
                        gradients.attention_, d_input, memory.attention);
    attention_norm_.backward(context.attention_norm, memory.input.get(), gradients.attention_norm_, d_input);
    d += d_input;
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
  static constexpr const char* up_name = "mlp.c_fc";
  static constexpr const char* down_name = "mlp.c_proj";

  template <class Self, class Visitor>
  static void visit_parts(Self& self, const std::string& prefix, const Visitor& visit) {
    self.attention_norm_.visit(prefix + "ln_1", visit);
    visit(prefix + "attn.c_attn", tensors_of(self.attention_.qkv(), prefix + "attn.c_attn", true));
    visit(prefix + "attn.c_proj", tensors_of(self.attention_.output(), prefix + "attn.c_proj", true));
    self.norm_.visit(prefix + "ln_2", visit);
    self.feed_forward_.up().visit(prefix + up_name, visit);
    self.feed_forward_.down().visit(prefix + down_name, visit);
  }

  SelfAttention<Scalar> attention_;
  LayerNorm<Scalar> attention_norm_;
  FeedForward<Scalar> feed_forward_;
  LayerNorm<Scalar> norm_;
  double dropout_;
};

}  // namespace transformer

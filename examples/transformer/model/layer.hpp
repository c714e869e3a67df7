#pragma once

/// A layer of BERT or GPT-2: self-attention and a feed-forward block, each within a Residual. In GPT-2 a
/// token sees none that follow it.
///
/// Letters: T tokens, d width.

#include <array>
#include <random>
#include <string>
#include <string_view>

#include "activations.hpp"
#include "config.hpp"
#include "feed_forward.hpp"
#include "pass.hpp"
#include "residual.hpp"
#include "self_attention.hpp"

namespace transformer {

/// What published checkpoints call the parts of a layer.
struct LayerNames {
  const char *attention_output, *attention_norm, *up, *down, *norm;

  static const LayerNames& of(Family family) {
    static constexpr LayerNames bert{"attention.output.dense", "attention.output.LayerNorm",
                                     "intermediate.dense", "output.dense", "output.LayerNorm"};
    static constexpr LayerNames gpt2{"attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2"};
    return family == Family::bert ? bert : gpt2;
  }
};

template <class Scalar>
class Layer {
 public:
  /// What a forward leaves for backward.
  struct Context {
    typename SelfAttention<Scalar>::Context attention;
    typename FeedForward<Scalar>::Context feed_forward;
    typename Residual<Scalar>::Context around_attention, around_feed_forward;
    Activations<Scalar> middle, output;  ///< T × d, of attention's residual and the block's
  };

  /// Memory of backward.
  struct Gradients {
    typename SelfAttention<Scalar>::Gradients attention;
    typename FeedForward<Scalar>::Gradients feed_forward;
    typename Residual<Scalar>::Gradients residual;
  };

  explicit Layer(const Config& config)
      : family_(config.family),
        attention_({config.width, config.heads, config.family == Family::gpt2, config.attention_dropout}),
        around_attention_(config),
        feed_forward_(config),
        around_feed_forward_(config),
        dropout_(config.hidden_dropout) {}

  /// x: T × d, which may be context.output; that has y afterwards. layer: its number. Returns the balance
  /// loss.
  Scalar forward(const ConstRows<Scalar>& x, const Pass<Scalar>& pass, Index layer, Context& context) const {
    const Index place = layer * dropouts_per_layer;
    LayerPast<Scalar>* const past = pass.past_of(layer);
    around_attention_.forward(
        x, pass.dropout(dropout_, place + 1), context.middle.resize(x.rows(), x.cols()),
        context.around_attention, [&](const ConstRows<Scalar>& input, Rows<Scalar> output) {
          attention_.forward(input, pass, place, past == nullptr ? nullptr : &past->attention, output,
                             context.attention);
        });
    Scalar loss = 0;
    around_feed_forward_.forward(
        context.middle.get(), pass.dropout(dropout_, place + 2), context.output.resize(x.rows(), x.cols()),
        context.around_feed_forward, [&](const ConstRows<Scalar>& input, Rows<Scalar> output) {
          loss = feed_forward_.forward(input, pass, layer, output, context.feed_forward);
        });
    return loss;
  }

  /// Of a forward of x that left the context: turns d, the gradient of y, into that of x, and adds the
  /// parameters' to gradients, and at task level to d_task_embeddings.
  void backward(const ConstRows<Scalar>& x, const Pass<Scalar>& pass, Index layer, Context& context,
                Rows<Scalar> d, Layer& gradients, Rows<Scalar> d_task_embeddings, Gradients& memory) const {
    const Index place = layer * dropouts_per_layer;
    around_feed_forward_.backward(
        context.around_feed_forward, pass.dropout(dropout_, place + 2), d, gradients.around_feed_forward_,
        memory.residual, [&](const ConstRows<Scalar>& d_output, Rows<Scalar> d_input) {
          feed_forward_.backward(feed_forward_input(context), pass, layer, context.feed_forward, d_output,
                                 gradients.feed_forward_, d_input, d_task_embeddings, memory.feed_forward);
        });
    around_attention_.backward(
        context.around_attention, pass.dropout(dropout_, place + 1), d, gradients.around_attention_,
        memory.residual, [&](const ConstRows<Scalar>& d_output, Rows<Scalar> d_input) {
          attention_.backward(around_attention_.input(x, context.around_attention), pass, place,
                              context.attention, d_output, gradients.attention_, d_input, memory.attention);
        });
  }

  /// What the feed-forward block read in the forward that left the context: T × d.
  ConstRows<Scalar> feed_forward_input(const Context& context) const {
    return around_feed_forward_.input(context.middle.get(), context.around_feed_forward);
  }

  void initialize(std::mt19937_64& rng, double deviation) {
    attention_.initialize(rng, deviation);
    feed_forward_.initialize(rng, deviation);
  }

  /// self: const or not; see parameter.hpp.
  template <class Self, class Visitor>
  static void visit(Self& self, const std::string& prefix, const Visitor& visit) {
    static constexpr std::array<std::string_view, 3> bert_parts{"query", "key", "value"};
    const LayerNames& names = LayerNames::of(self.family_);
    const bool turned = self.family_ == Family::gpt2;
    auto& qkv = self.attention_.qkv();
    if (turned) visit(prefix + "attn.c_attn", tensors_of(qkv, prefix + "attn.c_attn", true));
    else visit(prefix + "attention.self", stacked(qkv, prefix + "attention.self.", bert_parts));
    const std::string output = prefix + names.attention_output;
    visit(output, tensors_of(self.attention_.output(), output, turned));
    Residual<Scalar>::visit(self.around_attention_, prefix + names.attention_norm, visit);
    visit_projections(self, prefix,
                      [&](const std::string& name, auto& projection) { projection.visit(name, visit); });
    Residual<Scalar>::visit(self.around_feed_forward_, prefix + names.norm, visit);
  }

  /// Calls visit(name, projection) for both of the feed-forward block.
  template <class Self, class Visitor>
  static void visit_projections(Self& self, const std::string& prefix, const Visitor& visit) {
    const LayerNames& names = LayerNames::of(self.family_);
    visit(prefix + names.up, self.feed_forward_.up());
    visit(prefix + names.down, self.feed_forward_.down());
  }

 private:
  Family family_;
  SelfAttention<Scalar> attention_;
  Residual<Scalar> around_attention_;
  FeedForward<Scalar> feed_forward_;
  Residual<Scalar> around_feed_forward_;
  double dropout_;
};

}  // namespace transformer

#pragma once

/// What stands around attention and around the feed-forward block f of a layer: the addition of what it
/// reads, and a norm behind it, y = norm(x + dropout(f(x))), as in BERT, or before it, y = x +
/// dropout(f(norm(x))), as in GPT-2.
///
/// Letters: T tokens, d width.

#include <string_view>

#include "activations.hpp"
#include "config.hpp"
#include "dropout.hpp"
#include "layer_norm.hpp"

namespace transformer {

template <class Scalar>
class Residual {
 public:
  /// What a forward leaves for backward.
  struct Context {
    typename LayerNorm<Scalar>::Context norm;
    Activations<Scalar> normed;  ///< T × d, where the norm is before f
  };

  /// Memory of backward.
  struct Gradients {
    Activations<Scalar> output, input;  ///< T × d, of f's
  };

  explicit Residual(const Config& config)
      : norm_(config.width, config.norm_epsilon), norm_first_(config.family == Family::gpt2) {}

  /// x, y: T × d, not the same. f(input, output) writes what it makes of its input.
  template <class Function>
  void forward(const ConstRows<Scalar>& x, const Dropout& dropout, Rows<Scalar> y, Context& context,
               const Function& f) const {
    if (norm_first_) norm_.forward(x, context.normed.resize(x.rows(), x.cols()), context.norm);
    f(input(x, context), y);
    dropout.apply(y.data(), y.size());
    y += x;
    if (!norm_first_) norm_.forward(read(y), y, context.norm);
  }

  /// What f reads in a forward of x.
  ConstRows<Scalar> input(const ConstRows<Scalar>& x, const Context& context) const {
    return norm_first_ ? context.normed.get() : x;
  }

  /// Of a forward that left the context: turns d, the gradient of y, into that of x. f(d_output, d_input)
  /// writes the gradient of f's input.
  template <class Function>
  void backward(const Context& context, const Dropout& dropout, Rows<Scalar> d, Residual& gradients,
                Gradients& memory, const Function& f) const {
    Rows<Scalar> d_output = memory.output.resize(d.rows(), d.cols());
    Rows<Scalar> d_input = memory.input.resize(d.rows(), d.cols());
    if (!norm_first_) norm_.backward(context.norm, read(d), gradients.norm_, d);
    d_output = d;
    dropout.apply(d_output.data(), d_output.size());
    f(read(d_output), d_input);
    if (norm_first_) norm_.backward(context.norm, read(d_input), gradients.norm_, d_input);
    d += d_input;
  }

  /// name: of the norm. self: const or not; see parameter.hpp.
  template <class Self, class Visitor>
  static void visit(Self& self, std::string_view name, const Visitor& visit) {
    LayerNorm<Scalar>::visit(self.norm_, name, visit);
  }

 private:
  LayerNorm<Scalar> norm_;
  bool norm_first_;
};

}  // namespace transformer

#pragma once

/// Self-attention with its projections: y = mixed Wᵀ + b of the attention of x's queries, keys and values.
///
/// Letters: T tokens, d width.

#include <array>
#include <string>
#include <string_view>

#include <meo/experts/aligned_vector.hpp>
#include <meo/experts/linear.hpp>

#include "activations.hpp"
#include "attention.hpp"
#include "initialize.hpp"
#include "parameter.hpp"
#include "pass.hpp"
#include "past.hpp"

namespace transformer {

struct SelfAttentionOptions {
  Index width = 0;
  Index heads = 0;
  bool causal = false;  ///< a token sees those up to itself
  double dropout = 0;   ///< of the probabilities
};

template <class Scalar>
class SelfAttention {
 public:
  struct Context {
    Activations<Scalar> qkv;    ///< T × 3d
    Activations<Scalar> mixed;  ///< T × d
    AttentionMemory<Scalar> attention;
  };

  /// Memory of backward.
  struct Gradients {
    Activations<Scalar> qkv, mixed;
    meo::AlignedVector<Scalar> scratch;
  };

  explicit SelfAttention(const SelfAttentionOptions& options)
      : options_(options),
        qkv_(options.width, 3 * options.width),
        output_(options.width, options.width),
        attention_(options.width, options.heads, options.causal) {}

  /// d → 3d: queries, keys and values, one after another; and d → d.
  meo::Linear<Scalar>& qkv() { return qkv_; }
  const meo::Linear<Scalar>& qkv() const { return qkv_; }
  meo::Linear<Scalar>& output() { return output_; }
  const meo::Linear<Scalar>& output() const { return output_; }

  void initialize(std::mt19937_64& rng, double deviation) {
    initialize_normal(qkv_, rng, deviation);
    initialize_normal(output_, rng, deviation);
  }

  /// x, y: T × d. place: of the dropout. past: null for none.
  void forward(const ConstRows<Scalar>& x, const Pass<Scalar>& pass, Index place, KeysAndValues<Scalar>* past,
               Rows<Scalar> y, Context& context) const {
    Rows<Scalar> qkv = context.qkv.resize(x.rows(), 3 * options_.width);
    Rows<Scalar> mixed = context.mixed.resize(x.rows(), options_.width);
    qkv_.apply(x, qkv.data(), qkv.cols());
    const bool follows = past != nullptr && past->tokens() > 0;
    if (past != nullptr) past->add(qkv.rightCols(2 * options_.width));
    if (follows) {
      attention_.forward_last(context.qkv.get(), past->get(), mixed, context.attention);
    } else {
      attention_.forward(context.qkv.get(), pass.sequences, pass.dropout(options_.dropout, place),
                         pass.training != nullptr, mixed, context.attention);
    }
    output_.apply(mixed, y.data(), y.cols());
  }

  /// Of a forward that left the context. dy, dx: T × d; dx is overwritten. Adds the parameters' to gradients.
  void backward(const ConstRows<Scalar>& x, const Pass<Scalar>& pass, Index place, Context& context,
                const ConstRows<Scalar>& dy, SelfAttention& gradients, Rows<Scalar> dx,
                Gradients& memory) const {
    Rows<Scalar> d_qkv = memory.qkv.resize(x.rows(), 3 * options_.width);
    Rows<Scalar> d_mixed = memory.mixed.resize(x.rows(), options_.width);
    output_.backward(context.mixed.get(), dy, gradients.output_, false, d_mixed.data(), d_mixed.cols(),
                     memory.scratch);
    attention_.backward(context.qkv.get(), pass.sequences, pass.dropout(options_.dropout, place),
                        memory.mixed.get(), d_qkv, context.attention);
    qkv_.backward(x, d_qkv, gradients.qkv_, false, dx.data(), dx.cols(), memory.scratch);
  }

 private:
  SelfAttentionOptions options_;
  meo::Linear<Scalar> qkv_, output_;
  Attention<Scalar> attention_;
};

}  // namespace transformer

#pragma once

/// A feed-forward block, y = down(f(up(x))), whose projections are dense, MoE or MEO, each with a gate of its
/// own and with noise of its own.
///
/// Letters: T tokens, d width, H hidden.

#include <string_view>

#include <meo/experts/activate.hpp>
#include <meo/experts/aligned_vector.hpp>

#include "activations.hpp"
#include "config.hpp"
#include "pass.hpp"
#include "projection.hpp"

namespace transformer {

template <class Scalar>
class FeedForward {
 public:
  struct Context {
    typename Projection<Scalar>::Context up, down;
    Activations<Scalar> before, hidden;  ///< T × H, before and after f; inference has both in `before`
  };

  /// Memory of backward.
  struct Gradients {
    Activations<Scalar> hidden;
    meo::AlignedVector<Scalar> scratch;
  };

  explicit FeedForward(const Config& config)
      : up_(config, config.width, config.hidden),
        down_(config, config.hidden, config.width),
        hidden_(config.hidden),
        activation_(config.activation) {}

  Projection<Scalar>& up() { return up_; }
  const Projection<Scalar>& up() const { return up_; }
  Projection<Scalar>& down() { return down_; }
  const Projection<Scalar>& down() const { return down_; }

  /// x, y: T × d. layer: of the model, by which its gates are numbered. Returns the balance loss.
  Scalar forward(const ConstRows<Scalar>& x, const Pass<Scalar>& pass, Index layer, Rows<Scalar> y,
                 Context& context) const {
    Rows<Scalar> before = context.before.resize(x.rows(), hidden_);
    Rows<Scalar> hidden = pass.training != nullptr ? context.hidden.resize(x.rows(), hidden_) : before;
    LayerPast<Scalar>* const past = pass.past_of(layer);
    Scalar loss =
        up_.forward(x, pass.inputs(2 * layer), past == nullptr ? nullptr : &past->up, before, context.up);
    meo::activate<Scalar>(activation_, context.before.get(), hidden);
    loss += down_.forward(read<Scalar>(hidden), pass.inputs(2 * layer + 1),
                          past == nullptr ? nullptr : &past->down, y, context.down);
    return loss;
  }

  /// Of a forward that left the context. dy, dx: T × d; dx is overwritten. See Projection::backward.
  void backward(const ConstRows<Scalar>& x, const Pass<Scalar>& pass, Index layer, Context& context,
                const ConstRows<Scalar>& dy, FeedForward& gradients, Rows<Scalar> dx,
                Rows<Scalar> d_task_embeddings, Gradients& memory) const {
    Rows<Scalar> d_hidden = memory.hidden.resize(x.rows(), hidden_);
    down_.backward(context.hidden.get(), pass.inputs(2 * layer + 1), context.down, dy, gradients.down_,
                   d_hidden, d_task_embeddings, memory.scratch);
    meo::activate_backward<Scalar>(activation_, context.before.get(), d_hidden);
    up_.backward(x, pass.inputs(2 * layer), context.up, memory.hidden.get(), gradients.up_, dx,
                 d_task_embeddings, memory.scratch);
  }

  void initialize(std::mt19937_64& rng, double deviation) {
    up_.initialize(rng, deviation);
    down_.initialize(rng, deviation);
  }

 private:
  Projection<Scalar> up_, down_;
  Index hidden_;
  meo::AnyActivation activation_;
};

}  // namespace transformer

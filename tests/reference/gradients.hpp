#pragma once

/// Gradients as the reference's types, so that all parameters of a layer can be walked through, and the
/// derivative of a loss by differences.

#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <meo/types.hpp>

#include "kernels/guarded_matrix.hpp"
#include "reference/library.hpp"
#include "reference/library_block.hpp"
#include "reference/reference.hpp"
#include "support/bounds.hpp"

namespace meo::reference {

template <class S>
struct Tensor {
  std::string name;
  Eigen::Map<Matrix<S>> values;
};

template <class S>
void add_tensors(const std::string& name, Affine<S>& affine, std::vector<Tensor<S>>& tensors) {
  tensors.push_back({name + ".weight", {affine.weight.data(), affine.weight.rows(), affine.weight.cols()}});
  if (affine.bias.size() != 0)
    tensors.push_back({name + ".bias", {affine.bias.data(), 1, affine.bias.size()}});
}

/// All parameters of a layer; the layer must outlive them.
template <class S>
std::vector<Tensor<S>> tensors(Layer<S>& layer, const std::string& prefix = "") {
  std::vector<Tensor<S>> all;
  const auto add = [&](const std::string& name, Matrix<S>& matrix) {
    all.push_back({prefix + name, {matrix.data(), matrix.rows(), matrix.cols()}});
  };
  add("gate", layer.gate_weight);
  add("noise", layer.noise_weight);
  for (std::size_t i = 0; i < layer.experts.size(); ++i)
    add_tensors(prefix + "expert " + std::to_string(i), layer.experts[i], all);
  if (layer.has_attention()) {
    add_tensors(prefix + "attention down", layer.attention_down, all);
    add_tensors(prefix + "attention up", layer.attention_up, all);
  }
  if (layer.level == Level::task) add_tensors(prefix + "task projection", layer.task_projection, all);
  return all;
}

template <class S>
std::vector<Tensor<S>> tensors(Block<S>& block) {
  std::vector<Tensor<S>> all = tensors(block.up, "up ");
  const auto append = [&](const std::vector<Tensor<S>>& more) {
    all.insert(all.end(), more.begin(), more.end());
  };
  if (block.gated) append(tensors(block.gate_up, "gate_up "));
  append(tensors(block.down, "down "));
  return all;
}

template <class S>
Affine<S> affine_of(const Linear<S>& linear) {
  return {linear.weight(), linear.has_bias() ? linear.bias() : Vector<S>()};
}

/// The parameters, or gradients, that a library layer holds. like: the reference's layer of the same shape.
template <class Library, class S>
Layer<S> parameters_of(const Library& library, const Layer<S>& like) {
  Layer<S> layer = like;
  for (Index i = 0; i < like.num_experts(); ++i) {
    layer.experts[std::size_t(i)] = {library.weight(i), like.has_bias() ? library.bias(i) : Vector<S>()};
  }
  // A projection of a block whose router is another's has none; the reference's is unused, its gradient 0.
  const bool has_router = library.options().has_router;
  layer.gate_weight = has_router ? library.gate().weight()
                                 : Matrix<S>::Zero(like.gate_weight.rows(), like.gate_weight.cols());
  layer.noise_weight = has_router ? library.gate().noise_weight()
                                  : Matrix<S>::Zero(like.noise_weight.rows(), like.noise_weight.cols());
  if (like.level == Level::task && !has_router) {
    layer.task_projection.weight.setZero();
    layer.task_projection.bias.setZero();
  }
  if (like.level == Level::task && has_router) layer.task_projection = affine_of(library.task_projection());
  if constexpr (KindOf<Library>::value == Kind::meo) {
    if (like.has_attention()) {
      layer.attention_down = affine_of(library.token_attention().down());
      layer.attention_up = affine_of(library.token_attention().up());
    }
  }
  return layer;
}

template <class Library, class S>
Block<S> parameters_of(const Library& library, const Block<S>& like) {
  Block<S> block = like;
  block.up = parameters_of(library.up(), like.up);
  if (like.gated) block.gate_up = parameters_of(library.gate_up(), like.gate_up);
  block.down = parameters_of(library.down(), like.down);
  return block;
}

/// What a backward pass of a library layer or block gives.
template <class Parameters, class S>
struct Gradients {
  Parameters parameters;
  Matrix<S> x;
  Matrix<S> task_embeddings;
};

/// A layer, not a block.
template <class Library>
concept IsLayer = requires(const Library& library) {
  library.gate();
};

template <class Library>
using ContextOf = std::conditional_t<IsLayer<Library>, Context<typename Library::Scalar>,
                                     FeedForwardContext<typename Library::Scalar>>;

/// One forward and backward pass for the loss Σ y · cotangent + d_loss · loss. parameters: the reference's.
/// The library is given matrices amid NaN, at strides of their own.
template <class Library, class Parameters, class S>
Gradients<Parameters, S> backward(const Library& library, const Parameters& parameters, const Matrix<S>& x,
                                  const Batch<S>& batch, const Matrix<S>& cotangent, S d_loss = 1) {
  const LibraryBatch<S> library_batch(batch);
  ContextOf<Library> context;
  test::GuardedMatrix<S> guarded_x(x), y(cotangent.rows(), cotangent.cols()), dy(cotangent),
      dx(x.rows(), x.cols());
  library.forward(guarded_x.map(), library_batch.inputs(), y.map(), context);
  Library gradients(library.options());
  library.backward(guarded_x.map(), library_batch.inputs(), context, dy.map(), gradients, dx.map(), d_loss);
  if (!y.guards_intact() || !dx.guards_intact())
    throw std::logic_error("forward or backward wrote beside its matrix");
  return {parameters_of(gradients, parameters), dx.values(), context.task_embeddings_gradient()};
}

/// The derivative of f by each of `values`, by central differences.
template <class Values>
Matrix<long double> differences(Values& values, const std::function<long double()>& f) {
  constexpr double step = 1.0 / (1 << 17);
  Matrix<long double> derivative(values.rows(), values.cols());
  for (Index r = 0; r < values.rows(); ++r) {
    for (Index c = 0; c < values.cols(); ++c) {
      const double value = values(r, c);
      values(r, c) = value + step;
      const long double above_at = values(r, c), above = f();
      values(r, c) = value - step;
      const long double below_at = values(r, c), below = f();
      values(r, c) = value;
      derivative(r, c) = (above - below) / (above_at - below_at);
    }
  }
  return derivative;
}

inline long double loss_of(const Result<double>& result, const Matrix<long double>& cotangent) {
  return result.y.value.cwiseProduct(cotangent).sum() + result.gating.loss.value(0, 0);
}
inline long double loss_of(const BlockResult<double>& result, const Matrix<long double>& cotangent) {
  return result.y.value.cwiseProduct(cotangent).sum() + result.loss.value(0, 0);
}

}  // namespace meo::reference

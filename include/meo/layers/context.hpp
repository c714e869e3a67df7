#pragma once

/// Memory that a layer's forward and the backward that follows it share.

#include <vector>

#include <meo/compiled.hpp>
#include <meo/experts/aligned_vector.hpp>
#include <meo/layers/workspace.hpp>
#include <meo/mixing/memory.hpp>
#include <meo/routing/router.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

/// Gradients of what they are named after.
template <class Scalar>
struct LayerGradientMemory {
  std::vector<Scalar> weights;           ///< of each pair, in the routing's order
  AlignedVector<Scalar> attended;        ///< tokens × D
  AlignedVector<Scalar> attention_rows;  ///< tokens × ⌊D/r⌋
  AlignedVector<Scalar> scratch;         ///< of token attention
  RouterGradientWorkspace<Scalar> router;
  MixingGradientMemory<Scalar> mixing;
};

}  // namespace detail

/// What forward leaves here, backward reads: the gate's decision with its noise, means over tokens, and what
/// token attention made of x. x itself is not copied: backward is given it again. Belongs to one forward and
/// its backwards at a time; buffers grow to the largest batch seen and are kept.
///
/// A context is empty from the moment a forward begins until it finishes, so also after one that threw. It
/// knows the layer of its forward, which moves take along, but no copy of the layer, and its options, the
/// batch's sequences and, at task level, their descriptions: backward with any other throws
/// std::invalid_argument. That x and the parameters are the forward's is up to the caller.
template <class Scalar>
class Context : public Workspace<Scalar> {
 public:
  Context();
  Context(const Context&);
  Context(Context&&) noexcept;
  Context& operator=(const Context&);
  Context& operator=(Context&&) noexcept;
  ~Context();

  /// Task level: the gradient of inputs.task_embeddings, as the last backward wrote it.
  Eigen::Map<const Matrix<Scalar>> task_embeddings_gradient() const {
    return gradient_memory_.router.task_embeddings.get();
  }

  /// Between a layer and what it is made of.
  friend detail::LayerGradientMemory<Scalar>& gradient_memory_of(Context& context) {
    return context.gradient_memory_;
  }

 private:
  detail::LayerGradientMemory<Scalar> gradient_memory_;
};

template <class Scalar>
Context<Scalar>::Context() = default;
template <class Scalar>
Context<Scalar>::Context(const Context&) = default;
template <class Scalar>
Context<Scalar>::Context(Context&&) noexcept = default;
template <class Scalar>
auto Context<Scalar>::operator=(const Context&) -> Context& = default;
template <class Scalar>
auto Context<Scalar>::operator=(Context&&) noexcept -> Context& = default;
template <class Scalar>
Context<Scalar>::~Context() = default;

#define MEO_INSTANCES(instance, Scalar) instance class Context<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

#pragma once

/// Memory that a layer's forward works in.

#include <meo/experts/aligned_vector.hpp>
#include <meo/layers/forward_record.hpp>
#include <meo/mixing/memory.hpp>
#include <meo/routing/gate_input.hpp>
#include <meo/routing/router.hpp>
#include <meo/routing/routing.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

template <class Scalar>
struct LayerMemory {
  ForwardRecord last_forward;
  AlignedVector<Scalar> attention_rows;  ///< tokens × ⌊D/r⌋
  AlignedVector<Scalar> attended;        ///< tokens × D: x + TokenAttention(x)
  GateRowsMemory gate_rows;
  RouterWorkspace<Scalar> router;
  MixingMemory<Scalar> mixing;
};

}  // namespace detail

/// Belongs to one forward at a time; any layer of the scalar may use it. Buffers grow to the largest batch
/// seen and are kept, so that a forward of no larger batch allocates nothing: one of no more tokens,
/// sequences, segments, descriptions and tokens of these, and with noise only if there was some before. With
/// expert choice and with capacities, which leave out pairs, also one of no more pairs and experts of a row.
template <class Scalar>
class Workspace {
 public:
  /// What the last forward's gate decided.
  Routing<Scalar> routing;

  /// Between a layer and what it is made of.
  friend detail::LayerMemory<Scalar>& memory_of(Workspace& workspace) { return workspace.memory_; }
  friend const detail::LayerMemory<Scalar>& memory_of(const Workspace& workspace) {
    return workspace.memory_;
  }

 private:
  detail::LayerMemory<Scalar> memory_;
};

}  // namespace meo

#pragma once

/// Memory that a kernel's threads work in.

#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// A view of `threads` times as many scalars as the kernel says that a thread needs.
template <class Scalar>
struct Scratch {
  Scalar* data;
  Index threads;
};

}  // namespace meo::detail

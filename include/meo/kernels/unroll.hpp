#pragma once

/// Loops that the compiler must unroll, so that accumulators indexed by them live in registers at any -O
/// level.

#include <type_traits>
#include <utility>

#include <meo/kernels/packet.hpp>

#if defined(__GNUC__) || defined(__clang__)
#define MEO_INLINE_LAMBDA __attribute__((always_inline))
#else
#define MEO_INLINE_LAMBDA
#endif

namespace meo::detail {

/// Calls f(0), …, f(Count − 1), each with its number as a compile-time constant.
template <int Count, class Function>
MEO_INLINE void unroll(Function&& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) MEO_INLINE_LAMBDA {
    (f(std::integral_constant<int, i>{}), ...);
  }
  (std::make_integer_sequence<int, Count>{});
}

}  // namespace meo::detail

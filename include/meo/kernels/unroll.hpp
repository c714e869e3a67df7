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

/// Before a loop: repeats its body `count` times between two checks. Unlike unroll below leaves GCC's
/// accumulators in the registers that they are in.
#if defined(__clang__)
#define MEO_PRAGMA(text) _Pragma(#text)
#define MEO_UNROLL(count) MEO_PRAGMA(clang loop unroll_count(count))
#elif defined(__GNUC__)
#define MEO_PRAGMA(text) _Pragma(#text)
#define MEO_UNROLL(count) MEO_PRAGMA(GCC unroll count)
#else
#define MEO_UNROLL(count)
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

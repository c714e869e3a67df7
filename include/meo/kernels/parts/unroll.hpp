#pragma once

/// Loops that the compiler must unroll, so that accumulators indexed by their counters live in registers.
///
/// Plain loops under a pragma, and no templates that are called with every number: of those a tile would have
/// thousands, and they are what a compiler takes longest for.

#include <meo/kernels/parts/packet.hpp>

#if defined(__GNUC__) || defined(__clang__)
#define MEO_INLINE_LAMBDA __attribute__((always_inline))
#else
#define MEO_INLINE_LAMBDA
#endif

/// Before a loop: repeats its body `count` times between two checks.
#if defined(__clang__)
#define MEO_PRAGMA(text) _Pragma(#text)
#define MEO_UNROLL(count) MEO_PRAGMA(clang loop unroll_count(count))
#elif defined(__GNUC__)
#define MEO_PRAGMA(text) _Pragma(#text)
#define MEO_UNROLL(count) MEO_PRAGMA(GCC unroll count)
#else
#define MEO_UNROLL(count)
#endif

/// Before a loop of a count that is constant, at most 64: leaves no loop.
#if defined(__clang__)
#define MEO_UNROLL_ALL MEO_PRAGMA(clang loop unroll(full))
#else
#define MEO_UNROLL_ALL MEO_UNROLL(64)
#endif

#pragma once

/// Threads: OpenMP where the user compiles with it, serial otherwise.

#include <algorithm>

#include <meo/types.hpp>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace meo::inline MEO_ABI::detail {

/// Threads that the next parallel loop may use: the user's OpenMP setting; one inside somebody else's
/// parallel region.
inline Index max_threads() {
#if defined(_OPENMP)
  return omp_in_parallel() != 0 ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

/// Splits 0 … count − 1 into one contiguous range a thread and calls body(begin, end, thread) for each;
/// thread is below `threads`. The body must not throw.
template <class Body>
void parallel_ranges(Index count, Index threads, const Body& body) {
  threads = (std::min)(threads, count);
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(static_cast <int>(threads))
    {
      const Index team = omp_get_num_threads();  // OpenMP may give fewer than asked for
      const Index thread = omp_get_thread_num();
      body(count * thread / team, count * (thread + 1) / team, thread);
    }
    return;
  }
#endif
  if (count > 0) body(Index{0}, count, Index{0});
}

}  // namespace meo::detail

#pragma once

/// Threads: OpenMP where the program is compiled with it, else the one that calls.

#include <meo/types.hpp>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace transformer {

using meo::Index;

/// The most that the next parallel loop may have.
inline Index max_threads() {
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  return 1;
#endif
}

/// Divides 0 … count − 1 into a range for each thread, some of them empty, and calls body(begin, end,
/// thread); thread is below max_threads(). The body must not throw.
template <class Body>
void parallel_ranges(Index count, const Body& body) {
#if defined(_OPENMP)
#pragma omp parallel if (count > 1)
  {
    const Index threads = omp_get_num_threads(), thread = omp_get_thread_num();
    body(count * thread / threads, count * (thread + 1) / threads, thread);
  }
#else
  body(Index{0}, count, Index{0});
#endif
}

}  // namespace transformer

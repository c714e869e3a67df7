#pragma once

/// Repeats a test for several numbers of threads.

#include <meo/types.hpp>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace meo::test {

/// Calls f(threads) with OpenMP set to 1, 2, 3 and 8 threads; without OpenMP once.
template <class Function>
void with_threads(const Function& f) {
#if defined(_OPENMP)
  const int before = omp_get_max_threads();
  for (const int threads : {1, 2, 3, 8}) {
    omp_set_num_threads(threads);
    f(Index{threads});
  }
  omp_set_num_threads(before);
#else
  f(Index{1});
#endif
}

}  // namespace meo::test

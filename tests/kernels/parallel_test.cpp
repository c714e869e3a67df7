#include <algorithm>
#include <mutex>
#include <vector>

#include <meo/parallel.hpp>

#include "kernels/threads.hpp"
#include "support/catch.hpp"

namespace {
namespace parallel_test {

using namespace meo;
using namespace meo::detail;

TEST_CASE("parallel_ranges covers every index once, a range a thread, in the threads' order", "[parallel]") {
  for (const Index threads : {1, 2, 3, 8}) {
    for (const Index count : {0, 1, 2, 3, 7, 8, 9, 100}) {
      INFO(count << " on " << threads << " threads");
      std::mutex mutex;
      std::vector<Index> thread_of(std::size_t(count), -1);
      Index calls = 0;
      bool thread_in_range = true, never_twice = true;
      parallel_ranges(count, threads, [&](Index begin, Index end, Index thread) {
        const std::lock_guard lock(mutex);
        ++calls;
        thread_in_range = thread_in_range && thread >= 0 && thread < threads;
        for (Index i = begin; i < end; ++i) {
          never_twice = never_twice && thread_of[std::size_t(i)] == -1;
          thread_of[std::size_t(i)] = thread;
        }
      });
      CHECK(calls <= std::min(threads, count));
      CHECK(thread_in_range);
      CHECK(never_twice);
      CHECK(std::count(thread_of.begin(), thread_of.end(), Index{-1}) == 0);
      CHECK(std::is_sorted(thread_of.begin(), thread_of.end()));
    }
  }
}

#if defined(_OPENMP)

TEST_CASE("as many threads are used as the user asks for", "[parallel]") {
  test::with_threads([](Index threads) {
    CHECK(max_threads() == threads);
    std::mutex mutex;
    Index calls = 0;
    parallel_ranges(8, max_threads(), [&](Index, Index, Index) {
      const std::lock_guard lock(mutex);
      ++calls;
    });
    CHECK(calls == threads);
  });
}

TEST_CASE("inside somebody else's parallel region there is one thread", "[parallel]") {
  int more = 0;
#pragma omp parallel num_threads(2) reduction(+ : more)
  more += max_threads() != 1 ? 1 : 0;
  CHECK(more == 0);
}

#else

TEST_CASE("without OpenMP there is one thread", "[parallel]") { CHECK(max_threads() == 1); }

#endif

}  // namespace parallel_test
}  // namespace

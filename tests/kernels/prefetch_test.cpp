#include <algorithm>
#include <vector>

#include <meo/kernels/parts/prefetch.hpp>

#include "support/catch.hpp"

namespace {
namespace prefetch_test {

using namespace meo;
using namespace meo::detail;

constexpr Index line = PrefetchQueue::line_bytes;

/// The lines that tiles of one interval each ask for, as numbers counted from `memory`.
std::vector<Index> asked_for(PrefetchQueue queue, const char* memory) {
  std::vector<Index> asked;
  while (queue.lines() > 0 && asked.size() < 1000) {
    const char* at = queue.at();
    for (Index i = 0; i < queue.lines() && at < queue.end(); ++i, at += line) {
      asked.push_back((at - memory) / line);
    }
    queue.advance(std::min(at, queue.end()));
  }
  return asked;
}

TEST_CASE("an empty queue asks for nothing", "[prefetch]") {
  PrefetchQueue queue;
  CHECK(queue.lines() == 0);
  queue.spread(10);
  CHECK(queue.lines() == 0);
}

TEST_CASE("stretches are asked for one after another, each line once", "[prefetch]") {
  const std::vector<char> memory(32 * line);
  const char* const begin = memory.data();
  PrefetchQueue queue;
  queue.add(begin + 8 * line, 3 * line);
  queue.add(begin, 2 * line);
  queue.add(begin + 9 * line, line);       // in the queue already
  queue.add(begin + 11 * line, 2 * line);  // goes on where the first stretch ends
  queue.spread(100);
  CHECK(asked_for(queue, begin) == std::vector<Index>{8, 9, 10, 11, 12, 0, 1});
}

TEST_CASE("the rate is 1, 2, 4 or 8 lines an interval and the lowest that suffices, or but for 8",
          "[prefetch]") {
  const std::vector<char> memory(1 << 16);
  for (Index bytes = 1; bytes <= 64 * line; bytes += 21) {
    for (const Index intervals : {1, 2, 7, 40, 1000}) {
      INFO(bytes << " bytes in " << intervals << " intervals");
      PrefetchQueue all, most;
      for (PrefetchQueue* queue : {&all, &most}) queue->add(memory.data(), bytes);
      all.spread_all(intervals);
      most.spread(intervals);
      const Index lines = all.lines();
      CHECK((lines == 1 || lines == 2 || lines == 4 || lines == 8));
      if (lines < 8) CHECK(lines * line * intervals >= bytes);
      CHECK(lines / 2 * line * intervals < bytes);
      const bool is_slower = lines == 8 && 8 * line * intervals >= bytes;
      CHECK(most.lines() == (is_slower ? 4 : lines));
    }
  }
}

TEST_CASE("no intervals to prefetch in are no division by zero", "[prefetch]") {
  PrefetchQueue queue;
  const char byte = 0;
  queue.add(&byte, 1);
  queue.spread(0);
  CHECK(queue.lines() <= PrefetchQueue::max_lines);
}

TEST_CASE("what no rate suffices for is asked for in bursts, and nothing else is", "[prefetch]") {
  const std::vector<char> memory(100 * line);
  PrefetchQueue short_tiles, long_tiles;
  for (PrefetchQueue* queue : {&short_tiles, &long_tiles}) queue->add(memory.data(), 100 * line);
  short_tiles.spread(12, 4);  // 96 lines at most
  long_tiles.spread(13, 4);
  CHECK(short_tiles.lines() == 0);
  CHECK(long_tiles.lines() > 0);
  for (Index burst = 0; burst < 4; ++burst) {
    CHECK(short_tiles.at() == memory.data() + 26 * burst * line);
    CHECK(long_tiles.at() == memory.data());
    short_tiles.burst();
    long_tiles.burst();
  }
  CHECK(short_tiles.at() == nullptr);  // all are asked for
}

TEST_CASE("what no longer fits the queue is left out", "[prefetch]") {
  const std::vector<char> memory(200 * line);
  PrefetchQueue queue;
  for (Index i = 0; i < 100; ++i) queue.add(memory.data() + 2 * i * line, line);
  queue.spread(1000);
  const std::vector<Index> asked = asked_for(queue, memory.data());
  REQUIRE(asked.size() == 64);
  for (std::size_t i = 0; i < asked.size(); ++i) CHECK(asked[i] == 2 * Index(i));
}

}  // namespace prefetch_test
}  // namespace

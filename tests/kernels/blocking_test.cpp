#include <meo/kernels/blocking.hpp>

#include "kernels/l2_size.hpp"
#include "support/catch.hpp"

namespace {

using namespace meo;
using namespace meo::detail;
using namespace meo::test;

TEMPLATE_TEST_CASE("merged panels fill half of L2, at most 1 MiB, and not a row more", "[blocking]", float,
                   double, long double) {
  using S = TestType;
  const Index row_bytes = Tile<S>::columns * Index(sizeof(S));
  for (const Index l2 : {1 << 10, 100'000, 1 << 20, 1 << 30}) {
    const L2Size l2_size(l2);
    const Index budget = std::min(l2, max_scratch_bytes) / 2;
    for (const Index depth : {1, 2, 77, 768, 100'000}) {
      for (const Index merges : {0, 1, 2, 9, 1000}) {
        INFO("L2 " << l2 << ", depth " << depth << ", merges " << merges);
        const MergeBlocks blocks = merge_blocks<S>(depth, merges);
        REQUIRE(blocks.depth >= 1);
        REQUIRE(blocks.depth <= depth);
        REQUIRE(blocks.merges >= 1);
        REQUIRE(blocks.merges <= std::max<Index>(merges, 1));
        CHECK(blocks.merges * blocks.depth * row_bytes <= budget);
        if (blocks.depth < depth) CHECK((blocks.depth + 1) * row_bytes > budget);
        if (blocks.merges < merges) CHECK((blocks.merges + 1) * blocks.depth * row_bytes > budget);
      }
    }
  }
}

TEMPLATE_TEST_CASE("without any cache a merge still goes row by row", "[blocking]", float, double,
                   long double) {
  const L2Size l2_size(0);
  const MergeBlocks blocks = merge_blocks<TestType>(7, 3);
  CHECK(blocks.depth == 1);
  CHECK(blocks.merges == 1);
}

TEMPLATE_TEST_CASE("strips of all experts fit half of a small L1", "[blocking]", float, double, long double) {
  using S = TestType;
  const Index row_bytes = Tile<S>::columns * Index(sizeof(S));
  for (const Index top_k : {1, 2, 3, 8, 32, 100'000}) {
    const Index rows = merge_strip_rows<S>(top_k);
    CHECK(rows >= 4);
    if (rows > 4) CHECK(rows * row_bytes * top_k <= 1 << 14);
    CHECK((rows + 1) * row_bytes * top_k > 1 << 14);
  }
}

}  // namespace

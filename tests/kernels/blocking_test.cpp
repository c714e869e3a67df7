#include <algorithm>
#include <vector>

#include <meo/kernels/parts/blocking.hpp>

#include "support/catch.hpp"

namespace {

using namespace meo;
using namespace meo::detail;

TEMPLATE_TEST_CASE("merged panels fit the scratch, whatever the problem", "[blocking]", float, double,
                   long double) {
  using S = TestType;
  const Index row_bytes = Tile<S>::columns * Index(sizeof(S));
  for (const Index depth : {1, 2, 77, 768, 769, 1024, 1025, 3072, 100'000}) {
    for (const Index merges : {0, 1, 2, 9, 16, 17, 1000}) {
      for (const Index tokens : {0, 1, 16, 128, 100'000}) {
        INFO("depth " << depth << ", merges " << merges << ", tokens " << tokens);
        const MergeBlocks blocks = merge_blocks<S>(depth, merges, tokens);
        REQUIRE(blocks.depth >= 1);
        REQUIRE(blocks.depth <= std::min(depth, Blocks{}.depth));
        REQUIRE(blocks.merges >= 1);
        REQUIRE(blocks.merges <= std::max<Index>(merges, 1));
        REQUIRE(blocks.tokens >= 1);
        CHECK(blocks.panels * blocks.merges * padded_rows<S>(blocks.depth) * row_bytes <= max_scratch_bytes);
        CHECK(blocks.tokens * blocks.depth * Index(sizeof(S)) <= 2 * Blocks{}.activation_bytes);
        if (blocks.tokens < tokens)
          CHECK(blocks.tokens * blocks.depth * Index(sizeof(S)) <= Blocks{}.activation_bytes);
        const bool has_tiles = tokens >= Tile<S>::rows * std::max<Index>(merges, 1);
        const Index panel_bytes = padded_rows<S>(blocks.depth) * row_bytes;
        CHECK(blocks.merges == std::min(std::max<Index>(merges, 1),
                                        std::min(Blocks{}.merges, max_scratch_bytes / panel_bytes)));
        CHECK(blocks.panels ==
              (has_tiles ? 1 : std::min<Index>(4, max_scratch_bytes / (blocks.merges * panel_bytes))));
      }
    }
  }
}

TEMPLATE_TEST_CASE("a dense product's activations fit the cache that they are for", "[blocking]", float,
                   double) {
  using S = TestType;
  for (const Index depth : {0, 1, 768, 1024, 1025, 100'000}) {
    for (const Index rows : {0, 1, 128, 1'000'000}) {
      INFO("depth " << depth << ", rows " << rows);
      const DenseBlocks blocks = dense_blocks<S>(depth, rows);
      CHECK(blocks.depth >= 1);
      CHECK(blocks.depth <= std::min(std::max<Index>(depth, 1), Blocks{}.depth));
      CHECK(blocks.rows >= 1);
      CHECK(blocks.rows <= std::max<Index>(rows, 1));
      CHECK(blocks.rows * blocks.depth * Index(sizeof(S)) <= 2 * Blocks{}.activation_bytes);
    }
  }
}

TEST_CASE("parts are as equal as may be and none is beyond the limit", "[blocking]") {
  CHECK(even_part(0, 3) == 0);
  for (Index size = 1; size <= 50; ++size) {
    for (Index limit = 1; limit <= 60; ++limit) {
      INFO("size " << size << ", limit " << limit);
      const Index part = even_part(size, limit);
      const Index parts = (size + limit - 1) / limit;
      CHECK(part <= limit);
      CHECK(part * parts >= size);       // so many are enough
      CHECK((part - 1) * parts < size);  // and with less they would not be
    }
  }
}

TEMPLATE_TEST_CASE("strips fit the cache that they are for", "[blocking]", float, double, long double) {
  using S = TestType;
  const Index row_bytes = Tile<S>::columns * Index(sizeof(S));
  for (const Index top_k : {1, 2, 3, 8, 32, 100'000}) {
    const Index rows = merge_strip_rows<S>(top_k);
    CHECK(rows >= 4);
    if (rows > 4) CHECK(rows * row_bytes * top_k <= 1 << 14);
    CHECK((rows + 1) * row_bytes * top_k > 1 << 14);
  }
  for (const Index merges : {1, 2, 16}) {
    const Index rows = group_strip_rows<S>(8, merges);
    CHECK(rows * row_bytes * (8 + merges) <= 3 << 16);
    CHECK((rows + 1) * row_bytes * (8 + merges) > 3 << 16);
  }
}

}  // namespace

#include <algorithm>
#include <vector>

#include <meo/kernels/parts/blocking.hpp>

#include "support/catch.hpp"

namespace {
namespace blocking_test {

using namespace meo;
using namespace meo::detail;

TEMPLATE_TEST_CASE("what a merged product keeps fits the caches that it is for, whatever the problem",
                   "[blocking]", float, double, long double) {
  using S = TestType;
  constexpr Index row_bytes = Tile<S>::columns * Index(sizeof(S));
  for (const Blocks& limits : {Blocks{}, machine_blocks()}) {
    for (const Index in_features : {1, 2, 77, 768, 769, 1024, 1025, 3072, 100'000}) {
      for (const Index merges : {0, 1, 2, 9, 16, 17, 1000}) {
        for (const Index tokens : {0, 1, 16, 128, 1281, 100'000}) {
          INFO(in_features << " inputs, " << merges << " merges, " << tokens << " tokens");
          const MergeBlocks blocks = merge_blocks<S>(in_features, merges, tokens, limits);
          REQUIRE(blocks.inputs >= 1);
          CHECK(blocks.inputs <= in_features);
          CHECK((blocks.inputs == in_features || blocks.inputs % line_size<S> == 0));
          if (merges > 1) CHECK(blocks.inputs * row_bytes <= limits.slice_bytes);
          else CHECK(blocks.inputs <= limits.depth);
          CHECK(blocks.tokens >= 1);
          CHECK(blocks.tokens <= std::max<Index>(tokens, 1));
          CHECK(blocks.tokens <= limits.merged_tokens);
          CHECK(blocks.group >= 1);
          CHECK(blocks.group * blocks.tokens * row_bytes <= limits.sums_bytes);
          CHECK(blocks.merges >= 1);
          CHECK(blocks.merges <= std::min(std::max<Index>(merges, 1), limits.merges));
          CHECK(blocks.panels >= 1);
          CHECK(blocks.panels <= blocks.group);
          if (merges > 1)
            CHECK(blocks.panels * blocks.merges * merged_rows<S>(blocks.inputs) * row_bytes <=
                  limits.merged_bytes);
          const bool has_tiles = tokens >= Tile<S>::rows * std::max<Index>(merges, 1);
          if (has_tiles) CHECK(blocks.panels == 1);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("few rows take as many panels at once as fit", "[blocking]", float, double) {
  using S = TestType;
  CHECK(merge_blocks<S>(100, 1, 1, Blocks{}).panels == 4);
  CHECK(merge_blocks<S>(768, 1, Tile<S>::rows, Blocks{}).panels == 1);
}

TEMPLATE_TEST_CASE("a scalar beyond every limit is one of a thing", "[blocking]", float, double) {
  using S = TestType;
  Blocks limits;
  limits.slice_bytes = limits.merged_bytes = limits.sums_bytes = limits.activation_bytes = 1;
  const MergeBlocks blocks = merge_blocks<S>(100, 10, 100, limits);
  CHECK(blocks.inputs == 1);
  CHECK(blocks.tokens == 1);
  CHECK(blocks.merges == 1);
  CHECK(blocks.panels == 1);
  CHECK(blocks.group == 1);
}

TEST_CASE("blocks are made for the caches that Eigen is told of", "[blocking]") {
  const std::ptrdiff_t l1 = Eigen::l1CacheSize(), l2 = Eigen::l2CacheSize(), l3 = Eigen::l3CacheSize();
  Eigen::setCpuCacheSizes(1 << 16, 1 << 21, 1 << 25);
  const Blocks blocks = machine_blocks();
  Eigen::setCpuCacheSizes(1, 1, 1);  // nonsense is bounded
  const Blocks least = machine_blocks();
  Eigen::setCpuCacheSizes(l1, l2, l3);
  CHECK(blocks.slice_bytes == 1 << 15);
  CHECK(blocks.merged_bytes == 1 << 18);
  CHECK(blocks.sums_bytes == 1 << 19);
  CHECK(blocks.activation_bytes == 5 << 17);
  CHECK(least.slice_bytes == 1 << 13);
  CHECK(least.sums_bytes == 1 << 16);
  CHECK(machine_blocks().slice_bytes == std::clamp<Index>(l1, 1 << 14, 1 << 17) / 2);
}

TEMPLATE_TEST_CASE("a dense product's activations fit the cache that they are for", "[blocking]", float,
                   double) {
  using S = TestType;
  const Blocks limits;
  for (const Index depth : {0, 1, 768, 1024, 1025, 100'000}) {
    for (const Index rows : {0, 1, 128, 1'000'000}) {
      INFO("depth " << depth << ", rows " << rows);
      const DenseBlocks blocks = dense_blocks<S>(depth, rows, limits);
      CHECK(blocks.depth >= 1);
      CHECK(blocks.depth <= std::min(std::max<Index>(depth, 1), limits.depth));
      CHECK(blocks.rows >= 1);
      CHECK(blocks.rows <= std::max<Index>(rows, 1));
      if (blocks.rows > limits.dense_rows)
        CHECK(blocks.rows * blocks.depth * Index(sizeof(S)) <= limits.activation_bytes);
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
    const Index rows = merge_strip_rows<S>(top_k, Blocks{});
    CHECK(rows >= 4);
    if (rows > 4) CHECK(rows * row_bytes * top_k <= 1 << 14);
    CHECK((rows + 1) * row_bytes * top_k > 1 << 14);
  }
  for (const Index merges : {1, 2, 16}) {
    const Index rows = group_strip_rows<S>(8, merges, Blocks{});
    CHECK(rows * row_bytes * (8 + merges) <= 3 << 16);
    CHECK((rows + 1) * row_bytes * (8 + merges) > 3 << 16);
  }
}

}  // namespace blocking_test
}  // namespace

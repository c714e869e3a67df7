// Merging experts first or combining their outputs: what decides, and that results do not depend on it.

#include <cstdint>
#include <limits>
#include <vector>

#include <meo/layers/meo_layer.hpp>
#include <meo/mixing/merge_order.hpp>

#include "reference/library.hpp"
#include "reference/random_layer.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace merge_order_test {

using namespace meo;
using namespace meo::test;
using reference::Mode;

template <class S>
Index fewest(Level level, Index top_k) {
  return fewest_tokens_to_merge<S>(MergeOrder::automatic, level, top_k);
}

TEMPLATE_TEST_CASE("experts are merged where K products cost more than the merge and one", "[merge_order]",
                   float, double, long double) {
  using S = TestType;
  const Index caches = detail::PacketOf<S>::size * Index(sizeof(S)) / 4;
  for (const Level level : {Level::token, Level::sequence}) {
    for (Index top_k = 2; top_k <= 40; ++top_k) {
      for (Index tokens = 1; tokens <= 40; ++tokens) {
        INFO("K " << top_k << ", T " << tokens);
        CHECK((tokens >= fewest<S>(level, top_k)) == (caches + tokens <= top_k * tokens));
      }
    }
  }
}

/// As small as a scalar may be that has no packets.
struct TwoBytes {
  std::uint16_t bits;
};

TEST_CASE("nothing is merged for a sequence without tokens, however small the scalar", "[merge_order]") {
  CHECK(detail::merge_cost_of_caches<TwoBytes> == 1);
  for (const Index top_k : {1, 2, 3, 9}) CHECK(fewest<TwoBytes>(Level::sequence, top_k) == 1);
}

TEST_CASE("one expert and a task's experts are never combined unless that is asked for", "[merge_order]") {
  CHECK(fewest<float>(Level::sequence, 1) == 1);
  CHECK(fewest<float>(Level::task, 2) == 1);
  for (const Level level : all_levels) {
    for (const Index top_k : {1, 2, 9}) {
      CHECK(fewest_tokens_to_merge<float>(MergeOrder::merge_first, level, top_k) == 1);
      CHECK(fewest_tokens_to_merge<float>(MergeOrder::combine_outputs, level, top_k) ==
            std::numeric_limits<Index>::max());
    }
  }
}

TEMPLATE_TEST_CASE("each sequence has the bits of the order that its own length chooses", "[merge_order]",
                   (MeoLayer<float>), (MeoLayer<double>)) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    for (const Index top_k : {1, 2, 4}) {
      Generator rng(71);
      const auto layer = reference::random_parameters<TestType>(small_layer(level, 40, 37, top_k), rng);
      const std::vector<Index> lengths{20, 1, 0, 2, 17, 3, 15, 1, 16};
      const auto input = reference::random_input(layer, lengths, Mode::inference, rng);
      const reference::LibraryBatch<S> batch(input.batch);
      const auto output = [&](MergeOrder order) {
        return reference::library_layer<TestType>(layer, order).forward(input.x, batch.inputs()).y;
      };
      const Matrix<S> automatic = output(MergeOrder::automatic), merged = output(MergeOrder::merge_first),
                      combined = output(MergeOrder::combine_outputs);
      for (Index b = 0; b < Index(lengths.size()); ++b) {
        INFO(to_string(level) << " level, K " << top_k << ", sequence " << b);
        const reference::Rows rows = input.batch.sequence(b);
        const bool merges = rows.count() >= fewest<S>(level, top_k);
        CHECK(bit_difference(automatic.middleRows(rows.begin, rows.count()),
                             (merges ? merged : combined).middleRows(rows.begin, rows.count()).eval()) == "");
      }
      CHECK((bit_difference(merged, combined) == "") == (top_k == 1));
    }
  }
}

}  // namespace merge_order_test
}  // namespace

#include <array>
#include <cmath>
#include <cstdint>

#include <meo/flops.hpp>

#include "support/catch.hpp"

namespace {
namespace flops_test {

using meo::Convention;
using meo::flops;
using meo::Index;
using meo::LayerFlops;
using meo::LayerShape;
using meo::Level;
using meo::Method;
using meo::ModelFlops;
using meo::ModelShape;

// Sizes whose products are all different, so that a wrong factor cannot hide.
constexpr LayerShape shape(Level level) {
  return {.in_features = 96,
          .out_features = 160,
          .num_experts = 7,
          .top_k = 3,
          .level = level,
          .tokens = 50,
          .sequences = 4,
          .bias = false,
          .reduce_factor = 32,
          .task_features = 70};
}

constexpr LayerShape with_bias(LayerShape layer) {
  layer.bias = true;
  return layer;
}

constexpr LayerShape with_noise(LayerShape layer) {
  layer.noise = true;
  return layer;
}

constexpr LayerShape with_merges(LayerShape layer, Index merges) {
  layer.merges = merges;
  return layer;
}

constexpr LayerShape with_reduce_factor(LayerShape layer, Index reduce_factor) {
  layer.reduce_factor = reduce_factor;
  return layer;
}

// The counts hold at compile time: each item as the number of multiply-adds, times two.
constexpr std::int64_t parameters = 96 * 160;

static_assert(flops(Method::dense, shape(Level::token)) == LayerFlops{.product = 2 * 50 * parameters});
static_assert(flops(Method::dense, shape(Level::task)) == LayerFlops{.product = 2 * 50 * parameters});

static_assert(flops(Method::moe, shape(Level::token)) == LayerFlops{.gate = 2 * 50 * 96 * 7,
                                                                    .product = 2 * 3 * 50 * parameters,
                                                                    .combine = 2 * 3 * 160 * 50});
static_assert(flops(Method::moe, shape(Level::sequence)) == LayerFlops{.gate = 2 * 4 * 96 * 7,
                                                                       .product = 2 * 3 * 50 * parameters,
                                                                       .combine = 2 * 3 * 160 * 50});
static_assert(flops(Method::moe, shape(Level::task)) == LayerFlops{.gate = 2 * 4 * (70 / 32) * 7,
                                                                   .task_projection = 2 * 4 * 70 * (70 / 32),
                                                                   .product = 2 * 3 * 50 * parameters,
                                                                   .combine = 2 * 3 * 160 * 50});

static_assert(flops(Method::meo, shape(Level::token)) == LayerFlops{.gate = 2 * 4 * 96 * 7,
                                                                    .token_attention = 2 * 50 * (2 * 96 * 3),
                                                                    .merge = 2 * 4 * 3 * parameters,
                                                                    .product = 2 * 50 * parameters});
static_assert(flops(Method::meo, shape(Level::sequence)) == LayerFlops{.gate = 2 * 4 * 96 * 7,
                                                                       .merge = 2 * 4 * 3 * parameters,
                                                                       .product = 2 * 50 * parameters});
static_assert(flops(Method::meo, shape(Level::task)) == LayerFlops{.gate = 2 * 4 * (70 / 32) * 7,
                                                                   .task_projection = 2 * 4 * 70 * (70 / 32),
                                                                   .merge = 2 * 4 * 3 * parameters,
                                                                   .product = 2 * 50 * parameters});

constexpr std::array<Method, 3> methods{Method::dense, Method::moe, Method::meo};
constexpr std::array<Level, 3> levels{Level::token, Level::sequence, Level::task};

// The paper's figure "GFLOPs against the number of selected experts", read off the picture to about 0.7 %.
struct Curve {
  ModelShape model;
  Method method;
  std::array<double, 6> gflops;  // K = 1, 2, 4, 8, 16, 32
};
constexpr std::array<Curve, 6> figure{{
    {meo::bert_small, Method::moe, {7.38, 9.54, 13.83, 22.45, 39.65, 74.10}},
    {meo::bert_small, Method::meo, {7.38, 7.44, 7.45, 7.47, 7.54, 7.69}},
    {meo::bert_base, Method::moe, {28.53, 42.85, 71.7, 129.05, 244.03, 473.53}},
    {meo::bert_base, Method::meo, {28.4, 28.6, 28.8, 29.1, 29.5, 30.4}},
    {meo::bert_large, Method::moe, {87.15, 138.48, 241.75, 448.6, 860.3, 1685.2}},
    {meo::bert_large, Method::meo, {87.15, 87.77, 88.18, 89.02, 90.71, 93.74}},
}};

double deviation(const ModelFlops& count, double expected_gflops) {
  return std::abs(static_cast<double>(count.total()) * 1e-9 / expected_gflops - 1);
}

TEST_CASE("flops: a layer's total is the sum of its items", "[flops]") {
  constexpr LayerFlops count{.gate = 1,
                             .token_attention = 10,
                             .task_projection = 100,
                             .merge = 1000,
                             .product = 10000,
                             .combine = 100000};
  CHECK(count.total() == 111111);
}

TEST_CASE("flops: noise doubles the gate and nothing else", "[flops]") {
  for (const Level level : levels) {
    for (const Method method : {Method::moe, Method::meo}) {
      LayerFlops expected = flops(method, shape(level));
      expected.gate *= 2;
      CHECK((flops(method, with_noise(shape(level))) == expected));
    }
    CHECK((flops(Method::dense, with_noise(shape(level))) == flops(Method::dense, shape(level))));
  }
}

TEST_CASE("flops: a bias is merged, and free in every product", "[flops]") {
  for (const Level level : levels) {
    LayerFlops merged = flops(Method::meo, shape(level));
    merged.merge += 2 * 4 * 3 * 160;
    CHECK((flops(Method::meo, with_bias(shape(level))) == merged));
    for (const Method method : {Method::dense, Method::moe})
      CHECK((flops(method, with_bias(shape(level))) == flops(method, shape(level))));
  }
}

TEST_CASE("flops: one expert is not merged, but in the paper's figure", "[flops]") {
  for (const Level level : levels) {
    LayerShape layer = with_bias(shape(level));
    layer.top_k = 1;
    const LayerFlops used_in_place = flops(Method::meo, with_merges(layer, 0));
    CHECK(used_in_place.merge == 0);
    CHECK((flops(Method::meo, layer) == used_in_place));
    LayerFlops in_figure = used_in_place;
    in_figure.merge = 4 * (parameters + 160);
    CHECK((flops(Method::meo, layer, Convention::paper) == in_figure));
    CHECK((flops(Method::meo, with_merges(layer, 0), Convention::paper) == used_in_place));
    CHECK(flops(Method::meo, with_merges(layer, 1)).merge == 2 * (parameters + 160));
  }
}

TEST_CASE("flops: sequences that share a task share a merge", "[flops]") {
  const LayerFlops alone = flops(Method::meo, shape(Level::task));
  LayerFlops shared = alone;
  shared.merge = 2 * 1 * 3 * parameters;
  CHECK((flops(Method::meo, with_merges(shape(Level::task), 1)) == shared));
  CHECK((flops(Method::meo, with_merges(shape(Level::task), 4)) == alone));
  CHECK(flops(Method::meo, with_merges(shape(Level::task), 0)).merge == 0);
  CHECK((flops(Method::moe, with_merges(shape(Level::task), 1)) == flops(Method::moe, shape(Level::task))));
}

TEST_CASE("flops: an assignment says all of the experts, at compile time too", "[flops]") {
  constexpr meo::AssignmentShape assignment{.merged_experts = 5, .products = 40, .combined_outputs = 7};
  constexpr LayerFlops expected{.gate = 2 * 4 * 96 * 7,
                                .merge = 2 * 5 * (parameters + 160),
                                .product = 2 * 40 * parameters,
                                .combine = 2 * 7 * 160};
  STATIC_REQUIRE(flops(Method::meo, with_bias(shape(Level::sequence)), assignment) == expected);
  LayerFlops other = expected;
  other.merge /= 2;
  CHECK((flops(Method::meo, with_bias(shape(Level::sequence)), assignment, Convention::paper) == other));
}

TEST_CASE("flops: without a router there is neither a gate nor a task projection", "[flops]") {
  for (const Level level : levels) {
    for (const Method method : {Method::moe, Method::meo}) {
      LayerShape layer = with_noise(shape(level));
      LayerFlops expected = flops(method, layer);
      CHECK(expected.gate > 0);
      expected.gate = expected.task_projection = 0;
      layer.has_router = false;
      CHECK((flops(method, layer) == expected));
    }
  }
}

TEST_CASE("flops: combined tokens cost what MoE's do", "[flops]") {
  LayerShape layer = with_merges(shape(Level::sequence), 3);
  layer.combined_tokens = 20;
  LayerFlops expected = flops(Method::meo, shape(Level::sequence));
  expected.merge = 2 * 3 * 3 * parameters;
  expected.product = 2 * (30 + 3 * 20) * parameters;
  expected.combine = 2 * 3 * 160 * 20;
  CHECK((flops(Method::meo, layer) == expected));
  layer.merges = 0;
  layer.combined_tokens = 50;
  CHECK((flops(Method::meo, layer) == flops(Method::moe, shape(Level::sequence))));
}

TEST_CASE("flops: token attention and task projection have at least one row", "[flops]") {
  CHECK(flops(Method::meo, with_reduce_factor(shape(Level::token), 97)).token_attention == 4 * 50 * 96);
  for (const Method method : {Method::moe, Method::meo}) {
    const LayerFlops count = flops(method, with_reduce_factor(shape(Level::task), 71));
    CHECK(count.task_projection == 2 * 4 * 70);
    CHECK(count.gate == 2 * 4 * 7);
  }
}

TEST_CASE("flops: the paper's convention halves the merge and nothing else", "[flops]") {
  for (const Level level : levels) {
    for (const Method method : methods) {
      LayerFlops expected = flops(method, with_bias(shape(level)), Convention::exact);
      CHECK((flops(method, with_bias(shape(level))) == expected));
      expected.merge /= 2;
      CHECK((flops(method, with_bias(shape(level)), Convention::paper) == expected));
    }
  }
}

TEST_CASE("flops: no tokens and no sequences cost nothing", "[flops]") {
  for (const Level level : levels) {
    LayerShape empty = shape(level);
    empty.tokens = 0;
    empty.sequences = 0;
    for (const Method method : methods) CHECK(flops(method, empty).total() == 0);
  }
}

TEST_CASE("flops: counts beyond 32 bits are exact", "[flops]") {
  constexpr LayerShape layer{.in_features = 16384,
                             .out_features = 53248,
                             .num_experts = 256,
                             .top_k = 64,
                             .level = Level::token,
                             .tokens = 1 << 20};
  CHECK(flops(Method::moe, layer).product == 117093590311632896);
  CHECK(flops(Method::moe, layer).combine == 7146825580544);
}

TEST_CASE("flops: a model's items are the specified terms", "[flops]") {
  constexpr ModelShape model{
      .layers = 3, .features = 5, .hidden_features = 7, .vocabulary = 11, .tokens = 13};
  constexpr ModelFlops dense{.attention_projections = 8 * 3 * 5 * 5 * 13,
                             .attention_scores = 4 * 3 * 13 * 13 * 5,
                             .language_model_head = 2 * 13 * (11 * 5 + 5 * 5),
                             .feed_forward = 4 * 3 * 5 * 7 * 13};
  STATIC_REQUIRE(flops(Method::dense, model, 2) == dense);
  STATIC_REQUIRE(dense.total() == 7800 + 10140 + 2080 + 5460);

  ModelFlops expected = dense;
  expected.feed_forward *= 2;
  CHECK((flops(Method::moe, model, 2) == expected));
  CHECK((flops(Method::moe, model, 2, Convention::paper) == expected));

  expected = dense;
  expected.merge = 2 * 2 * 3 * 2 * 5 * 7;
  CHECK((flops(Method::meo, model, 2) == expected));
  CHECK(flops(Method::meo, model, 2).total() == dense.total() + expected.merge);
  expected.merge /= 2;
  CHECK((flops(Method::meo, model, 2, Convention::paper) == expected));
}

TEST_CASE("flops: a model's feed-forward items are those of its layers", "[flops]") {
  const ModelShape model = meo::bert_base;
  const auto layer = [&](Index in_features, Index out_features) {
    return LayerShape{.in_features = in_features,
                      .out_features = out_features,
                      .num_experts = 32,
                      .top_k = 4,
                      .tokens = model.tokens,
                      .bias = false};
  };
  for (const Method method : methods) {
    for (const Convention convention : {Convention::exact, Convention::paper}) {
      const LayerFlops up = flops(method, layer(model.features, model.hidden_features), convention);
      const LayerFlops down = flops(method, layer(model.hidden_features, model.features), convention);
      const ModelFlops whole = flops(method, model, 4, convention);
      CHECK(whole.feed_forward == model.layers * (up.product + down.product));
      CHECK(whole.merge == model.layers * (up.merge + down.merge));
    }
  }
}

TEST_CASE("flops: the paper's headline for BERT-Base and four selected experts", "[flops]") {
  CHECK(deviation(flops(Method::moe, meo::bert_base, 4), 72.0) < 0.0005);
  CHECK(deviation(flops(Method::meo, meo::bert_base, 4, Convention::exact), 28.95) < 0.0005);
  CHECK(deviation(flops(Method::meo, meo::bert_base, 4, Convention::paper), 28.6) < 0.01);
}

TEST_CASE("flops: all 36 points of the paper's figure within one per cent", "[flops]") {
  for (const Curve& curve : figure) {
    Index top_k = 1;
    for (const double expected : curve.gflops) {
      CAPTURE(curve.model.features, static_cast<int>(curve.method), top_k, expected);
      CHECK(deviation(flops(curve.method, curve.model, top_k, Convention::paper), expected) < 0.01);
      top_k *= 2;
    }
  }
}

}  // namespace flops_test
}  // namespace

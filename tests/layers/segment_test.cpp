// Segment level: a gate decides for a segment of a sequence by the segment before it, so that no output
// depends on a later segment.

#include <stdexcept>
#include <utility>
#include <vector>

#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/routing/balance_loss.hpp>
#include <meo/training/parameters.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace {
namespace segment_test {

using namespace meo;
using namespace meo::test;

using S = double;

constexpr Index features = 6, out_features = 5, segment_tokens = 3;

/// Whole segments and parts of one, one segment alone, and none.
const std::vector<Index> lengths{7, 0, 3, 1, 9};
/// By hand, of the lengths above: the tokens of each segment, and of the segment that its gate sees.
const std::vector<Index> segments{3, 3, 1, 3, 1, 3, 3, 3};
const std::vector<std::pair<Index, Index>> seen{{0, 3},  {0, 3},  {3, 3},  {7, 3},
                                                {10, 1}, {11, 3}, {11, 3}, {14, 3}};
const std::vector<bool> is_first{true, false, false, true, true, true, false, false};

LayerOptions segment_layer() {
  return {.in_features = features,
          .out_features = out_features,
          .num_experts = 4,
          .top_k = 2,
          .routing = {.level = Level::segment, .segment_tokens = segment_tokens, .loss_coefficient = 0.5}};
}

FeedForwardOptions segment_block(bool shared_gate) {
  return {.features = features,
          .hidden_features = 8,
          .num_experts = 4,
          .top_k = 2,
          .gated = true,
          .shared_gate = shared_gate,
          .routing = {.level = Level::segment, .segment_tokens = segment_tokens}};
}

template <class Layer>
Layer random_layer(const LayerOptions& options, Generator& rng) {
  Layer layer(options);
  layer.initialize(rng);
  layer.gate().set_weight(random_normal<S>(rng, features, 4));
  layer.gate().set_noise_weight(random_normal<S>(rng, features, 4));
  return layer;
}

TEMPLATE_TEST_CASE("a segment is decided on by the one before it, the first by itself", "[segment]",
                   MoeLayer<S>, (MeoLayer<S, 4>)) {
  Generator rng(71);
  TestType layer = random_layer<TestType>(segment_layer(), rng);
  LayerOptions by_sequence = segment_layer();
  by_sequence.routing.level = Level::sequence;
  TestType plain(by_sequence);
  copy_values<S>(parameters(layer), parameters(plain));

  const Sequences batch = Sequences::from_lengths(lengths);
  const Matrix<S> x = random_normal<S>(rng, batch.tokens(), features);
  const Matrix<S> noise = random_normal<S>(rng, Index(segments.size()), 4);
  CHECK(layer.gated_rows(batch.offsets()) == Index(segments.size()));

  // The decisions of as many sequences as there are segments, each with the tokens that are seen.
  std::vector<Index> seen_lengths;
  for (const auto& [first, count] : seen) seen_lengths.push_back(count);
  const Sequences seen_batch = Sequences::from_lengths(seen_lengths);
  Matrix<S> seen_x(seen_batch.tokens(), features);
  for (std::size_t s = 0; s < seen.size(); ++s)
    seen_x.middleRows(seen_batch.begin(Index(s)), seen[s].second) =
        x.middleRows(seen[s].first, seen[s].second);
  Workspace<S> workspace, plain_workspace;
  const Routing<S>& expected =
      plain.route(seen_x, {.sequences = &seen_batch, .noise = Noise<S>(noise)}, plain_workspace);
  Matrix<S> y(x.rows(), out_features);
  const Routing<S>& routing = layer.forward(x, {.sequences = &batch, .noise = Noise<S>(noise)}, y, workspace);
  CHECK(routing.experts == expected.experts);
  CHECK(routing.weights == expected.weights);
  CHECK(routing.load == expected.load);
  CHECK(routing.loss == expected.loss);

  // And the outputs of as many sequences as there are segments with these decisions.
  const Sequences segment_batch = Sequences::from_lengths(segments);
  Matrix<S> expected_y(x.rows(), out_features);
  plain.forward_routed(x, {.sequences = &segment_batch}, expected, expected_y, plain_workspace);
  CHECK(bit_difference(y, expected_y) == "");
}

/// Changes each token in turn. Of the outputs of its own sequence, those of segments up to its own stay as
/// they were, to the bit, but for its own; unless it is in the first segment, which its decision may change.
/// Those of other sequences stay all.
template <class Forward>
void check_causality(const Matrix<S>& x, const Forward& forward) {
  const Sequences batch = Sequences::from_lengths(lengths);
  const Matrix<S> y = forward(x, batch);
  for (Index b = 0; b < batch.size(); ++b) {
    for (Index t = 0; t < batch.length(b); ++t) {
      Matrix<S> changed = x;
      changed.row(batch.begin(b) + t) *= S(-3);
      const Matrix<S> after = forward(changed, batch);
      const Index segment = t / segment_tokens, end = (segment + 1) * segment_tokens;
      for (Index other = 0; other < y.rows(); ++other) {
        const Index place = other - batch.begin(b);
        const bool is_of_sequence = place >= 0 && place < batch.length(b);
        const bool may_change = is_of_sequence && (place == t || place >= end || segment == 0);
        INFO("token " << t << " of sequence " << b << ", output " << other);
        if (!may_change) CHECK(bit_difference(after.row(other), y.row(other)) == "");
        if (is_of_sequence && place == t) CHECK(bit_difference(after.row(other), y.row(other)) != "");
      }
    }
  }
}

TEMPLATE_TEST_CASE("no output depends on a later segment, to the bit", "[segment]", MoeLayer<S>,
                   MeoLayer<S>) {
  Generator rng(72);
  const Matrix<S> x = random_normal<S>(rng, 20, features);
  const TestType layer = random_layer<TestType>(segment_layer(), rng);
  check_causality(x, [&](const Matrix<S>& of, const Sequences& batch) { return layer.forward(of, batch).y; });
  for (const bool shared_gate : {false, true}) {
    FeedForward<TestType, Silu> block(segment_block(shared_gate));
    block.initialize(rng);
    check_causality(x,
                    [&](const Matrix<S>& of, const Sequences& batch) { return block.forward(of, batch).y; });
  }
}

TEMPLATE_TEST_CASE("backward goes through all decisions but those of first segments", "[segment]",
                   MoeLayer<S>, MeoLayer<S>) {
  Generator rng(73);
  TestType layer = random_layer<TestType>(segment_layer(), rng);
  const Sequences batch = Sequences::from_lengths(lengths);
  Matrix<S> x = random_normal<S>(rng, batch.tokens(), features);
  const Matrix<S> dy = random_normal<S>(rng, batch.tokens(), out_features);
  const S d_loss = 0.75;
  const Inputs<S> inputs{.sequences = &batch};
  Matrix<S> y(x.rows(), out_features), dx(x.rows(), features);
  Context<S> context;
  const Routing<S> routing = layer.forward(x, inputs, y, context);
  TestType gradients(layer.options());
  layer.backward(x, inputs, context, dy, gradients, dx, d_loss);

  // Without noise the load is a count, which has no gradient.
  const auto loss = [&] {
    Workspace<S> workspace;
    Routing<S> now = layer.route(x, inputs, workspace);
    REQUIRE(now.experts == routing.experts);
    const auto k = static_cast<std::size_t>(now.top_k);
    std::vector<S> importance(4, 0);
    for (std::size_t pair = 0; pair < now.weights.size(); ++pair) {
      if (is_first[pair / k]) now.weights[pair] = routing.weights[pair];
      importance[static_cast<std::size_t>(now.experts[pair])] += now.weights[pair];
    }
    Matrix<S> output(x.rows(), out_features);
    layer.forward_routed(x, inputs, now, output, workspace);
    return output.cwiseProduct(dy).sum() +
           d_loss * S(0.5) * (cv_squared<S>(importance) + cv_squared<S>(routing.load));
  };
  const auto check = [&](S& value, S gradient) {
    const S step = 1e-5, before = value;
    value = before + step;
    const S above = loss();
    value = before - step;
    const S below = loss();
    value = before;
    CHECK(gradient == Approx((above - below) / (2 * step)).epsilon(1e-7).margin(1e-7));
  };
  for (Index i = 0; i < x.size(); ++i) check(x.data()[i], dx.data()[i]);
  const auto values = parameters(layer), of_values = parameters(gradients);
  for (std::size_t range = 0; range < values.size(); ++range) {
    INFO(values[range].name);
    for (std::size_t i = 0; i < values[range].values.size(); ++i)
      check(values[range].values[i], of_values[range].values[i]);
  }
}

TEMPLATE_TEST_CASE("nothing reaches the gate from segments without one before them", "[segment]", MoeLayer<S>,
                   MeoLayer<S>) {
  Generator rng(74);
  const TestType layer = random_layer<TestType>(segment_layer(), rng);
  const Sequences batch = Sequences::from_lengths({3, 2, 1});
  const Matrix<S> x = random_normal<S>(rng, batch.tokens(), features);
  const Matrix<S> dy = random_normal<S>(rng, batch.tokens(), out_features);
  const Matrix<S> noise = random_normal<S>(rng, 3, 4);
  const Inputs<S> inputs{.sequences = &batch, .noise = Noise<S>(noise)};
  Matrix<S> y(x.rows(), out_features), dx(x.rows(), features), routed_dx(x.rows(), features);
  Context<S> context, routed_context;
  TestType gradients(layer.options()), routed_gradients(layer.options());
  // The context has been used before, for segments with others before them.
  const Inputs<S> one_sequence{.noise = Noise<S>(noise)};
  const Matrix<S> longer = random_normal<S>(rng, 9, features);
  Matrix<S> longer_y(9, out_features), longer_dx(9, features);
  layer.forward(longer, one_sequence, longer_y, context);
  layer.backward(longer, one_sequence, context, random_normal<S>(rng, 9, out_features), gradients, longer_dx);
  CHECK(gradients.gate().noise_weight() != Matrix<S>::Zero(features, 4));
  set_zero(parameters(gradients));

  const Routing<S> routing = layer.forward(x, inputs, y, context);
  layer.backward(x, inputs, context, dy, gradients, dx);
  CHECK(gradients.gate().weight() == Matrix<S>::Zero(features, 4));
  CHECK(gradients.gate().noise_weight() == Matrix<S>::Zero(features, 4));

  std::vector<S> d_weights(routing.weights.size());
  layer.forward_routed(x, inputs, routing, y, routed_context);
  layer.backward_routed(x, inputs, routing, routed_context, dy, routed_gradients, routed_dx, d_weights);
  CHECK(bit_difference(dx, routed_dx) == "");
  CHECK(d_weights[0] != 0);
}

TEST_CASE("segments need a length, and the rows of a batch its offsets", "[segment]") {
  LayerOptions options = segment_layer();
  options.routing.segment_tokens = 0;
  CHECK(error_lacks<std::invalid_argument>([&] { MeoLayer<S> layer(options); },
                                           {"segment_tokens: expected at least 1 at segment level, got 0"}) ==
        "");
  const MeoLayer<S> layer(segment_layer());
  CHECK(error_lacks<std::invalid_argument>(
            [&] { layer.gated_rows(7, 2); },
            {"gated_rows: expected the offsets of the sequences at segment level"}) == "");
  const Matrix<S> x = Matrix<S>::Zero(7, features);
  Workspace<S> workspace;
  Matrix<S> y(7, out_features);
  const Assignment<S> too_few{.rows = 2, .num_experts = 4, .top_k = 1, .experts = {0, 1}, .weights = {1, 1}};
  CHECK(error_lacks<std::invalid_argument>([&] { layer.forward_routed(x, {}, too_few, y, workspace); },
                                           {"routing: expected 3 rows, got 2"}) == "");
}

}  // namespace segment_test
}  // namespace

// What is not finite stays in the sequence that it came from: outputs and gradients of all others keep their
// bits. Only sums over all of a batch, as gradients of parameters, take it in.

#include <limits>
#include <random>
#include <vector>

#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace not_finite_test {

using namespace meo;
using namespace meo::test;

using S = float;

constexpr S not_a_number = std::numeric_limits<S>::quiet_NaN();
constexpr S infinite = std::numeric_limits<S>::infinity();

/// Three sequences with descriptions of their own; the middle one is spoilt.
struct Batch {
  Sequences sequences = Sequences::from_lengths({7, 5, 6});
  Sequences descriptions = Sequences::from_lengths({2, 3, 1});
  Matrix<S> x, dy, embeddings, noise;

  Batch(Level level, Index in, Index out, Index gated_rows, bool noisy) {
    Generator rng(17);
    x = random_matrix<S>(rng, sequences.tokens(), in);
    dy = random_matrix<S>(rng, sequences.tokens(), out);
    if (level == Level::task) embeddings = random_matrix<S>(rng, descriptions.tokens(), small_task_features);
    if (noisy) noise = random_normal<S>(rng, gated_rows, 4);
  }

  Inputs<S> inputs() const {
    Inputs<S> inputs{.sequences = &sequences};
    if (embeddings.size() > 0) {
      inputs.task_embeddings = embeddings;
      inputs.descriptions = &descriptions;
    }
    if (noise.size() > 0) inputs.noise = Noise<S>(noise);
    return inputs;
  }
};

struct Results {
  Matrix<S> y, dx, d_embeddings;
};

template <class Context, class Layer>
Results run(const Layer& layer, const Batch& batch) {
  Context context;
  Layer gradients = layer;
  Results results{batch.dy, batch.x, {}};
  layer.forward(batch.x, batch.inputs(), results.y, context);
  layer.backward(batch.x, batch.inputs(), context, batch.dy, gradients, results.dx);
  results.d_embeddings = context.task_embeddings_gradient();
  return results;
}

/// All rows but those of the spoilt sequence or description.
std::string difference_of_others(const Matrix<S>& actual, const Matrix<S>& expected, const Sequences& rows) {
  if (expected.rows() == 0) return "";
  const Index after = rows.begin(2), left = rows.length(2);
  return bit_difference(actual.topRows(rows.begin(1)), expected.topRows(rows.begin(1))) +
         bit_difference(actual.middleRows(after, left), expected.middleRows(after, left));
}

template <class Context, class Layer>
void check_others(const Layer& layer, const Batch& batch) {
  const Results expected = run<Context>(layer, batch);
  const auto check = [&](const Batch& spoilt) {
    const Results actual = run<Context>(layer, spoilt);
    CHECK(difference_of_others(actual.y, expected.y, batch.sequences) == "");
    CHECK(difference_of_others(actual.dx, expected.dx, batch.sequences) == "");
    CHECK(difference_of_others(actual.d_embeddings, expected.d_embeddings, batch.descriptions) == "");
    CHECK(expected.dx.allFinite());
    CHECK(!actual.dx.allFinite());
  };
  const Index token = batch.sequences.begin(1) + 2;
  for (const S value : {not_a_number, infinite, -infinite}) {
    Batch spoilt = batch;
    spoilt.dy(token, 1) = value;
    check(spoilt);
    if (layer.options().routing.level != Level::task) continue;  // else the gate throws
    spoilt = batch;
    spoilt.x(token, 1) = value;
    spoilt.dy.row(token).setConstant(value);
    check(spoilt);
  }
}

TEMPLATE_TEST_CASE("a sequence that is not finite spoils no other", "[layer]", MoeLayer<S>, MeoLayer<S>) {
  std::mt19937_64 rng(5);
  for (const Level level : all_levels) {
    for (const Index top_k : {1, 2, 4}) {
      for (const bool noisy : {false, true}) {
        INFO(to_string(level) << " level, K = " << top_k << ", noise " << noisy);
        TestType layer(small_layer(level, 5, 4, top_k));
        layer.initialize(rng);
        check_others<Context<S>>(layer, Batch(level, 5, 4, layer.gated_rows(18, 3), noisy));
      }
    }
  }
}

TEMPLATE_TEST_CASE("nor in a block", "[feed_forward]", MoeLayer<S>, MeoLayer<S>) {
  std::mt19937_64 rng(6);
  for (const Level level : all_levels) {
    for (const Index top_k : {1, 2}) {
      for (const bool shared_gate : {false, true}) {
        INFO(to_string(level) << " level, K = " << top_k << ", shared gate " << shared_gate);
        FeedForward<TestType> block(small_block(level, 5, 6, true, shared_gate, top_k));
        block.initialize(rng);
        check_others<FeedForwardContext<S>>(block, Batch(level, 5, 5, block.up().gated_rows(18, 3), true));
      }
    }
  }
}

TEST_CASE("sequences that share an expert share no gradient that is not finite", "[meo_layer]") {
  std::mt19937_64 rng(7);
  MeoLayer<S> layer(small_layer(Level::sequence, 5, 4, 1));
  layer.initialize(rng);
  Batch batch(Level::sequence, 5, 4, 3, false);
  for (Index t = 0; t < 18; ++t) batch.x.row(t) = batch.x.row(0);  // so that all select the same
  check_others<Context<S>>(layer, batch);
}

TEMPLATE_TEST_CASE("noise with logits as far apart as there are numbers has a finite gradient", "[gate]",
                   float, double, Eigen::half, Eigen::bfloat16) {
  using T = TestType;
  const T largest = Eigen::NumTraits<T>::highest();
  const RoutingOptions options{.loss_coefficient = 0.25, .noise_epsilon = 0.125};
  Gate<T> gate(3, 3, 2, options);
  gate.set_weight(Matrix<T>::Identity(3, 3));
  Matrix<T> z(2, 3), noise = Matrix<T>::Constant(2, 3, T(0)), dz(2, 3);
  z << largest, -largest, T(0), T(0.5), T(-0.25), T(0.25);
  Routing<T> routing;
  GateWorkspace<T> decision;
  gate.route(z, Noise<T>(noise), routing, decision);
  GateGradientWorkspace<T> workspace;
  Gate<T> gradients(3, 3, 2, options);
  const std::vector<T> d_weights{T(1), T(2), T(3), T(4)};
  gate.backward({z, routing, decision}, d_weights, T(1), gradients, dz, false, workspace);
  for (Index i = 0; i < dz.size(); ++i) CHECK(detail::is_finite(dz.data()[i]));
  for (const T& value : workspace.logits) CHECK(detail::is_finite(value));
  for (const T& value : workspace.noise_logits) CHECK(detail::is_finite(value));
}

}  // namespace not_finite_test
}  // namespace

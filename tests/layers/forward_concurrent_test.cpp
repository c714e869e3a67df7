// One layer or block serves several threads at once, each with a context and gradients of its own.
// ThreadSanitizer watches this (preset tsan).

#include <cstddef>
#include <latch>
#include <random>
#include <thread>
#include <vector>

#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/training/parameters.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace forward_concurrent_test {

using namespace meo;

constexpr Index features = 9;

struct Batch {
  Sequences sequences;
  Matrix<float> x, task_embeddings;  // one description of all tasks

  Inputs<float> inputs(Level level) const {
    Inputs<float> inputs;
    inputs.sequences = &sequences;
    if (level == Level::task) inputs.task_embeddings = task_embeddings;
    return inputs;
  }
};

std::vector<Batch> random_batches() {
  test::Generator rng(111);
  std::vector<Batch> batches;
  for (const auto& lengths : {std::vector<Index>{3, 0, 1, 25}, {40, 7}, {1}, {5, 5, 5, 5}}) {
    const Sequences sequences = Sequences::from_lengths(lengths);
    batches.push_back({sequences, test::random_matrix<float>(rng, sequences.offsets().back(), features),
                       test::random_matrix<float>(rng, 3, test::small_task_features)});
  }
  return batches;
}

/// What one forward and its backward give.
struct Pass {
  Matrix<float> y, dx, parameter_gradients;
};

/// Threads that pass over the batches at the same time, each beginning with another one, get the bits of a
/// pass by itself.
template <class Context, class Layer>
void check_concurrent_passes(const Layer& layer, Level level, Index out_features) {
  const std::vector<Batch> batches = random_batches();
  const auto run = [&](const Batch& batch, Context& context, Layer& gradients) {
    Pass pass{Matrix<float>(batch.x.rows(), out_features), Matrix<float>(batch.x.rows(), features), {}};
    layer.forward(batch.x, batch.inputs(level), pass.y, context);
    set_zero(parameters(gradients));
    layer.backward(batch.x, batch.inputs(level), context, pass.y, gradients, pass.dx);
    std::vector<float> values;
    for (const auto& range : parameters(gradients))
      values.insert(values.end(), range.values.begin(), range.values.end());
    pass.parameter_gradients =
        Eigen::Map<const Vector<float>>(values.data(), static_cast<Index>(values.size()));
    return pass;
  };
  std::vector<Pass> expected;
  Context context;
  Layer gradients(layer.options());
  for (const Batch& batch : batches) expected.push_back(run(batch, context, gradients));

  constexpr std::size_t num_threads = 4;
  std::vector<std::vector<Pass>> passes(num_threads, std::vector<Pass>(batches.size()));
  std::latch start(num_threads);
  {
    std::vector<std::thread> threads;
    for (std::size_t thread = 0; thread < num_threads; ++thread) {
      threads.emplace_back([&, thread] {
        Context own;
        Layer own_gradients(layer.options());
        start.arrive_and_wait();
        for (std::size_t i = 0; i < batches.size(); ++i) {
          const std::size_t batch = (thread + i) % batches.size();
          passes[thread][batch] = run(batches[batch], own, own_gradients);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  for (const auto& of_thread : passes) {
    for (std::size_t batch = 0; batch < batches.size(); ++batch) {
      CHECK(test::bit_difference(of_thread[batch].y, expected[batch].y) == "");
      CHECK(test::bit_difference(of_thread[batch].dx, expected[batch].dx) == "");
      CHECK(test::bit_difference(of_thread[batch].parameter_gradients, expected[batch].parameter_gradients) ==
            "");
    }
  }
}

TEMPLATE_TEST_CASE("several threads may run one layer at once", "[concurrent]", MoeLayer<float>,
                   MeoLayer<float>) {
  for (const Level level : test::all_levels) {
    INFO("level " << to_string(level));
    TestType layer(test::small_layer(level, features, 40));
    std::mt19937_64 rng(112);
    layer.initialize(rng);
    check_concurrent_passes<Context<float>>(layer, level, 40);
  }
}

TEMPLATE_TEST_CASE("several threads may run one block at once", "[concurrent]",
                   (FeedForward<MoeLayer<float>, Gelu>), (FeedForward<MeoLayer<float>, Gelu>)) {
  for (const Level level : test::all_levels) {
    for (const bool shared_gate : {false, true}) {
      INFO("level " << to_string(level) << ", shared gate " << shared_gate);
      TestType block(test::small_block(level, features, 40, true, shared_gate));
      std::mt19937_64 rng(113);
      block.initialize(rng);
      check_concurrent_passes<FeedForwardContext<float>>(block, level, features);
    }
  }
}

}  // namespace forward_concurrent_test
}  // namespace

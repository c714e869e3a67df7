// forward and backward allocate nothing once their workspace or context has grown. A program of its own: it
// counts what operator new is asked for, and Eigen, which calls malloc, reports its allocations through an
// assertion that release builds keep.

#include <stdexcept>

#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(condition) ((condition) ? static_cast<void>(0) : throw std::logic_error(#condition))

#include <cstddef>
#include <cstdint>
#include <new>
#include <random>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/merged_expert.hpp>
#include <meo/layers/merged_feed_forward.hpp>
#include <meo/layers/moe_layer.hpp>

#include "support/catch.hpp"
#include "support/heap.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {

using namespace meo;

/// Allocations by operator new during f; throws for one by Eigen.
template <class Function>
std::size_t allocations_of(Function&& f) {
  const test::heap::NoEigenMalloc none;
  return test::heap::allocations_of(f);
}

TEST_CASE("allocations are noticed", "[noalloc]") {
  // Calls of the functions, not new-expressions, which a compiler may leave out.
  CHECK(allocations_of([] {}) == 0);
  CHECK(allocations_of([] { ::operator delete(::operator new(8)); }) == 1);
  CHECK(allocations_of([] { ::operator delete[](::operator new[](8)); }) == 1);
  constexpr std::align_val_t alignment{64};
  CHECK(allocations_of([&] { ::operator delete(::operator new(8, alignment), alignment); }) == 1);
  CHECK(allocations_of([&] { ::operator delete[](::operator new[](8, alignment), alignment); }) == 1);
  CHECK_THROWS_AS(allocations_of([] { Matrix<float>::Ones(3, 3).eval(); }), std::logic_error);
  CHECK_NOTHROW(Matrix<float>::Ones(3, 3).eval());
}

constexpr Index features = 9, out_features = 40, num_experts = 4;
constexpr Index most_tokens = 48, most_sequences = 8, most_description_tokens = 12;

/// even: all about as long. drawn: token by token. long_first: the others have one token each.
enum class Lengths { even, drawn, long_first };
constexpr Lengths all_lengths[] = {Lengths::even, Lengths::drawn, Lengths::long_first};

/// `count` lengths of `total` in all.
std::vector<Index> random_lengths_of(Index count, Index total, Lengths kind, test::Generator& rng) {
  std::vector<Index> lengths(static_cast<std::size_t>(count), 0);
  if (count == 0) return lengths;
  for (Index t = 0; t < total; ++t) {
    Index place = t % count;
    if (kind == Lengths::drawn) place = static_cast<Index>(rng() % static_cast<std::uint64_t>(count));
    if (kind == Lengths::long_first && t >= count) place = 0;
    ++lengths[static_cast<std::size_t>(place)];
  }
  return lengths;
}

/// A batch for a layer or a block of `features` features.
template <class S>
struct RandomBatch {
  /// Of so many tokens, sequences and tokens of descriptions.
  RandomBatch(Level level, bool gates_tokens, bool has_noise, Index tokens, Index count, Lengths lengths,
              Index description_tokens, test::Generator& rng)
      : sequences(Sequences::from_lengths(random_lengths_of(count, tokens, lengths, rng))) {
    x = S(4) * test::random_matrix<S>(rng, tokens, features);
    if (rng() % 2 == 0 && tokens > 0) x.rowwise() = x.row(0).eval();  // the same selection for all
    const Index rows = gates_tokens && level == Level::token ? tokens : count;
    if (has_noise) noise = test::random_normal<S>(rng, rows, num_experts);
    routing.rows = rows;
    routing.num_experts = num_experts;
    routing.top_k = 2;
    for (Index row = 0; row < rows; ++row) {
      const auto expert = static_cast<Index>(rng() % num_experts);
      routing.experts.insert(routing.experts.end(), {expert, (expert + 1) % num_experts});
      const S weight = rng() % 2 == 0 ? S(0.5) : test::uniform<S>(rng);
      routing.weights.insert(routing.weights.end(), {weight, 1 - weight});
    }
    if (level != Level::task) return;
    descriptions = Sequences::from_lengths(random_lengths_of(count, description_tokens, lengths, rng));
    embeddings = test::random_matrix<S>(rng, descriptions.tokens(), test::small_task_features);
    for (Index b = 0; b < count; ++b) tasks.push_back(rng() % 2 == 0 ? 0 : b);
  }

  Inputs<S> inputs() const {
    Inputs<S> inputs{.sequences = &sequences};
    if (noise.size() != 0) inputs.noise = Noise<S>(noise);
    if (embeddings.cols() == 0) return inputs;
    inputs.task_embeddings = embeddings;
    inputs.descriptions = &descriptions;
    inputs.task_of_sequence = tasks;
    return inputs;
  }

  Sequences sequences, descriptions;
  Matrix<S> x, noise, embeddings;
  std::vector<Index> tasks;
  Routing<S> routing;
};

/// Passes with one Memory: a batch to grow it, then others of no more tokens and sequences, none of which
/// allocates. run(batch, inputs, memory) does one.
template <class Memory, class S, class Run>
void check_batches(Level level, bool gates_tokens, Run&& run) {
  test::Generator rng(101);
  const auto draw = [&](Index most) { return static_cast<Index>(rng() % std::uint64_t(most + 1)); };
  for (const Lengths lengths : all_lengths) {
    Memory memory;
    const RandomBatch<S> first(level, gates_tokens, true, most_tokens, most_sequences, lengths,
                               most_description_tokens, rng);
    run(first, first.inputs(), memory);
    CHECK(allocations_of([&] { run(first, first.inputs(), memory); }) == 0);
    for (int i = 0; i < 15; ++i) {
      const bool is_full = rng() % 2 == 0;
      const Index count = is_full ? most_sequences : draw(most_sequences);
      const Index tokens = count == 0 ? 0 : is_full ? most_tokens : draw(most_tokens);
      const Index description_tokens = count == 0 ? 0 : draw(most_description_tokens);
      const RandomBatch<S> batch(level, gates_tokens, rng() % 2 == 0, tokens, count, all_lengths[rng() % 3],
                                 description_tokens, rng);
      const Inputs<S> inputs = batch.inputs();
      INFO("first lengths " << static_cast<int>(lengths) << ", batch " << i << ": " << count << " sequences, "
                            << tokens << " tokens");
      CHECK(allocations_of([&] { run(batch, inputs, memory); }) == 0);
    }
  }
}

/// A layer or a block with random parameters, by which sequences select different experts.
template <class Library, class Options>
Library random_library(const Options& options) {
  Library library(options);
  std::mt19937_64 rng(102);
  library.initialize(rng);
  return library;
}

/// Forward alone and forward with backward. library: a layer or a block of `features` features.
template <class Workspace, class Context, class Library>
void check_passes(const Library& library, Level level, bool gates_tokens, Index width) {
  using S = typename Library::Scalar;
  Matrix<S> y(most_tokens, width), dx(most_tokens, features);
  check_batches<Workspace, S>(
      level, gates_tokens, [&](const RandomBatch<S>& batch, const Inputs<S>& inputs, Workspace& workspace) {
        library.forward(batch.x, inputs, y.topRows(batch.x.rows()), workspace);
      });
  Library gradients(library.options());
  check_batches<Context, S>(
      level, gates_tokens, [&](const RandomBatch<S>& batch, const Inputs<S>& inputs, Context& context) {
        const Index tokens = batch.x.rows();
        library.forward(batch.x, inputs, y.topRows(tokens), context);
        library.backward(batch.x, inputs, context, y.topRows(tokens), gradients, dx.topRows(tokens));
      });
}

// One scalar, and the number of experts in one layer's type: what is allocated depends on neither.
TEMPLATE_TEST_CASE("a layer allocates nothing once its workspace or context has grown", "[noalloc]",
                   (MoeLayer<float, 4>), (MeoLayer<float>)) {
  using S = typename TestType::Scalar;
  for (const Level level : test::all_levels) {
    for (const Index top_k : {1, 2, 4}) {
      for (const MergeOrder order :
           {MergeOrder::automatic, MergeOrder::merge_first, MergeOrder::combine_outputs}) {
        LayerOptions options = test::small_layer(level, features, out_features, top_k);
        options.merge_order = order;
        INFO(to_string(level) << " level, K " << top_k << ", merge order " << static_cast<int>(order));
        check_passes<Workspace<S>, Context<S>>(random_library<TestType>(options), level,
                                               TestType::Kind::routes_tokens, out_features);
      }
    }
  }
}

LayerOptions layer_of(const RoutingOptions& policies, Level level) {
  LayerOptions options = test::small_layer(level, features, out_features);
  options.routing.scores = policies.scores;
  options.routing.selection = policies.selection;
  options.routing.losses = policies.losses;
  return options;
}

TEMPLATE_TEST_CASE("nor does it with other policies", "[noalloc]", MoeLayer<float>, MeoLayer<float>) {
  using S = typename TestType::Scalar;
  const RoutingOptions policies[] = {{.scores = {.function = ScoreFunction::sigmoid, .bias = true},
                                      .selection = {.groups = 2,
                                                    .top_groups = 1,
                                                    .group_score = GroupScore::two_largest,
                                                    .correction_bias = true}},
                                     {.scores = {.function = ScoreFunction::softmax},
                                      .losses = {.share_coefficient = 0.5, .z_coefficient = 0.5}}};
  for (const Level level : test::all_levels) {
    for (const RoutingOptions& routing : policies) {
      INFO(to_string(level) << " level, " << to_string(routing.scores.function));
      check_passes<Workspace<S>, Context<S>>(random_library<TestType>(layer_of(routing, level)), level,
                                             TestType::Kind::routes_tokens, out_features);
    }
  }
}

TEMPLATE_TEST_CASE("nor does it with shared experts", "[noalloc]", MoeLayer<float>, MeoLayer<float>) {
  using S = typename TestType::Scalar;
  for (const Level level : test::all_levels) {
    INFO(to_string(level) << " level");
    LayerOptions options = test::small_layer(level, features, out_features);
    options.shared_experts = {.count = 2, .weight = SharedWeight::sigmoid};
    check_passes<Workspace<S>, Context<S>>(random_library<TestType>(options), level,
                                           TestType::Kind::routes_tokens, out_features);
  }
}

TEMPLATE_TEST_CASE("nor does it where pairs are left out, for no more of them", "[noalloc]", MoeLayer<float>,
                   MeoLayer<float>) {
  using S = typename TestType::Scalar;
  test::Generator rng(103);
  for (const Level level : test::all_levels) {
    for (const SelectionMethod method : {SelectionMethod::top_k, SelectionMethod::expert_choice}) {
      const auto layer = random_library<TestType>(
          layer_of({.selection = {.method = method, .capacity_factor = 0.75}}, level));
      TestType gradients(layer.options());
      const RandomBatch<S> batch(level, TestType::Kind::routes_tokens, true, most_tokens, most_sequences,
                                 Lengths::even, most_description_tokens, rng);
      const std::vector<unsigned char> allowed{1, 1, 0, 1};
      Inputs<S> inputs = batch.inputs();
      Matrix<S> y(most_tokens, out_features), dx(most_tokens, features);
      Context<S> context;
      const auto pass = [&] {
        layer.forward(batch.x, inputs, y, context);
        layer.backward(batch.x, inputs, context, y, gradients, dx);
      };
      pass();
      CHECK(allocations_of(pass) == 0);
      inputs.top_k = 1;
      inputs.allowed_experts = allowed;
      pass();
      CHECK(allocations_of(pass) == 0);
    }
  }
}

TEMPLATE_TEST_CASE("nor does it with a routing from elsewhere", "[noalloc]", (MoeLayer<float, 4>),
                   (MeoLayer<float>)) {
  using S = typename TestType::Scalar;
  for (const Level level : test::all_levels) {
    INFO(to_string(level) << " level");
    const auto layer = random_library<TestType>(test::small_layer(level, features, out_features));
    TestType gradients(layer.options());
    Matrix<S> y(most_tokens, out_features), dx(most_tokens, features);
    std::vector<S> d_weights(std::size_t(2 * most_tokens));
    check_batches<Context<S>, S>(
        level, TestType::Kind::routes_tokens,
        [&](const RandomBatch<S>& batch, const Inputs<S>& inputs, Context<S>& context) {
          const Index tokens = batch.x.rows();
          layer.forward_routed(batch.x, inputs, batch.routing, y.topRows(tokens), context);
          layer.backward_routed(batch.x, inputs, batch.routing, context, y.topRows(tokens), gradients,
                                dx.topRows(tokens), std::span(d_weights).first(batch.routing.weights.size()));
        });
  }
}

TEMPLATE_TEST_CASE("a block allocates nothing once its workspace or context has grown", "[noalloc]",
                   (FeedForward<MoeLayer<float, 4>, Gelu>), (FeedForward<MeoLayer<float>, Gelu>)) {
  using S = typename TestType::Scalar;
  using Layer = std::remove_cvref_t<decltype(std::declval<TestType&>().up())>;
  for (const Level level : test::all_levels) {
    for (const bool shared_gate : {false, true}) {
      for (const bool gated : {false, true}) {
        INFO(to_string(level) << " level, shared gate " << shared_gate << ", gated " << gated);
        const auto options = test::small_block(level, features, out_features, gated, shared_gate);
        check_passes<FeedForwardWorkspace<S>, FeedForwardContext<S>>(random_library<TestType>(options), level,
                                                                     Layer::Kind::routes_tokens, features);
      }
    }
  }
}

TEST_CASE("kept experts allocate nothing for a step, nor where they are merged again", "[noalloc]") {
  for (const Level level : {Level::token, Level::sequence}) {
    INFO(to_string(level) << " level");
    const auto layer = random_library<MeoLayer<float>>(test::small_layer(level, features, out_features));
    const Assignment<float> all{.rows = 3,
                                .num_experts = num_experts,
                                .begins = {0, 4, 5, 5},
                                .experts = {3, 0, 2, 1, 1},
                                .weights = {0.1f, 0.2f, 0.3f, 0.4f, 1.0f}};
    const Assignment<float> fewer{.rows = 2,
                                  .num_experts = num_experts,
                                  .begins = {0, 0, 2},
                                  .experts = {2, 1},
                                  .weights = {0.5f, 0.0f}};
    const Sequences batch = Sequences::from_lengths({4, 1, 3}), fewer_batch = Sequences::from_lengths({1, 5});
    const Matrix<float> x = Matrix<float>::Random(8, features);
    Matrix<float> y(8, out_features);
    MergedExpert<float> kept(layer, all);
    Workspace<float> workspace;
    kept.forward(x, {.sequences = &batch}, y, workspace);
    CHECK(allocations_of([&] { kept.forward(x, {.sequences = &batch}, y, workspace); }) == 0);
    CHECK(allocations_of([&] { kept.merge(layer, fewer); }) == 0);
    CHECK(allocations_of([&] {
            kept.forward(x.topRows(6), {.sequences = &fewer_batch}, y.topRows(6), workspace);
          }) == 0);
    CHECK(allocations_of([&] { kept.merge(layer, all, 0); }) == 0);
    CHECK(allocations_of([&] { kept.forward(x.topRows(1), {}, y.topRows(1), workspace); }) == 0);
    CHECK(allocations_of([&] { kept.merge(layer, all); }) == 0);
    CHECK(allocations_of([&] { kept.forward(x, {.sequences = &batch}, y, workspace); }) == 0);

    MergedExpert<float, std::int8_t> small(layer, all);
    CHECK(allocations_of([&] { small.merge(layer, fewer); }) == 0);
    CHECK(allocations_of([&] { small.merge(layer, all); }) == 0);
    CHECK(allocations_of([&] { small.forward(x, {.sequences = &batch}, y, workspace); }) == 0);
  }
}

TEST_CASE("nor does a kept block", "[noalloc]") {
  for (const bool shared_gate : {false, true}) {
    INFO("shared gate " << shared_gate);
    const auto block = random_library<FeedForward<MeoLayer<float>>>(
        test::small_block(Level::token, features, out_features, true, shared_gate));
    const Matrix<float> x = Matrix<float>::Random(8, features);
    Matrix<float> y(8, features);
    FeedForwardWorkspace<float> decided, workspace;
    block.forward(x, {}, y, decided);
    MergedFeedForward kept(block, decided);
    kept.forward(x, {}, y, workspace);
    CHECK(allocations_of([&] { kept.merge(block, decided); }) == 0);
    CHECK(allocations_of([&] { kept.forward(x.topRows(3), {}, y.topRows(3), workspace); }) == 0);
  }
}

TEST_CASE("noise drawn from a generator allocates nothing either", "[noalloc]") {
  MeoLayer<float> layer({.in_features = 9, .out_features = 8, .num_experts = 4, .top_k = 2});
  std::mt19937_64 rng(1);
  layer.initialize(rng);
  const Matrix<float> x = Matrix<float>::Random(12, 9);
  Matrix<float> y(12, 8);
  Inputs<float> inputs;
  inputs.noise = Noise<float>(rng);
  Workspace<float> workspace;
  layer.forward(x, inputs, y, workspace);
  CHECK(allocations_of([&] { layer.forward(x, inputs, y, workspace); }) == 0);
}

}  // namespace

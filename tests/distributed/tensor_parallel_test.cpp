// Layers and blocks that are split over ranks against the same ones on one rank.

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <meo/distributed/gradient_norm.hpp>
#include <meo/distributed/tensor_parallel.hpp>
#include <meo/distributed/tensor_parallel_projections.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/routing/shared_experts.hpp>
#include <meo/training/gradient_norm.hpp>
#include <meo/training/parameters.hpp>

#include "distributed/world.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace tensor_parallel_test {

using namespace meo;
using namespace meo::test;
using mpi::TensorParallel;
using mpi::TensorParallelProjections;

/// Random values for all parameters; the same on all ranks.
template <class Layer>
Layer random_layer(const typename Layer::Options& options, Generator& rng) {
  Layer layer(options);
  layer.initialize(rng);
  for (const auto& range : parameters(layer)) {
    if (range.name.ends_with("w_noise"))
      for (auto& value : range.values) value = uniform<double>(rng);
  }
  return layer;
}

constexpr Index tokens = 20;

/// A batch of four sequences, one of them empty, with all that a layer's options ask for.
template <class Options>
struct Batch {
  Batch(const Options& options, Index features, Index outputs, Index gated_rows, Generator& rng)
      : x(random_matrix<double>(rng, tokens, features)),
        dy(random_matrix<double>(rng, tokens, outputs)),
        noise(random_normal<double>(rng, gated_rows, options.num_experts)) {
    inputs.sequences = &sequences;
    inputs.noise = Noise<double>(noise);
    if (options.routing.level != Level::task) return;
    embeddings = random_matrix<double>(rng, 5, options.routing.task_features);
    inputs.task_embeddings = embeddings;
    inputs.descriptions = &descriptions;
    inputs.task_of_sequence = tasks;
  }
  Batch(const Batch&) = delete;

  Sequences sequences = Sequences::from_lengths({9, 0, 4, 7});
  Sequences descriptions = Sequences::from_lengths({2, 3});
  std::vector<Index> tasks{0, 1, 1, 0};
  Matrix<double> x, dy, noise, embeddings;
  Inputs<double> inputs;
};

template <class Layer>
Index gated_rows(const Layer& layer) {
  if constexpr (mpi::detail::Split<Layer>::sums_outputs) return layer.up().gated_rows(tokens, 4);
  else return layer.gated_rows(tokens, 4);
}

template <class Layer>
using ContextOf = typename mpi::detail::Split<Layer>::Context;

/// Which of the whole's parameters and of those gathered from all ranks differ: bit by bit where `exact`
/// says so of a name, else by more than `tolerance` of the largest.
template <class Layer, class IsExact>
void check_same(Layer& gathered, Layer& whole, double tolerance, const IsExact& is_exact) {
  const auto actual = parameters(gathered), expected = parameters(whole);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    INFO(expected[i].name);
    const auto column = [](const std::span<double>& values) {
      return Eigen::Map<const Vector<double>>(values.data(), Index(values.size()));
    };
    const auto a = column(actual[i].values), e = column(expected[i].values);
    if (is_exact(expected[i].name)) CHECK(bit_difference(a, e) == "");
    else CHECK(disagreement_in_max_norm(a, e, tolerance) == "");
  }
}

/// The sum of the balance losses that a forward has left.
double loss_of(const Context<double>& context) { return context.routing.loss; }
double loss_of(const FeedForwardContext<double>& context) {
  return context.up.routing.loss + context.gate_up.routing.loss + context.down.routing.loss;
}

template <class Layer, class Visit>
void for_parts(TensorParallel<Layer>& split, const Visit& visit) {
  visit(split.part());
}
template <class Layer, class Visit>
void for_parts(TensorParallelProjections<Layer>& split, const Visit& visit) {
  split.visit_projections([&](const std::string&, auto& projection) { visit(projection.part()); });
}

/// Two steps of a layer, split and whole. is_exact: whether a parameter's gradients, by its name, or those of
/// "y" have to be equal to the bit.
template <class Layer, class Split, class IsExact>
void check_layer(const typename Layer::Options& options, Index features, Index outputs,
                 const IsExact& is_exact) {
  // Sums of at most 2000 products, in two orders.
  constexpr double tolerance = 2 * 2000 * 1.2e-16;
  Generator rng(7);
  const Layer whole = random_layer<Layer>(options, rng);
  const Batch<typename Layer::Options> batch(whole.options(), features, outputs, gated_rows(whole), rng);

  ContextOf<Layer> context;
  Layer gradients(options);
  Matrix<double> y(tokens, outputs), dx(tokens, features);
  const Split split(world(), whole);
  typename Split::Context split_context;
  Split split_gradients(world(), options);
  Matrix<double> split_y(tokens, outputs), split_dx(tokens, features);

  Layer gathered = split.whole(), expected = whole;
  check_same(gathered, expected, 0, [](const std::string&) { return true; });

  for (int pass = 0; pass < 2; ++pass) {  // gradients accumulate
    whole.forward(batch.x, batch.inputs, y, context);
    const double loss = split.forward(batch.x, batch.inputs, split_y, split_context);
    CHECK(loss == loss_of(context));
    if (is_exact("y")) CHECK(bit_difference(split_y, y) == "");
    else CHECK(disagreement_in_max_norm(split_y, y, tolerance) == "");
    whole.backward(batch.x, batch.inputs, context, batch.dy, gradients, dx, 0.5);
    split.backward(batch.x, batch.inputs, split_context, batch.dy, split_gradients, split_dx, 0.5);
    CHECK(disagreement_in_max_norm(split_dx, dx, tolerance) == "");
    CHECK(disagreement_in_max_norm(split_context.task_embeddings_gradient(),
                                   context.task_embeddings_gradient(), tolerance) == "");
  }
  gathered = split_gradients.whole();
  check_same(gathered, gradients, tolerance, is_exact);

  // What every rank has whole is the same on all.
  for_parts(split_gradients, [](auto& part) {
    for (const auto& values : mpi::detail::shared_values(part)) {
      std::vector<double> first(values.begin(), values.end());
      world().broadcast(std::span<double>(first));
      CHECK(std::equal(first.begin(), first.end(), values.begin()));
    }
  });
}

template <class Layer, class IsExact>
void check_tensor_parallel(const typename Layer::Options& options, Index features, Index outputs,
                           const IsExact& is_exact) {
  check_layer<Layer, TensorParallel<Layer>>(options, features, outputs, is_exact);
}

bool y_and_experts(const std::string& name) { return name == "y" || name == "experts"; }
bool nothing(const std::string&) { return false; }

TEMPLATE_TEST_CASE("a layer split by outputs has the whole one's outputs, to the bit, and gradients", "",
                   MoeLayer<double>, MeoLayer<double>) {
  for (const Level level : all_levels) {
    for (const Index out_features : {4, 37}) {
      INFO("level " << to_string(level) << ", F " << out_features);
      check_tensor_parallel<TestType>(small_layer(level, 11, out_features), 11, out_features, y_and_experts);
    }
  }
}

TEST_CASE("an uneven split of many outputs is the whole, to the bit") {
  check_tensor_parallel<MeoLayer<double>>(small_layer(Level::sequence, 3, 1003), 3, 1003, y_and_experts);
}

TEMPLATE_TEST_CASE("a block split by hidden features has the whole one's outputs and gradients", "",
                   FeedForward<MoeLayer<double>>, FeedForward<MeoLayer<double>>) {
  for (const Level level : all_levels) {
    if (level == Level::token && TestType::Kind::has_token_attention) continue;
    for (const bool gated : {false, true}) {
      INFO("level " << to_string(level) << ", gated " << gated);
      check_tensor_parallel<TestType>(small_block(level, 9, 14, gated, true), 9, 9, nothing);
    }
  }
}

TEMPLATE_TEST_CASE(
    "a block with a router for each projection has the whole one's outputs, to the bit, and gradients", "",
    MoeLayer<double>, MeoLayer<double>) {
  const auto y_and_down = [](const std::string& name) { return name == "y" || name == "down.experts"; };
  for (const Level level : all_levels) {
    for (const bool gated : {false, true}) {
      INFO("level " << to_string(level) << ", gated " << gated);
      check_layer<FeedForward<TestType>, TensorParallelProjections<TestType>>(
          small_block(level, 9, 14, gated, false), 9, 9, y_and_down);
    }
  }
}

TEST_CASE(
    "a block with one router and token attention has the whole one's outputs, to the bit, and gradients") {
  using Layer = MeoLayer<double>;
  const auto y_and_down = [](const std::string& name) { return name == "y" || name == "down.experts"; };
  for (const Level level : all_levels) {
    for (const bool gated : {false, true}) {
      if (level != Level::token && gated) continue;  // no other code than at token level
      for (const Index hidden : {14, 103}) {
        INFO("level " << to_string(level) << ", gated " << gated << ", H " << hidden);
        check_layer<FeedForward<Layer>, TensorParallelProjections<Layer>>(
            small_block(level, 9, hidden, gated, true), 9, 9, y_and_down);
      }
    }
  }
}

TEMPLATE_TEST_CASE("shared experts are split as the others are", "", MoeLayer<double>, MeoLayer<double>) {
  LayerOptions layer = small_layer(Level::sequence, 5, 13);
  FeedForwardOptions block = small_block(Level::sequence, 6, 10, true, true);
  layer.shared_experts = block.shared_experts = {.count = 2, .weight = SharedWeight::sigmoid};
  check_tensor_parallel<TestType>(layer, 5, 13, y_and_experts);
  check_tensor_parallel<FeedForward<TestType>>(block, 6, 6, nothing);
}

TEST_CASE("a block's biases are added once, and the others' stay zero") {
  FeedForward<MeoLayer<double>> block(small_block(Level::sequence, 3, 5, false, true));
  Vector<double> bias(3);
  bias << 1, 2, 4;
  for (Index expert = 0; expert < 4; ++expert) block.down().set_bias(expert, bias);
  const TensorParallel<FeedForward<MeoLayer<double>>> split(world(), block);
  TensorParallel<FeedForward<MeoLayer<double>>>::Context context;
  Matrix<double> y(2, 3);
  split.forward(Matrix<double>::Ones(2, 3), {}, y, context);
  CHECK(bit_difference(y, Matrix<double>(bias.transpose().replicate(2, 1))) == "");

  TensorParallel<FeedForward<MeoLayer<double>>> gradients(world(), block.options());
  Matrix<double> dx(2, 3);
  split.backward(Matrix<double>::Ones(2, 3), {}, context, Matrix<double>::Ones(2, 3), gradients, dx);
  const bool is_first = world().rank() == 0;
  // Two tokens, and experts 0 and 1 selected with weights 1/2.
  CHECK(bit_difference(gradients.part().down().bias(1), Vector<double>::Constant(3, is_first ? 1 : 0)) == "");
}

TEST_CASE("what is wrong on one rank throws on all, and changes nothing") {
  const int last = world().size() - 1;
  const bool is_last = world().rank() == last;
  const std::string where = " (on rank " + std::to_string(last) + ")";
  Generator rng(3);
  using Layer = MeoLayer<double>;
  const auto options = small_layer(Level::sequence, 5, 8);
  const TensorParallel<Layer> split(world(), random_layer<Layer>(options, rng));
  TensorParallel<Layer> gradients(world(), options);
  TensorParallel<Layer>::Context context;
  const Matrix<double> x = random_matrix<double>(rng, 6, 5), dy = random_matrix<double>(rng, 6, 8);
  Matrix<double> y = Matrix<double>::Constant(6, 8, 7), dx = y.leftCols(5);
  const auto run = [&](const Matrix<double>& input) { split.forward(input, {}, y, context); };

  CHECK_THROWS_WITH(run(is_last ? Matrix<double>(x.leftCols(4)) : x),
                    "meo: x: expected in_features = 5 columns, got 4" + where);
  Matrix<double> bad = x;
  if (is_last) bad(2, 3) = std::nan("");
  CHECK_THROWS_AS(run(bad), std::domain_error);
  if (last > 0) {
    CHECK_THROWS_WITH(run(is_last ? Matrix<double>(2 * x) : x),
                      Catch::Contains("routing: expected the same on all ranks"));
  }
  CHECK(bit_difference(y, Matrix<double>::Constant(6, 8, 7)) == "");

  for (const auto& range : parameters(gradients)) std::fill(range.values.begin(), range.values.end(), 3.0);
  const auto back = [&](const Matrix<double>& d_output) {
    split.backward(x, {}, context, d_output, gradients, dx);
  };
  run(x);
  CHECK_THROWS_WITH(back(is_last ? Matrix<double>(dy.leftCols(3)) : dy),
                    Catch::Contains("dy (rows of x by outputs): expected 6 x 8, got 6 x 3" + where));
  if (is_last) context = {};  // as if its forward had not been
  CHECK_THROWS_WITH(back(dy), Catch::Contains("no forward has finished with" + where));
  CHECK(bit_difference(dx, Matrix<double>::Constant(6, 5, 7)) == "");
  for (const auto& values : mpi::detail::shared_values(gradients.part()))
    CHECK(std::all_of(values.begin(), values.end(), [](double value) { return value == 3.0; }));
}

TEST_CASE("gradients of ranks have the norm of the whole, and are clipped by it") {
  Generator rng(11);
  using Layer = FeedForward<MeoLayer<double>>;
  Layer gradients(small_block(Level::sequence, 6, 10, true, true));
  gradients.initialize(rng);
  TensorParallel<Layer> split(world(), gradients);
  const auto ranges = mpi::split_parameters(split, "a.");
  CHECK(ranges.parts.size() == 3);
  CHECK(ranges.parts[0].name == "a.up.experts");
  CHECK(ranges.shared[0].name == "a.up.w_gate");

  // Squares of some 1000 values, in two orders.
  const double norm = gradient_norm(parameters(gradients));
  CHECK(std::abs(mpi::gradient_norm(world(), ranges) - norm) <= 1000 * 1.2e-16 * norm);
  const double before = mpi::clip_gradient_norm(world(), ranges, norm / 4);
  CHECK(std::abs(before - norm) <= 1000 * 1.2e-16 * norm);
  clip_gradient_norm(parameters(gradients), norm / 4);
  Layer gathered = split.whole();
  check_same(gathered, gradients, 1000 * 1.2e-16, nothing);
  CHECK_THROWS_WITH(mpi::clip_gradient_norm(world(), ranges, -1.0),
                    Catch::Contains("max_norm: expected a positive"));
}

TEST_CASE("a layer is shared by processes, as the README has it") {
  world();
  std::mt19937_64 rng(42);
  meo::MeoLayer<float> layer({.in_features = 30, .out_features = 70, .num_experts = 8, .top_k = 2});
  layer.initialize(rng);
  const meo::Matrix<float> x = random_matrix<float>(rng, 12, 30);
  meo::Matrix<float> y(12, 70);
  const meo::mpi::Communicator world;                  // after a meo::mpi::Environment, at the top of main
  const meo::mpi::TensorParallel split(world, layer);  // this rank's part of a layer that all have alike
  decltype(split)::Context context;
  const float loss = split.forward(x, {}, y, context);  // all of y on every rank: layer.forward(x)'s bits
  CHECK(bit_difference(y, layer.forward(x).y) == "");
  CHECK(loss == layer.forward(x).routing.loss);
}

TEST_CASE("what cannot be split is refused") {
  using Block = FeedForward<MeoLayer<double>>;
  const auto message = [](const auto& make) -> std::string {
    try {
      make();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  if (world().size() > 1) {
    CHECK(message([] { TensorParallel<MoeLayer<double>>(world(), small_layer(Level::token, 3, 1)); }) ==
          "meo: out_features: expected one at least for each of " + std::to_string(world().size()) +
              " ranks, got 1 (on rank 0)");
    const Index more = world().rank() == 1 ? 1 : 0;
    const auto of_sizes = [](Index features, Index outputs) {
      TensorParallel<MoeLayer<double>>(world(), small_layer(Level::token, features, outputs));
    };
    CHECK(message([&] { of_sizes(3, 8 + more); }) ==
          "meo: out_features: expected the same on all ranks, got 8 on rank 0 and 9 on rank 1");
    CHECK(message([&] { of_sizes(1 - more, 8); }) ==
          "meo: in_features: expected at least 1, got 0 (on rank 1)");
  }
  CHECK_THAT(
      message([] { TensorParallel<Block>(world(), small_block(Level::sequence, 3, 8, false, false)); }),
      Catch::Contains("shared_gate: expected a block with one decision"));
  CHECK_THAT(message([] { TensorParallel<Block>(world(), small_block(Level::token, 3, 8, false, true)); }),
             Catch::Contains("level: expected a block without token attention"));
  CHECK_THAT(message([] {
               TensorParallelProjections<MoeLayer<double>>(world(),
                                                           small_block(Level::token, 3, 8, false, true));
             }),
             Catch::Contains("shared_gate: expected a block with a router for each projection"));
}

}  // namespace tensor_parallel_test
}  // namespace

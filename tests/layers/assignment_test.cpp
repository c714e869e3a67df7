// Routers from elsewhere: any Assignment, ragged or not, given to layers and to blocks. Numbers are small
// integers, so that results are exact in double.

#include <cmath>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/training/parameters.hpp>

#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace assignment_test {

using namespace meo;
using namespace meo::test;

using Invalid = std::invalid_argument;

constexpr Index in_features = 5, out_features = 7;

/// Rows of 2, 0, 1, 1 and 2 pairs; a single one with the weight 3, another with 1; one sequence is long
/// enough to be merged with two experts, and one is empty.
const Assignment<double> ragged{.rows = 5,
                                .num_experts = 4,
                                .begins = {0, 2, 2, 3, 4, 6},
                                .experts = {3, 0, 2, 1, 1, 2},
                                .weights = {2, -1, 3, 1, 2, 2}};
const std::vector<Index> ragged_lengths{30, 3, 2, 4, 0};

template <class Layer>
void set_integers(Layer& layer, Generator& rng) {
  for (Index e = 0; e < layer.num_experts(); ++e) {
    layer.set_weight(e, random_integers<double>(rng, layer.out_features(), layer.in_features(), 3));
    layer.set_bias(e, random_integers<double>(rng, layer.out_features(), 1, 3).col(0));
  }
}

template <class Layer>
LayerOptions without_router(MergeOrder order = MergeOrder::automatic) {
  LayerOptions options = small_layer(Level::sequence, in_features, out_features);
  options.has_router = false;
  options.merge_order = order;
  return options;
}

TEMPLATE_TEST_CASE("a layer takes any assignment, forward and backward", "[assignment]", MoeLayer<double>,
                   MeoLayer<double>) {
  Generator rng(61);
  const Sequences batch = Sequences::from_lengths(ragged_lengths);
  const Inputs<double> inputs{.sequences = &batch};
  const Matrix<double> x = random_integers<double>(rng, batch.tokens(), in_features, 3);
  const Matrix<double> dy = random_integers<double>(rng, batch.tokens(), out_features, 3);
  for (const MergeOrder order :
       {MergeOrder::automatic, MergeOrder::merge_first, MergeOrder::combine_outputs}) {
    INFO("merge order " << static_cast<int>(order));
    TestType layer(without_router<TestType>(order));
    set_integers(layer, rng);
    Matrix<double> y = Matrix<double>::Zero(x.rows(), out_features),
                   dx = Matrix<double>::Zero(x.rows(), in_features);
    std::vector<double> d_weights(ragged.weights.size(), 0);
    TestType gradients(layer.options());
    for (Index row = 0; row < ragged.rows; ++row) {
      for (Index pair = ragged.begin(row); pair < ragged.begin(row + 1); ++pair) {
        const auto p = static_cast<std::size_t>(pair);
        const Index e = ragged.experts[p];
        const double g = ragged.weights[p];
        Matrix<double> dw = gradients.weight(e);
        Vector<double> db = gradients.bias(e);
        for (Index t = batch.begin(row); t < batch.begin(row + 1); ++t) {
          const Vector<double> output = layer.weight(e) * x.row(t).transpose() + layer.bias(e);
          y.row(t) += g * output.transpose();
          dx.row(t) += g * dy.row(t) * layer.weight(e);
          d_weights[p] += output.dot(dy.row(t).transpose());
          dw += g * dy.row(t).transpose() * x.row(t);
          db += g * dy.row(t).transpose();
        }
        gradients.set_weight(e, dw);
        gradients.set_bias(e, db);
      }
    }

    Context<double> context;
    Matrix<double> actual_y = Matrix<double>::Constant(x.rows(), out_features, 7);
    layer.forward_routed(x, inputs, ragged, actual_y, context);
    CHECK(actual_y == y);
    TestType actual(layer.options());
    Matrix<double> actual_dx = Matrix<double>::Constant(x.rows(), in_features, 7);
    std::vector<double> actual_weights(d_weights.size(), 1);
    layer.backward_routed(x, inputs, ragged, context, dy, actual, actual_dx, actual_weights);
    CHECK(actual_dx == dx);
    for (std::size_t p = 0; p < d_weights.size(); ++p) CHECK(actual_weights[p] == d_weights[p] + 1);
    for (Index e = 0; e < layer.num_experts(); ++e) {
      CHECK(actual.weight(e) == gradients.weight(e));
      CHECK(actual.bias(e) == gradients.bias(e));
    }
  }
}

TEMPLATE_TEST_CASE("a layer without a router has no gate's parameters and says so", "[assignment]",
                   MoeLayer<double>, MeoLayer<double>) {
  TestType layer(without_router<TestType>());
  const Matrix<double> x = Matrix<double>::Ones(2, in_features);
  CHECK(error_lacks<Invalid>([&] { layer.forward(x); }, {"router", "has_router = false", "forward_routed"}) ==
        "");
  CHECK(error_lacks<Invalid>([&] { layer.gate(); }, {"router", "has_router = false"}) == "");
  const auto ranges = parameters(layer);
  REQUIRE(ranges.size() == 1);
  CHECK(ranges[0].name == "experts");
}

TEST_CASE("an assignment that fits no layer is refused", "[assignment]") {
  MeoLayer<double> layer(without_router<MeoLayer<double>>());
  const Matrix<double> x = Matrix<double>::Ones(4, in_features);
  const auto lacks = [&](const auto& change, std::initializer_list<std::string> parts) {
    Assignment<double> assignment{
        .rows = 1, .num_experts = 4, .begins = {0, 2}, .experts = {1, 2}, .weights = {1, 1}};
    change(assignment);
    Matrix<double> y(4, out_features);
    Workspace<double> workspace;
    return error_lacks<Invalid>([&] { layer.forward_routed(x, {}, assignment, y, workspace); }, parts);
  };
  CHECK(lacks([](auto& a) { a.begins = {0}; }, {"2 begins", "got 1"}) == "");
  CHECK(lacks([](auto& a) { a.begins = {1, 2}; }, {"first of them 0"}) == "");
  CHECK(lacks([](auto& a) { a.begins = {0, -1}; }, {"ascending begins"}) == "");
  CHECK(lacks([](auto& a) { a.begins = {0, 3}; }, {"3 pairs", "got 2 experts"}) == "");
  CHECK(lacks([](auto& a) { a.begins = {}; }, {"top_k from 1 to 4", "got 0"}) == "");
  CHECK(lacks([](auto& a) { a.experts = {1, 1}; }, {"distinct experts", "expert 1 twice"}) == "");
  CHECK(lacks([](auto& a) { a.experts = {1, 4}; }, {"expert", "got 4"}) == "");
  CHECK(lacks([](auto& a) { a.gradient_groups = {0, 0}; }, {"gradient_groups", "got 2"}) == "");
}

TEMPLATE_TEST_CASE("a block with a routing from elsewhere computes what it does with its own", "[assignment]",
                   MoeLayer<double>, MeoLayer<double>) {
  using Block = FeedForward<TestType, Silu>;
  Generator rng(62);
  const Sequences batch = Sequences::from_lengths({3, 0, 20, 1});
  const Inputs<double> inputs{.sequences = &batch};
  const Matrix<double> x = random_matrix<double>(rng, batch.tokens(), in_features);
  const Matrix<double> dy = random_matrix<double>(rng, batch.tokens(), in_features);
  for (const bool gated : {false, true}) {
    FeedForwardOptions options = small_block(Level::sequence, in_features, out_features, gated, true);
    options.routing.loss_coefficient = 0;
    Block block(options);
    block.initialize(rng);
    FeedForwardOptions routed_options = block.options();
    routed_options.has_router = false;
    Block routed(routed_options);
    const auto copy_experts = [&](const auto& from, auto& to) {
      for (Index e = 0; e < from.num_experts(); ++e) {
        to.set_weight(e, from.weight(e));
        to.set_bias(e, from.bias(e));
      }
    };
    copy_experts(block.up(), routed.up());
    copy_experts(block.down(), routed.down());
    if (gated) copy_experts(block.gate_up(), routed.gate_up());

    FeedForwardContext<double> context, routed_context;
    Matrix<double> y(x.rows(), x.cols()), routed_y(x.rows(), x.cols()), dx(x.rows(), x.cols()),
        routed_dx(x.rows(), x.cols());
    block.forward(x, inputs, y, context);
    const Assignment<double> routing = context.up.routing;
    routed.forward_routed(x, inputs, routing, routed_y, routed_context);
    CHECK(routed_y == y);
    CHECK(error_lacks<Invalid>([&] { routed.forward(x); }, {"router", "has_router = false"}) == "");

    Block gradients(block.options()), routed_gradients(routed.options());
    block.backward(x, inputs, context, dy, gradients, dx);
    std::vector<double> d_weights(routing.weights.size(), 0);
    routed.backward_routed(x, inputs, routing, routed_context, dy, routed_gradients, routed_dx, d_weights);
    for (Index e = 0; e < 4; ++e) {
      CHECK(routed_gradients.up().weight(e) == gradients.up().weight(e));
      CHECK(routed_gradients.down().weight(e) == gradients.down().weight(e));
      if (gated) CHECK(routed_gradients.gate_up().bias(e) == gradients.gate_up().bias(e));
    }
    // What is missing from dx goes through the gate: to the mean of each sequence.
    const Matrix<double> through_gate = dx - routed_dx;
    CHECK((through_gate.row(3) - through_gate.row(4)).cwiseAbs().maxCoeff() < 1e-12);
    // dg by a central difference: y is what backward_routed's gradient is of, also of weights that sum to
    // no 1.
    for (std::size_t p = 0; p < routing.weights.size(); ++p) {
      const double step = 1e-5;
      double loss[2];
      for (const int side : {0, 1}) {
        Assignment<double> moved = routing;
        moved.weights[p] += side == 0 ? step : -step;
        Matrix<double> moved_y(x.rows(), x.cols());
        FeedForwardWorkspace<double> workspace;
        routed.forward_routed(x, inputs, moved, moved_y, workspace);
        loss[side] = moved_y.cwiseProduct(dy).sum();
      }
      CHECK(std::abs((loss[0] - loss[1]) / (2 * step) - d_weights[p]) < 1e-6);
    }
  }
}

TEMPLATE_TEST_CASE("a block with one router has one, and loads files that have a gate for each projection",
                   "[assignment]", MoeLayer<double>, MeoLayer<double>) {
  using Block = FeedForward<TestType, Relu>;
  Generator rng(63);
  const FeedForwardOptions shared = small_block(Level::task, in_features, out_features, true, true);
  FeedForwardOptions separate = shared;
  separate.shared_gate = false;
  Block of_old(separate), block(shared);
  of_old.initialize(rng);
  io::SafetensorsWriter writer;
  io::save(of_old, writer);
  const auto bytes = writer.bytes();
  io::load(block, io::SafetensorsReader(bytes, "old"));
  CHECK(block.up().gate().weight() == of_old.up().gate().weight());
  CHECK(block.down().weight(3) == of_old.down().weight(3));
  CHECK(block.gate_up().bias(2) == of_old.gate_up().bias(2));

  std::vector<std::string> names;
  for (const auto& range : parameters(block)) names.push_back(range.name);
  CHECK(names == std::vector<std::string>{"up.w_gate", "up.w_noise", "up.experts", "up.task_proj",
                                          "gate_up.experts", "down.experts"});
  CHECK(error_lacks<Invalid>([&] { block.down().gate(); }, {"router", "has_router = false"}) == "");
  io::SafetensorsWriter again;
  io::save(block, again);
  const auto saved = again.bytes();
  const io::SafetensorsReader reader(saved, "new");
  CHECK(reader.contains("param.up.w_gate"));
  CHECK_FALSE(reader.contains("param.down.w_gate"));
}

}  // namespace assignment_test
}  // namespace

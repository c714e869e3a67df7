#include <meo/layers/meo_layer.hpp>

#include "kernels/merged_problem.hpp"
#include "reference/sweeps.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"

namespace {
namespace meo_layer_test {

using namespace meo;
using namespace meo::reference;

TEMPLATE_TEST_CASE("MeoLayer computes what the reference does, whatever its options", "[meo_layer]",
                   (MeoLayer<float>), (MeoLayer<float, 4>), (MeoLayer<double>)) {
  check_all_options<TestType>({1, 2, 6});
}

TEST_CASE("MeoLayer computes what the reference does for a scalar without packets", "[meo_layer]") {
  check_all_options<MeoLayer<long double>>({1, 4});
}

TEMPLATE_TEST_CASE("MeoLayer computes what the reference does for all small shapes", "[meo_layer]",
                   (MeoLayer<float>), (MeoLayer<double, 3>)) {
  check_all_small_shapes<TestType>(Level::sequence);
  check_all_small_shapes<TestType>(Level::token);
}

TEMPLATE_TEST_CASE("MeoLayer computes what the reference does for many experts and features", "[meo_layer]",
                   (MeoLayer<float>), (MeoLayer<double>)) {
  check_large_batch<TestType>(Level::sequence);
  check_large_batch<TestType>(Level::token);
}

TEST_CASE("MeoLayer computes what the reference does for sizes that are multiples of nothing",
          "[meo_layer]") {
  check_odd_sizes<MeoLayer<float>>();
}

/// The same parameters as an MoE and as an MEO layer, with a batch for both.
template <class S>
struct Pair {
  explicit Pair(Level level, Index top_k) {
    test::Generator rng(51);
    merged = random_parameters<MeoLayer<S>>(test::small_layer(level, 9, 18, top_k), rng);
    input = random_input(merged, {3, 0, 1, 5}, Mode::inference, rng);
    vanilla = merged;
    vanilla.kind = Kind::moe;
  }

  Output<S> merged_output() const {
    return library_layer<MeoLayer<S>>(merged).forward(input.x, LibraryBatch<S>(input.batch).inputs());
  }
  Output<S> vanilla_output() const {
    return library_layer<MoeLayer<S>>(vanilla).forward(input.x, LibraryBatch<S>(input.batch).inputs());
  }

  Layer<S> merged, vanilla;
  RandomInput<S> input;
};

TEMPLATE_TEST_CASE("for linear experts merging first changes nothing but the rounding", "[meo_layer]", float,
                   double) {
  using S = TestType;
  for (const Level level : {Level::sequence, Level::task}) {
    for (const Index top_k : {1, 2, 4}) {
      const Pair<S> pair(level, top_k);
      const Output<S> merged = pair.merged_output(), vanilla = pair.vanilla_output();
      CHECK(merged.routing.experts == vanilla.routing.experts);
      CHECK(merged.routing.weights == vanilla.routing.weights);
      CHECK(merged.routing.loss == vanilla.routing.loss);
      Bounded<S> bound =
          mixtures(pair.merged, Bounded<S>::exact(pair.input.x), gating_of(merged.routing), pair.input.batch);
      bound.error *= 2;  // both sides round
      CHECK(test::disagreement(vanilla.y, merged.y.template cast<Wide<S>>(), bound.error) == "");
    }
  }
}

TEST_CASE("at token level MEO gates sequences and MoE tokens", "[meo_layer]") {
  Pair<double> pair(Level::token, 2);
  pair.merged.attention_up.weight.setZero();
  pair.merged.attention_up.bias.setZero();
  const auto merged = pair.merged_output(), vanilla = pair.vanilla_output();
  CHECK(merged.routing.rows == 4);
  CHECK(vanilla.routing.rows == 9);
  CHECK((merged.y - vanilla.y).cwiseAbs().maxCoeff() > 0.01);
}

TEST_CASE("a merged bias is that of the selected experts, however few they are", "[meo_layer]") {
  MeoLayer<double> layer({.in_features = 1, .out_features = 3, .num_experts = 8, .top_k = 2});
  for (Index i = 0; i < 8; ++i) layer.set_bias(i, Vector<double>::Constant(3, double(1 << i)));
  Matrix<double> gate = Matrix<double>::Constant(1, 8, -1000);
  gate(0, 2) = gate(0, 5) = 0;
  layer.gate().set_weight(gate);
  const Matrix<double> x = Matrix<double>::Ones(2, 1);
  CHECK(layer.forward(x).y == Matrix<double>::Constant(2, 3, (4 + 32) / 2.0));
}

// The problem's experts in a layer: y must have the bits of the plain chains with the layer's own routing.
TEMPLATE_TEST_CASE("MeoLayer has the bits of the plain chains", "[meo_layer]", float, double) {
  using S = TestType;
  test::Generator rng(20);
  for (const Index in_features : {4, 5, 6, 9, 10, 11, 23}) {
    for (const bool has_bias : {false, true}) {
      const std::vector<Index> lengths{3, 1, 0, 8, 2};
      test::MergedProblem<S> problem(rng, {5, 3, in_features, 35, has_bias}, lengths);
      LayerOptions options;
      options.in_features = in_features;
      options.out_features = 35;
      options.num_experts = 5;
      options.top_k = 3;
      options.bias = has_bias;
      options.merge_order = MergeOrder::merge_first;
      MeoLayer<S> layer(options);
      layer.gate().set_weight(test::random_normal<S>(rng, in_features, 5));
      for (Index e = 0; e < 5; ++e) {
        layer.set_weight(e, problem.experts.weights[std::size_t(e)]);
        if (has_bias) layer.set_bias(e, problem.experts.biases[std::size_t(e)]);
      }
      const auto output = layer.forward(problem.x, Sequences::from_lengths(lengths));
      problem.selections = {3, output.routing.experts, output.routing.weights};
      CHECK(test::bit_difference(output.y, problem.expected()) == "");
    }
  }
}

}  // namespace meo_layer_test
}  // namespace

// The reference against the authors' own results. Tolerances: tests/goldens/README.md, "Precision of the
// files"; the reference works in a wider scalar than the file, so that all of the difference is the file's.

#include "reference/reference.hpp"

#include "support/catch.hpp"
#include "support/golden.hpp"

namespace {
namespace reference_test {

using namespace meo;
using namespace meo::test;

// The file's own error in double, and of the steps that the authors round to float; a block passes through
// two layers.
constexpr double double_tolerance = 5e-16;
constexpr double rounded_output_tolerance = 1e-7;
constexpr double loss_tolerance = 4e-7;
constexpr double float_tolerance = 4e-7;

template <class S>
void check_layer(const Golden<S>& golden) {
  const bool single = std::is_same_v<S, float>;
  const double tolerance = single ? float_tolerance : double_tolerance;
  const double output_tolerance =
      !single && golden.kind() == reference::Kind::moe ? rounded_output_tolerance : tolerance;
  const auto result = reference::forward(golden.layer(), golden.matrix("x"), golden.batch());
  CHECK(result.gating.decided);
  CHECK(disagreement_in_max_norm(golden.matrix("gates"), result.gating.gates.value, tolerance) == "");
  CHECK(disagreement_in_max_norm(golden.vector("load").transpose(), result.gating.load.value, tolerance) ==
        "");
  CHECK(disagreement_in_max_norm(golden.matrix("loss"), result.gating.loss.value, loss_tolerance) == "");
  CHECK(disagreement_in_max_norm(golden.matrix("y"), result.y.value, output_tolerance) == "");
}

void check_block(const Golden<double>& golden) {
  const double tolerance =
      golden.kind() == reference::Kind::moe ? rounded_output_tolerance : 2 * double_tolerance;
  const auto result = reference::forward(golden.block(), golden.matrix("x"), golden.batch());
  CHECK(result.up.decided);
  CHECK(result.gate_up.decided);
  CHECK(result.down.decided);
  CHECK(disagreement_in_max_norm(golden.matrix("hidden"), result.hidden.value, tolerance) == "");
  CHECK(disagreement_in_max_norm(golden.matrix("y"), result.y.value, tolerance) == "");
  CHECK(disagreement_in_max_norm(golden.matrix("loss"), result.loss.value, loss_tolerance) == "");
}

TEST_CASE("all golden files are here", "[reference][golden]") {
  CHECK(golden_files().size() == 100);
  CHECK(golden_files("_ffn_").size() == 16);
}

TEST_CASE("the reference repeats every golden file", "[reference][golden]") {
  for (const auto& path : golden_files()) {
    const Golden<double> golden(path);
    INFO(golden.name());
    if (golden.is_block()) {
      check_block(golden);
    } else if (golden.is_single_precision()) {
      check_layer(Golden<float>(path));
    } else {
      check_layer(golden);
    }
  }
}

// What no golden covers, by hand. Two experts with the weights 1 and 3, inputs and outputs of one feature.
reference::Layer<double> two_experts(reference::Kind kind, Level level, Index top_k) {
  reference::Layer<double> layer;
  layer.kind = kind;
  layer.level = level;
  layer.top_k = top_k;
  for (const double weight : {1.0, 3.0}) {
    layer.experts.push_back(
        {Matrix<double>::Constant(1, 1, weight), Vector<double>::Constant(1, 10 * weight)});
  }
  layer.gate_weight = layer.noise_weight = Matrix<double>::Zero(1, 2);
  return layer;
}

reference::Batch<double> batch_of(std::vector<Index> lengths) {
  reference::Batch<double> batch;
  batch.offsets = reference::offsets_from_lengths(lengths);
  return batch;
}

TEST_CASE("the reference adds the gated bias", "[reference]") {
  const Matrix<double> x = Matrix<double>::Constant(1, 1, 2.0);
  for (const auto kind : {reference::Kind::moe, reference::Kind::meo}) {
    CHECK(reference::forward(two_experts(kind, Level::sequence, 1), x, batch_of({1})).y.value(0, 0) == 12);
    CHECK(reference::forward(two_experts(kind, Level::sequence, 2), x, batch_of({1})).y.value(0, 0) == 24);
  }
}

TEST_CASE("the reference gates a sequence without tokens by zero", "[reference]") {
  auto layer = two_experts(reference::Kind::meo, Level::sequence, 1);
  layer.gate_weight << -1, 1;
  const Matrix<double> x = Matrix<double>::Constant(2, 1, 2.0);
  const auto result = reference::forward(layer, x, batch_of({1, 0, 1}));
  CHECK(result.y.value(0, 0) == 36);
  CHECK(result.gating.selected == std::vector<std::vector<Index>>{{1}, {0}, {1}});
  CHECK(result.gating.load.value(0, 0) == 1);
  CHECK(result.gating.load.value(0, 1) == 2);
}

TEST_CASE("the reference's block with one gate merges inside or mixes outside the activation",
          "[reference]") {
  // up: 1 and 3 times x; relu; down: the same with the other sign for the second expert.
  reference::Block<double> block;
  block.shared_gate = true;
  block.activation = reference::Activation::relu;
  for (const auto kind : {reference::Kind::moe, reference::Kind::meo}) {
    block.up = block.down = two_experts(kind, Level::sequence, 2);
    for (auto* layer : {&block.up, &block.down}) {
      for (auto& expert : layer->experts) expert.bias.setZero();
    }
    block.up.experts[1].weight(0, 0) = -3;
    const Matrix<double> x = Matrix<double>::Constant(1, 1, 2.0);
    // MoE: (1 · relu(2) + 3 · relu(−6)) / 2; MEO: 2 · relu(−1 · 2).
    const double expected = kind == reference::Kind::moe ? 1 : 0;
    CHECK(reference::forward(block, x, batch_of({1})).y.value(0, 0) == expected);

    block.gated = true;
    block.gate_up = two_experts(kind, Level::sequence, 2);  // 2 + 10 and 6 + 30
    CHECK(reference::forward(block, x, batch_of({1})).y.value(0, 0) == 12 * expected);
    block.gated = false;
  }
}

TEST_CASE("the reference says when rounding could change a selection", "[reference]") {
  auto layer = two_experts(reference::Kind::moe, Level::sequence, 1);
  const Matrix<double> x = Matrix<double>::Constant(1, 1, 2.0);
  CHECK(reference::forward(layer, x, batch_of({1})).gating.decided);  // an exact tie goes to the lower index
  layer.gate_weight << 1, 1 + 0x1p-52;
  CHECK_FALSE(reference::forward(layer, x, batch_of({1})).gating.decided);
  layer.gate_weight << 1, 1.5;
  CHECK(reference::forward(layer, x, batch_of({1})).gating.decided);
}

TEST_CASE("the reference's activations have their known values", "[reference]") {
  using reference::Activation;
  const Bounded<double> x = Bounded<double>::exact(Matrix<double>::Constant(1, 1, -0.75));
  const auto at = [&](Activation activation) { return double(activate(activation, x).value(0, 0)); };
  CHECK(at(Activation::relu) == 0);
  CHECK(at(Activation::identity) == -0.75);
  CHECK(std::abs(at(Activation::silu) - -0.24061597561845527) < 1e-15);
  CHECK(std::abs(at(Activation::gelu) - -0.16997051428265114) < 1e-15);
  CHECK(std::abs(at(Activation::gelu_tanh) - -0.17003944483437966) < 1e-15);
}

}  // namespace reference_test
}  // namespace

// What MoE and MEO layers have in common, as properties: what must be equal, to the bit or to rounding, and
// what must not.

#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include <meo/layers/meo_layer.hpp>
#include <meo/layers/mixture_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "kernels/threads.hpp"
#include "reference/library.hpp"
#include "reference/random_layer.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace mixture_layer_test {

using namespace meo;
using namespace meo::test;
using reference::Mode;
using reference::random_input;
using reference::RandomInput;

#define MEO_LAYERS (MoeLayer<float>), (MoeLayer<double>), (MeoLayer<float>), (MeoLayer<double>)

/// Four experts, 9 → 18 features.
LayerOptions options_at(Level level, Index top_k = 2) { return small_layer(level, 9, 18, top_k); }

/// A random layer with a batch for it, in the reference's types and in the library's.
template <class Library>
struct Case {
  using S = typename Library::Scalar;
  using Lengths = std::vector<Index>;

  explicit Case(const LayerOptions& options, const Lengths& lengths = {3, 0, 1, 5},
                Mode mode = Mode::inference, std::uint64_t seed = 21)
      : rng(seed),
        layer(reference::random_parameters<Library>(options, rng)),
        input(random_input(layer, lengths, mode, rng)),
        library(reference::library_layer<Library>(layer, options.merge_order)),
        batch(input.batch) {}
  Case(const Case&) = delete;

  Output<S> forward() const { return library.forward(input.x, batch.inputs()); }

  Generator rng;
  reference::Layer<S> layer;
  RandomInput<S> input;
  Library library;
  reference::LibraryBatch<S> batch;
};

/// Orders of merging whose bits are not all those of combined outputs.
template <class Library>
std::vector<MergeOrder> orders_that_merge() {
  if (reference::KindOf<Library>::value == reference::Kind::moe) return {MergeOrder::automatic};
  return {MergeOrder::automatic, MergeOrder::merge_first};
}

template <class S>
std::string difference(const Routing<S>& a, const Routing<S>& b) {
  if (a.rows != b.rows || a.num_experts != b.num_experts || a.top_k != b.top_k) return "sizes differ";
  if (a.experts != b.experts) return "experts differ";
  if (a.weights != b.weights) return "weights differ";
  if (a.importance != b.importance || a.load != b.load || a.loss != b.loss) return "loss differs";
  return "";
}

template <class S>
std::string difference(const Output<S>& a, const Output<S>& b) {
  const std::string y = bit_difference(a.y, b.y);
  return y != "" ? y : difference(a.routing, b.routing);
}

/// The rows x through one dense projection; a mixture of equal experts is within this of it, as its weights
/// sum to one within γ_{K+2}.
template <class S>
Bounded<S> dense(const Bounded<S>& x, const reference::Affine<S>& affine, Index top_k) {
  Bounded<S> y = affine(x);
  Matrix<Wide<S>> magnitude =
      times_transposed(x.magnitude(), affine.weight.cwiseAbs().template cast<Wide<S>>());
  if (affine.bias.size() != 0) {
    magnitude.rowwise() += affine.bias.cwiseAbs().transpose().template cast<Wide<S>>();
  }
  y.error += gamma<S>(2 * top_k + 4) * magnitude;
  return y;
}

TEMPLATE_TEST_CASE("one selected expert is that expert, with weight one", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    const Case<TestType> c(options_at(level, 1));
    const auto [y, routing] = c.forward();
    for (const S weight : routing.weights) CHECK(weight == 1);
    const auto rows = reference::gated_rows(c.layer, c.input.batch);
    const Bounded<S> x = reference::attended(c.layer, Bounded<S>::exact(c.input.x));
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const auto& expert = c.layer.experts[std::size_t(routing.row_experts(Index(r))[0])];
      const Bounded<S> expected = dense(x.middle_rows(rows[r].begin, rows[r].count()), expert, 1);
      CHECK(disagreement(y.middleRows(rows[r].begin, rows[r].count()), expected) == "");
    }
  }
}

TEMPLATE_TEST_CASE("with every expert selected all carry the same load", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    for (const Mode mode : {Mode::inference, Mode::training}) {
      const Case<TestType> c(options_at(level, 4), {3, 0, 1, 5}, mode);
      const auto [y, routing] = c.forward();
      CHECK(routing.load == std::vector<S>(4, S(routing.rows)));
      CHECK((routing.dense().array() > 0).all());
    }
  }
}

TEMPLATE_TEST_CASE("equal experts are one dense projection", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    Case<TestType> c(options_at(level, 3));
    const reference::Affine<S> expert = c.layer.experts[0];
    for (Index i = 1; i < 4; ++i) {
      c.library.set_weight(i, expert.weight);
      c.library.set_bias(i, expert.bias);
    }
    const Bounded<S> x = reference::attended(c.layer, Bounded<S>::exact(c.input.x));
    CHECK(disagreement(c.forward().y, dense(x, expert, 3)) == "");
  }
}

TEMPLATE_TEST_CASE("a layer started from a dense one computes what that did", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    for (const bool bias : {true, false}) {
      LayerOptions options = options_at(level, 3);
      options.bias = bias;
      Case<TestType> c(options);
      const reference::Affine<S> expert = reference::random_affine<S>(c.rng, 9, 18, bias);
      if (bias) {
        c.library.initialize_from_dense(expert.weight, expert.bias);
      } else {
        c.library.initialize_from_dense(expert.weight);
      }
      const auto [y, routing] = c.forward();
      CHECK(disagreement(y, dense(Bounded<S>::exact(c.input.x), expert, 3)) == "");
      for (Index r = 0; r < routing.rows; ++r) {
        const auto experts = routing.row_experts(r);
        CHECK(std::vector<Index>(experts.begin(), experts.end()) == std::vector<Index>{0, 1, 2});
      }
      for (const S weight : routing.weights) CHECK(weight == S(1) / S(3));
      CHECK(c.library.weight(3) == expert.weight);
      CHECK(c.library.gate().noise_weight().isZero(0));
    }
  }
}

TEMPLATE_TEST_CASE("random start values lie within one over the square root of the inputs", "[routed_layer]",
                   MEO_LAYERS) {
  using S = typename TestType::Scalar;
  // Within ±1/√inputs, and not all near zero.
  const auto check_uniform = [](const auto& values, Index inputs) {
    const S limit = S(1 / std::sqrt(double(inputs)));
    CHECK(values.cwiseAbs().maxCoeff() <= limit);
    CHECK(values.cwiseAbs().maxCoeff() > limit / 4);
  };
  for (const Level level : all_levels) {
    INFO(to_string(level) << " level");
    TestType layer = Case<TestType>(options_at(level)).library;  // nothing of it is zero
    TestType again(options_at(level));
    std::mt19937_64 rng(5), same(5);
    layer.initialize(rng);
    again.initialize(same);
    for (Index i = 0; i < 4; ++i) {
      CHECK(layer.weight(i).cwiseAbs().maxCoeff() <= S(1.0 / 3));
      CHECK(layer.weight(i).cwiseAbs().maxCoeff() > S(0.3));
      CHECK(layer.bias(i).cwiseAbs().maxCoeff() <= S(1.0 / 3));
      CHECK(layer.bias(i).cwiseAbs().maxCoeff() > S(0.2));
      CHECK(layer.weight(i) == again.weight(i));
      CHECK(layer.bias(i) == again.bias(i));
      for (Index j = 0; j < i; ++j) CHECK(layer.weight(i) != layer.weight(j));
    }
    CHECK(layer.gate().weight() == again.gate().weight());
    check_uniform(layer.gate().weight(), level == Level::task ? 3 : 9);
    CHECK(layer.gate().noise_weight().isZero(0));
    if (level == Level::task) {
      check_uniform(layer.task_projection().weight(), small_task_features);
      check_uniform(layer.task_projection().bias(), small_task_features);
    }
    if constexpr (reference::KindOf<TestType>::value == reference::Kind::meo) {
      if (level != Level::token) continue;
      check_uniform(layer.token_attention().down().weight(), 9);
      check_uniform(layer.token_attention().down().bias(), 9);
      CHECK(layer.token_attention().up().weight().isZero(0));
      CHECK(layer.token_attention().up().bias().isZero(0));
    }
  }
}

TEMPLATE_TEST_CASE("parameters come back as they were set", "[routed_layer]", MEO_LAYERS) {
  for (const Level level : all_levels) {
    const Case<TestType> c(options_at(level));
    for (Index i = 0; i < 4; ++i) {
      CHECK(c.library.weight(i) == c.layer.experts[std::size_t(i)].weight);
      CHECK(c.library.bias(i) == c.layer.experts[std::size_t(i)].bias);
    }
    CHECK(c.library.gate().weight() == c.layer.gate_weight);
    CHECK(c.library.gate().noise_weight() == c.layer.noise_weight);
    if (level == Level::task) CHECK(c.library.task_projection().weight() == c.layer.task_projection.weight);
    if constexpr (reference::KindOf<TestType>::value == reference::Kind::meo) {
      if (level == Level::token) {
        CHECK(c.library.token_attention().down().weight() == c.layer.attention_down.weight);
        CHECK(c.library.token_attention().up().bias() == c.layer.attention_up.bias);
      }
    }
  }
}

TEMPLATE_TEST_CASE("an expert that nobody selects is never touched", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  constexpr S nan = std::numeric_limits<S>::quiet_NaN();
  for (const Level level : all_levels) {
    Case<TestType> c(options_at(level, 1), {1, 0, 1});
    const Output<S> before = c.forward();
    int unselected = 0;
    for (Index i = 0; i < 4; ++i) {
      if (before.routing.importance[std::size_t(i)] != 0) continue;
      ++unselected;
      c.library.set_weight(i, Matrix<S>::Constant(18, 9, nan));
      c.library.set_bias(i, Vector<S>::Constant(18, nan));
    }
    REQUIRE(unselected > 0);
    CHECK(difference(c.forward(), before) == "");
  }
}

TEMPLATE_TEST_CASE("a batch without tokens or sequences has an empty result", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    for (const Mode mode : {Mode::inference, Mode::training}) {
      const Case<TestType> nothing(options_at(level), {}, mode);
      Inputs<S> inputs = nothing.batch.inputs();
      const Matrix<S> no_noise(0, 4);
      if (mode == Mode::training) inputs.noise = Noise<S>(no_noise);
      const auto output = nothing.library.forward(nothing.input.x, inputs);
      CHECK(output.y.rows() == 0);
      CHECK(output.y.cols() == 18);
      CHECK(output.routing.rows == 0);
      CHECK(output.routing.importance == std::vector<S>(4, S(0)));
      CHECK(output.routing.load == std::vector<S>(4, S(0)));
      CHECK(output.routing.loss == 0);
    }
    const Case<TestType> empty(options_at(level), {0, 0});
    const auto [y, routing] = empty.forward();
    CHECK(y.rows() == 0);
    CHECK(routing.rows == (empty.layer.gates_tokens() ? 0 : 2));
  }
}

TEMPLATE_TEST_CASE("without offsets all rows are one sequence", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : {Level::token, Level::sequence}) {
    for (const Index tokens : {0, 1, 6}) {
      const Case<TestType> c(options_at(level), {tokens});
      const Output<S> expected = c.forward();
      CHECK(difference(c.library.forward(c.input.x), expected) == "");
      CHECK(difference(c.library.forward(c.input.x, c.batch.sequences()), expected) == "");
      CHECK(expected.y.rows() == tokens);
    }
  }
}

TEMPLATE_TEST_CASE("a sequence without tokens is gated by zero", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : {Level::token, Level::sequence}) {
    const Case<TestType> c(options_at(level, 3), {2, 0, 3});
    if (c.layer.gates_tokens()) continue;
    const auto [y, routing] = c.forward();
    const auto experts = routing.row_experts(1);
    CHECK(std::vector<Index>(experts.begin(), experts.end()) == std::vector<Index>{0, 1, 2});
    for (const S weight : routing.row_weights(1)) CHECK(weight == S(1) / S(3));
    CHECK(y.allFinite());
    CHECK(std::isfinite(routing.loss));
  }
}

// Integers and lengths that are powers of two: all logits are exact in any order, and many of them are equal.
TEMPLATE_TEST_CASE("ties go to the expert of lower index", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : {Level::token, Level::sequence}) {
    Case<TestType> c(options_at(level), {1, 2, 4, 1, 1, 2, 1, 8, 1, 1, 1, 1});
    c.layer.gate_weight = random_integers<S>(c.rng, 9, 4, 1);
    c.layer.gate_weight.col(2) = c.layer.gate_weight.col(0);
    c.layer.gate_weight.col(3) = c.layer.gate_weight.col(1);
    if (c.layer.has_attention()) {
      c.layer.attention_down.weight = random_integers<S>(c.rng, 4, 9, 1);
      c.layer.attention_down.bias = random_integers<S>(c.rng, 4, 1, 1);
      c.layer.attention_up.weight = random_integers<S>(c.rng, 9, 4, 1);
      c.layer.attention_up.bias = random_integers<S>(c.rng, 9, 1, 1);
    }
    c.input.x = random_integers<S>(c.rng, c.input.x.rows(), 9, 1);
    reference::set_parameters(c.library, c.layer);
    reference::check_forward(c.library, c.layer, c.input.x, c.input.batch);

    const auto routing = c.forward().routing;
    for (Index r = 0; r < routing.rows; ++r) {  // the equal pairs stand together, or all four are equal
      const Index first = routing.row_experts(r)[0], second = routing.row_experts(r)[1];
      CHECK(first < 2);
      CHECK((second == first + 2 || (first == 0 && second == 1)));
    }
  }
}

TEMPLATE_TEST_CASE("the weight of a selected expert may underflow to zero", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : {Level::token, Level::sequence}) {
    Case<TestType> c(options_at(level, 3), {1, 4});
    c.input.x.setConstant(1);
    if (c.layer.has_attention()) {
      c.layer.attention_up.weight.setZero();
      c.layer.attention_up.bias.setZero();
    }
    c.layer.gate_weight.setZero();
    c.layer.gate_weight.row(0) << -2000, -1000, 1000, -3000;
    reference::set_parameters(c.library, c.layer);
    const auto [y, routing] = c.forward();
    for (Index r = 0; r < routing.rows; ++r) {
      const auto experts = routing.row_experts(r);
      CHECK(std::vector<Index>(experts.begin(), experts.end()) == std::vector<Index>{2, 1, 0});
      CHECK(routing.row_weights(r)[0] == 1);
      CHECK(routing.row_weights(r)[1] == 0);
      CHECK(routing.row_weights(r)[2] == 0);
    }
    CHECK(disagreement(y, dense(Bounded<S>::exact(c.input.x), c.layer.experts[2], 3)) == "");
    CHECK(routing.load == std::vector<S>{S(routing.rows), S(routing.rows), S(routing.rows), S(0)});
    CHECK(std::isfinite(routing.loss));
  }
}

TEMPLATE_TEST_CASE("strides of the arguments change no bit", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  constexpr S nan = std::numeric_limits<S>::quiet_NaN();
  for (const Level level : all_levels) {
    for (const Mode mode : {Mode::inference, Mode::training}) {
      const Case<TestType> c(options_at(level), {3, 0, 1, 5}, mode);
      const Output<S> expected = c.forward();

      Matrix<S> around_x = Matrix<S>::Constant(9 + 2, 9 + 4, nan);
      around_x.block(1, 3, 9, 9) = c.input.x;
      const Matrix<S>& embeddings = c.input.batch.task_embeddings;
      Matrix<S> around_embeddings = Matrix<S>::Constant(embeddings.rows() + 2, embeddings.cols() + 3, nan);
      around_embeddings.block(1, 1, embeddings.rows(), embeddings.cols()) = embeddings;
      const Matrix<S>& noise = c.input.batch.noise;
      Matrix<S> around_noise = Matrix<S>::Constant(noise.rows() + 1, noise.cols() + 3, nan);
      around_noise.block(0, 2, noise.rows(), noise.cols()) = noise;

      Inputs<S> inputs = c.batch.inputs();
      if (level == Level::task) {
        inputs.task_embeddings = around_embeddings.block(1, 1, embeddings.rows(), embeddings.cols());
      }
      const auto noise_block = around_noise.block(0, 2, noise.rows(), noise.cols());
      if (mode == Mode::training) inputs.noise = Noise<S>(noise_block);

      Matrix<S> around_y = Matrix<S>::Constant(9 + 2, 18 + 5, S(7));
      around_y.block(1, 3, 9, 18).setConstant(nan);
      Workspace<S> workspace;
      const auto& routing =
          c.library.forward(around_x.block(1, 3, 9, 9), inputs, around_y.block(1, 3, 9, 18), workspace);
      CHECK(bit_difference(around_y.block(1, 3, 9, 18), expected.y) == "");
      CHECK(difference(routing, expected.routing) == "");
      around_y.block(1, 3, 9, 18).setConstant(S(7));
      CHECK((around_y.array() == S(7)).all());

      const Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic> by_columns = c.input.x;
      CHECK(difference(c.library.forward(by_columns, c.batch.inputs()), expected) == "");
    }
  }
}

TEMPLATE_TEST_CASE("one workspace serves any layers and batches in any order", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  Workspace<S> workspace;
  for (const Level level : all_levels) {
    for (const auto& lengths : {std::vector<Index>{3, 0, 1, 5}, {20, 13, 7, 1, 1, 1}, {2}, {}, {1, 1, 1}}) {
      for (const Mode mode : {Mode::training, Mode::inference}) {
        for (const Index top_k : {4, 1}) {
          const Case<TestType> c(options_at(level, top_k), lengths, mode);
          Matrix<S> y = Matrix<S>::Constant(c.input.x.rows(), 18, std::numeric_limits<S>::quiet_NaN());
          const auto& routing = c.library.forward(c.input.x, c.batch.inputs(), y, workspace);
          const Output<S> expected = c.forward();
          CHECK(bit_difference(y, expected.y) == "");
          CHECK(difference(routing, expected.routing) == "");
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("copies and moved layers compute what the original did", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    Case<TestType> c(options_at(level));
    const Output<S> expected = c.forward();
    const auto run = [&](const TestType& layer) { return layer.forward(c.input.x, c.batch.inputs()); };

    TestType copy = c.library;
    std::mt19937_64 rng(3);
    c.library.initialize(rng);
    CHECK(difference(run(copy), expected) == "");
    CHECK(difference(run(c.library), expected) != "");

    TestType moved = std::move(copy);
    CHECK(difference(run(moved), expected) == "");

    TestType assigned(options_at(level, 1));
    assigned = moved;
    CHECK(difference(run(assigned), expected) == "");
    moved.initialize(rng);
    CHECK(difference(run(assigned), expected) == "");

    TestType move_assigned(options_at(Level::sequence, 1));
    move_assigned = std::move(assigned);
    CHECK(difference(run(move_assigned), expected) == "");

    std::vector<TestType> several;
    several.push_back(std::move(move_assigned));
    for (int i = 0; i < 5; ++i) several.emplace_back(options_at(level));
    CHECK(difference(run(several.front()), expected) == "");
    CHECK(several.front().options() == c.library.options());
  }
}

TEMPLATE_TEST_CASE("sequences in another order give the same bits in that order", "[routed_layer]",
                   MEO_LAYERS) {
  using S = typename TestType::Scalar;
  const MergeOrder order_of_merging = GENERATE(from_range(orders_that_merge<TestType>()));
  for (const Level level : all_levels) {
    for (const Mode mode : {Mode::inference, Mode::training}) {
      LayerOptions options = options_at(level);
      options.merge_order = order_of_merging;
      const Case<TestType> c(options, {3, 0, 1, 25, 3, 17}, mode);
      const Output<S> expected = c.forward();
      const auto& batch = c.input.batch;

      for (const auto& order :
           {std::vector<Index>{4, 2, 0, 5, 3, 1}, {5, 4, 3, 2, 1, 0}, {1, 2, 3, 4, 5, 0}}) {
        reference::Batch<S> permuted = batch;
        std::vector<Index> lengths, rows;
        for (const Index b : order) {
          lengths.push_back(batch.sequence(b).count());
          for (Index t = batch.sequence(b).begin; t < batch.sequence(b).end; ++t) rows.push_back(t);
        }
        permuted.offsets = reference::offsets_from_lengths(lengths);
        if (level == Level::task) permuted.task_of_sequence = order;
        const std::vector<Index>& gate_rows = c.layer.gates_tokens() ? rows : order;
        if (mode == Mode::training) permuted.noise = batch.noise(gate_rows, Eigen::all);

        const Matrix<S> x = c.input.x(rows, Eigen::all);
        const auto output = c.library.forward(x, reference::LibraryBatch<S>(permuted).inputs());
        CHECK(bit_difference(output.y, Matrix<S>(expected.y(rows, Eigen::all))) == "");
        CHECK(bit_difference(output.routing.dense(),
                             Matrix<S>(expected.routing.dense()(gate_rows, Eigen::all))) == "");
      }
    }
  }
}

TEMPLATE_TEST_CASE("a sequence alone gives the bits that it gives in a batch", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  const MergeOrder order_of_merging = GENERATE(from_range(orders_that_merge<TestType>()));
  for (const Level level : all_levels) {
    for (const Mode mode : {Mode::inference, Mode::training}) {
      LayerOptions options = options_at(level);
      options.merge_order = order_of_merging;
      const Case<TestType> c(options, {3, 0, 1, 25, 3, 2, 17}, mode);
      const Output<S> expected = c.forward();
      for (Index b = 0; b < 7; ++b) {
        const reference::Rows rows = c.input.batch.sequence(b);
        const reference::Rows gate_rows = c.layer.gates_tokens() ? rows : reference::Rows{b, b + 1};
        Inputs<S> inputs;
        if (level == Level::task) {
          const reference::Rows description = c.input.batch.description(b);
          inputs.task_embeddings =
              c.input.batch.task_embeddings.middleRows(description.begin, description.count());
        }
        const Matrix<S>& noise = c.input.batch.noise;
        if (mode == Mode::training) {
          inputs.noise = Noise<S>(noise.middleRows(gate_rows.begin, gate_rows.count()));
        }
        const auto alone = c.library.forward(c.input.x.middleRows(rows.begin, rows.count()), inputs);
        CHECK(bit_difference(alone.y, expected.y.middleRows(rows.begin, rows.count())) == "");
        CHECK(bit_difference(
                  alone.routing.dense(),
                  expected.routing.dense().middleRows(gate_rows.begin, gate_rows.count()).eval()) == "");
      }
    }
  }
}

TEMPLATE_TEST_CASE("sequences of one task share its gate", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  Case<TestType> c(options_at(Level::task), {3, 0, 2, 5, 1});
  reference::Batch<S> batch = c.input.batch;
  batch.task_of_sequence = {1, 0, 1, 1, 0};
  batch.description_offsets = {0, 2, 3};
  batch.task_embeddings = random_matrix<S>(c.rng, 3, small_task_features);
  reference::check_forward(c.library, c.layer, c.input.x, batch);

  const reference::LibraryBatch<S> shared(batch);
  const auto routing = c.library.forward(c.input.x, shared.inputs()).routing;
  CHECK(bit_difference(routing.dense().row(0), routing.dense().row(2)) == "");
  CHECK(bit_difference(routing.dense().row(1), routing.dense().row(4)) == "");
  CHECK(bit_difference(routing.dense().row(0), routing.dense().row(1)) != "");

  SECTION("one description serves all sequences") {
    Inputs<S> inputs;
    inputs.sequences = &shared.sequences();
    inputs.task_embeddings = batch.task_embeddings;
    const auto one = c.library.forward(c.input.x, inputs);
    batch.description_offsets = {0, 3};
    batch.task_of_sequence = {0, 0, 0, 0, 0};
    const reference::LibraryBatch<S> single(batch);
    CHECK(difference(one, c.library.forward(c.input.x, single.inputs())) == "");
  }
  SECTION("without a list, description b is that of sequence b") {
    Inputs<S> inputs = c.batch.inputs();
    inputs.task_of_sequence = {};
    CHECK(difference(c.library.forward(c.input.x, inputs), c.forward()) == "");
  }
}

TEMPLATE_TEST_CASE("noise from a generator is the same noise given as a matrix", "[routed_layer]",
                   MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    const Case<TestType> c(options_at(level));
    const Output<S> quiet = c.forward();
    std::mt19937_64 rng(31), same(31), other(32);
    Inputs<S> inputs = c.batch.inputs();
    inputs.noise = Noise<S>(rng);
    const Output<S> drawn = c.library.forward(c.input.x, inputs);
    const Matrix<S> noise = draw_noise<S>(quiet.routing.rows, 4, same);
    inputs.noise = Noise<S>(noise);
    CHECK(difference(c.library.forward(c.input.x, inputs), drawn) == "");
    inputs.noise = Noise<S>(other);
    CHECK(difference(c.library.forward(c.input.x, inputs), drawn) != "");
    CHECK(difference(quiet, drawn) != "");
  }
}

TEMPLATE_TEST_CASE("the gate's decision and what is made of it are forward's, to the bit", "[routed_layer]",
                   MEO_LAYERS) {
  using S = typename TestType::Scalar;
  const MergeOrder order_of_merging = GENERATE(from_range(orders_that_merge<TestType>()));
  for (const Level level : all_levels) {
    for (const bool gate_before_attention : {false, true}) {
      for (const Mode mode : {Mode::inference, Mode::training}) {
        INFO(to_string(level) << " level, gate before attention " << gate_before_attention);
        LayerOptions options = options_at(level);
        options.routing.gate_before_attention = gate_before_attention;
        options.merge_order = order_of_merging;
        const Case<TestType> c(options, {3, 0, 1, 5, 25}, mode);
        const Output<S> expected = c.forward();
        Workspace<S> of_gate, of_experts;
        const Routing<S>& routing = c.library.route(c.input.x, c.batch.inputs(), of_gate);
        CHECK(difference(routing, expected.routing) == "");

        const Inputs<S> sequences{.sequences = &c.batch.sequences()};
        Matrix<S> y = Matrix<S>::Constant(34, 18, std::numeric_limits<S>::quiet_NaN());
        c.library.forward_routed(c.input.x, sequences, routing, y, of_experts);
        CHECK(bit_difference(y, expected.y) == "");
        y.setConstant(std::numeric_limits<S>::quiet_NaN());
        c.library.forward_routed(c.input.x, sequences, routing, y, of_gate);  // its own workspace's
        CHECK(bit_difference(y, expected.y) == "");
      }
    }
  }
}

TEMPLATE_TEST_CASE("a description without tokens has a mean of zero, of which p is left", "[routed_layer]",
                   MEO_LAYERS) {
  using S = typename TestType::Scalar;
  const Case<TestType> c(options_at(Level::task), {3, 2});
  reference::Batch<S> batch = c.input.batch;
  batch.description_offsets = {0, 0, 1};
  batch.task_embeddings = Matrix<S>::Zero(1, small_task_features);  // whose mean is zero as well
  reference::check_forward(c.library, c.layer, c.input.x, batch);
  const reference::LibraryBatch<S> two(batch);
  const auto gates = c.library.forward(c.input.x, two.inputs()).routing.dense();
  CHECK(bit_difference(gates.row(0), gates.row(1)) == "");
}

TEMPLATE_TEST_CASE("the expert count may be part of the type or not", "[routed_layer]", float, double) {
  using S = TestType;
  for (const Level level : all_levels) {
    const Case<MeoLayer<S>> dynamic_meo(options_at(level));
    const Case<MeoLayer<S, 4>> static_meo(options_at(level));
    CHECK(difference(dynamic_meo.forward(), static_meo.forward()) == "");
    const Case<MoeLayer<S>> dynamic_moe(options_at(level));
    const Case<MoeLayer<S, 4>> static_moe(options_at(level));
    CHECK(difference(dynamic_moe.forward(), static_moe.forward()) == "");
  }
  LayerOptions options = options_at(Level::sequence);
  options.num_experts = 0;
  CHECK(MeoLayer<S, 4>(options).num_experts() == 4);
  CHECK(MeoLayer<S, 4>(options).options().num_experts == 4);
}

TEMPLATE_TEST_CASE("the number of threads changes no bit", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    LayerOptions options = options_at(level);
    options.out_features = 150;
    const Case<TestType> c(options, {3, 0, 1, 25, 3, 40});
    const Output<S> expected = c.forward();  // with as many threads as there are cores
    with_threads([&](Index threads) {
      INFO("level " << to_string(level) << ", " << threads << " threads");
      CHECK(difference(c.forward(), expected) == "");
    });
  }
}

}  // namespace mixture_layer_test
}  // namespace

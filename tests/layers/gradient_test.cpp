// Gradients of layers against central differences of the reference, and the identities that they obey.

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "kernels/threads.hpp"
#include "reference/check_differences.hpp"
#include "reference/gradient_case.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace gradient_test {

using namespace meo;
using namespace meo::test;

using reference::flat;
template <class Library>
using Case = reference::GradientCase<Library>;

LayerOptions small_options(Level level, Index top_k) { return small_layer(level, 5, 7, top_k); }

TEMPLATE_TEST_CASE("a layer's gradients are the differences of its loss", "[gradient]", MoeLayer<double>,
                   (MeoLayer<double, 4>)) {
  Generator rng(31);
  for (const Level level : all_levels) {
    for (const Index top_k : {1, 2, 4}) {
      for (const auto mode : {reference::Mode::inference, reference::Mode::training}) {
        for (const bool gate_before_attention : {false, true}) {
          if (gate_before_attention && level != Level::token) continue;
          LayerOptions options = small_options(level, top_k);
          options.routing.gate_before_attention = gate_before_attention;
          INFO("level " << to_string(level) << ", K " << top_k << ", training "
                        << (mode == reference::Mode::training) << ", gate before attention "
                        << gate_before_attention);
          const Case<TestType> c(options, {3, 0, 1, 4}, mode, rng);
          reference::check_differences(c.library(), c.parameters, c.input, c.dy);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("they are so without biases, and with biases where 2 K < N, which no golden file has",
                   "[gradient]", MoeLayer<double>, MeoLayer<double>) {
  Generator rng(39);
  for (const Level level : {Level::token, Level::sequence}) {
    for (const bool bias : {false, true}) {
      LayerOptions options = small_options(level, 2);
      options.num_experts = 6;
      options.bias = bias;
      INFO("level " << to_string(level) << ", bias " << bias);
      const Case<TestType> c(options, {3, 0, 1, 4}, reference::Mode::training, rng);
      reference::check_differences(c.library(), c.parameters, c.input, c.dy);
    }
  }
}

/// The gradients of the vanilla mixture with the same parameters.
auto vanilla_backward(const Case<MeoLayer<double>>& c) {
  reference::Layer<double> vanilla = c.parameters;
  vanilla.kind = reference::Kind::moe;
  return reference::backward(reference::library_layer<MoeLayer<double>>(vanilla), vanilla, c.input.x,
                             c.input.batch, c.dy);
}

TEST_CASE("merging without a non-linearity inside has the vanilla mixture's gradients", "[gradient]") {
  Generator rng(32);
  for (const Level level : {Level::sequence, Level::task}) {
    for (const Index top_k : {1, 3, 4}) {
      for (const auto mode : {reference::Mode::inference, reference::Mode::training}) {
        LayerOptions options = small_options(level, top_k);
        options.in_features = 37;
        options.out_features = 41;
        const Case<MeoLayer<double>> merged(options, {3, 0, 130, 1, 6}, mode, rng);
        // Sums of up to 140 · 41 products of numbers below 1, of which the largest stay near 10.
        CHECK(disagreement_in_max_norm(flat(merged.backward(merged.dy)), flat(vanilla_backward(merged)),
                                       1e-12) == "");
      }
    }
  }
}

TEMPLATE_TEST_CASE("gradients are linear in those of y and of the loss, and accumulate", "[gradient]",
                   MoeLayer<double>, MeoLayer<double>) {
  Generator rng(33);
  for (const Level level : all_levels) {
    const Case<TestType> c(small_options(level, 2), {3, 0, 1, 4}, reference::Mode::training, rng);
    reference::check_linear(c, rng);
  }
}

TEMPLATE_TEST_CASE("gradients have the same bits for any number of threads", "[gradient]", MoeLayer<float>,
                   MeoLayer<float>, MoeLayer<double>, MeoLayer<double>) {
  Generator rng(34);
  for (const Level level : all_levels) {
    for (const auto mode : {reference::Mode::inference, reference::Mode::training}) {
      LayerOptions options = small_options(level, 2);
      options.in_features = 83;
      options.out_features = 301;
      INFO("level " << to_string(level) << ", training " << (mode == reference::Mode::training));
      const Case<TestType> c(options, {3, 0, 1, 40}, mode, rng);
      const auto expected = flat(c.backward(c.dy));
      with_threads([&](Index threads) {
        INFO(threads << " threads");
        CHECK(bit_difference(flat(c.backward(c.dy)), expected) == "");
      });
    }
  }
}

/// Gradients of a forward whose routing came from elsewhere.
template <class Library>
struct RoutedGradients {
  using S = typename Library::Scalar;
  reference::Gradients<reference::Layer<S>, S> gradients;
  std::vector<S> weights;  // R × K

  RoutedGradients(const Case<Library>& c, const Routing<S>& routing) : weights(routing.weights.size(), S(0)) {
    const Library library = c.library();
    const reference::LibraryBatch<S> batch(c.input.batch);
    Library sums(library.options());
    Context<S> context;
    Matrix<S> y(c.dy.rows(), c.dy.cols());
    gradients.x.resize(c.input.x.rows(), c.input.x.cols());
    library.forward_routed(c.input.x, batch.inputs(), routing, y, context);
    library.backward_routed(c.input.x, batch.inputs(), routing, context, c.dy, sums, gradients.x, weights);
    gradients.parameters = reference::parameters_of(sums, c.parameters);
  }
};

TEMPLATE_TEST_CASE("gradients are those with the routing given, and of the gate", "[gradient]",
                   MoeLayer<double>, MeoLayer<double>) {
  Generator rng(40);
  for (const Level level : all_levels) {
    for (const auto mode : {reference::Mode::inference, reference::Mode::training}) {
      INFO("level " << to_string(level) << ", training " << (mode == reference::Mode::training));
      const Case<TestType> c(small_options(level, 2), {3, 0, 1, 4}, mode, rng);
      const TestType library = c.library();
      const reference::LibraryBatch<double> batch(c.input.batch);
      Context<double> context;
      Matrix<double> y(c.dy.rows(), c.dy.cols()), dx(c.input.x.rows(), c.input.x.cols());
      const Routing<double> routing = library.forward(c.input.x, batch.inputs(), y, context);
      const RoutedGradients<TestType> routed(c, routing);
      TestType gradients(library.options());
      library.backward(c.input.x, batch.inputs(), context, Matrix<double>::Zero(y.rows(), y.cols()),
                       gradients, dx, 1, routed.weights);
      const reference::Gradients<reference::Layer<double>, double> of_gate{
          reference::parameters_of(gradients, c.parameters), dx, {}};
      auto expected = c.backward(c.dy);
      CHECK(disagreement_in_max_norm(context.task_embeddings_gradient(), expected.task_embeddings, 1e-13) ==
            "");
      expected.task_embeddings.resize(0, 0);
      CHECK(disagreement_in_max_norm(Matrix<double>(flat(routed.gradients) + flat(of_gate)), flat(expected),
                                     1e-13) == "");
    }
  }
}

TEST_CASE("weights of a routing from elsewhere have a gradient a row, whether they are equal or not",
          "[gradient]") {
  Generator rng(41);
  for (const Level level : {Level::sequence, Level::task}) {
    for (const Index top_k : {1, 2}) {
      INFO("level " << to_string(level) << ", K " << top_k);
      Case<MeoLayer<double>> merged(small_options(level, top_k), {3, 2, 4, 1}, reference::Mode::inference,
                                    rng);
      if (level == Level::task) merged.input.batch.task_of_sequence = {1, 0, 1, 1};
      Case<MoeLayer<double>> vanilla(small_options(level, top_k), {3, 2, 4, 1}, reference::Mode::inference,
                                     rng);
      vanilla.parameters = merged.parameters;
      vanilla.parameters.kind = reference::Kind::moe;
      vanilla.input = merged.input;
      vanilla.dy = merged.dy;
      Routing<double> routing;
      routing.rows = 4;
      routing.num_experts = 4;
      routing.top_k = top_k;
      for (Index b = 0; b < 4; ++b) {
        for (Index i = 0; i < top_k; ++i) {
          routing.experts.push_back(3 - 2 * i);
          routing.weights.push_back(b == 1 ? 0.25 : 1.5);
        }
      }
      const RoutedGradients<MeoLayer<double>> actual(merged, routing);
      const RoutedGradients<MoeLayer<double>> expected(vanilla, routing);
      CHECK(disagreement_in_max_norm(reference::row_of(actual.weights), reference::row_of(expected.weights),
                                     1e-13) == "");
      CHECK(disagreement_in_max_norm(flat(actual.gradients), flat(expected.gradients), 1e-13) == "");
    }
  }
}

TEST_CASE("gradients of noise are of the forward's noise, whatever backward is given", "[gradient]") {
  Generator rng(42);
  // Zero gates and noise that is the same for all experts: tasks with equal weights, but not with equal
  // noise.
  LayerOptions options = small_options(Level::task, 2);
  options.num_experts = 2;
  Case<MeoLayer<double>> c(options, {3, 2}, reference::Mode::training, rng);
  c.parameters.gate_weight.setZero();
  c.parameters.noise_weight.setZero();
  c.input.batch.task_of_sequence = {1, 1};
  c.input.batch.noise << 0.5, 0.5, -2, -2;
  const auto expected = vanilla_backward(c);

  const MeoLayer<double> library = c.library();
  const reference::LibraryBatch<double> batch(c.input.batch);
  Inputs<double> inputs = batch.inputs();
  Context<double> context;
  Matrix<double> y(c.dy.rows(), c.dy.cols()), dx(c.input.x.rows(), c.input.x.cols());
  library.forward(c.input.x, inputs, y, context);
  inputs.noise = {};
  MeoLayer<double> gradients(options);
  library.backward(c.input.x, inputs, context, c.dy, gradients, dx);
  REQUIRE(expected.parameters.noise_weight.cwiseAbs().maxCoeff() > 0.1);
  CHECK(disagreement_in_max_norm(gradients.gate().noise_weight(), expected.parameters.noise_weight, 1e-13) ==
        "");
}

TEST_CASE("sequences that share a merge by chance have gate gradients of their own", "[gradient]") {
  Generator rng(35);
  for (const Level level : {Level::sequence, Level::task}) {
    INFO("level " << to_string(level));
    // A zero gate, as upcycling leaves it: all sequences select the same experts with the same weights.
    Case<MeoLayer<double>> c(small_options(level, 2), {3, 2, 4}, reference::Mode::inference, rng);
    if (level == Level::task) c.input.batch.task_of_sequence = {0, 1, 0};
    c.parameters.gate_weight.setZero();
    CHECK(disagreement_in_max_norm(flat(c.backward(c.dy)), flat(vanilla_backward(c)), 1e-13) == "");
  }
}

TEST_CASE("sequences of one task share a merge and add up in its gradients", "[gradient]") {
  Generator rng(36);
  for (const auto mode : {reference::Mode::inference, reference::Mode::training}) {
    Case<MeoLayer<double>> c(small_options(Level::task, 2), {3, 2, 4, 1}, mode, rng);
    c.input.batch.task_of_sequence = {1, 0, 1, 1};
    const auto actual = c.backward(c.dy), expected = vanilla_backward(c);
    CHECK(disagreement_in_max_norm(flat(actual), flat(expected), 1e-13) == "");
    CHECK(disagreement_in_max_norm(actual.task_embeddings, expected.task_embeddings, 1e-13) == "");
  }
}

TEMPLATE_TEST_CASE("a backward of no tokens gives nothing", "[gradient]", MoeLayer<float>, MeoLayer<float>) {
  Generator rng(37);
  for (const Level level : {Level::token, Level::sequence}) {
    for (const auto& lengths : {std::vector<Index>{}, {0}, {0, 0}}) {
      const Case<TestType> c(small_options(level, 2), lengths, reference::Mode::inference, rng);
      CHECK(flat(c.backward(c.dy, 0)).isZero(0));
    }
  }
}

TEMPLATE_TEST_CASE("no sequences at task level are an empty batch, whatever the descriptions", "[gradient]",
                   MoeLayer<float>, MeoLayer<float>) {
  Generator rng(49);
  const Case<TestType> c(small_options(Level::task, 2), {3, 1}, reference::Mode::inference, rng);
  const TestType library = c.library();
  const Sequences none;
  const Matrix<float> embeddings = Matrix<float>::Ones(5, 6);
  for (const auto& lengths : {std::vector<Index>{}, {5}, {2, 3}, {2, 0, 3}}) {
    const Sequences descriptions = Sequences::from_lengths(lengths);
    const Inputs<float> inputs{.sequences = &none,
                               .task_embeddings = embeddings.topRows(descriptions.tokens()),
                               .descriptions = &descriptions};
    Context<float> context;
    TestType gradients(library.options());
    Matrix<float> x(0, 5), y(0, 7), dx(0, 5);
    const Routing<float>& routing = library.forward(x, inputs, y, context);
    CHECK(routing.rows == 0);
    CHECK(routing.loss == 0);
    library.backward(x, inputs, context, y, gradients, dx);
    CHECK(reference::changed(gradients, dx) == "");
    CHECK(context.task_embeddings_gradient() == Matrix<float>::Zero(descriptions.tokens(), 6));
  }
}

TEMPLATE_TEST_CASE("backward checks shapes and then changes nothing", "[gradient]", MoeLayer<float>,
                   MeoLayer<float>) {
  Generator rng(38);
  const auto lacks = [&](auto change, std::initializer_list<std::string> parts) {
    const Case<TestType> c(small_options(Level::token, 2), {3, 1}, reference::Mode::inference, rng);
    const TestType library = c.library();
    const reference::LibraryBatch<float> batch(c.input.batch);
    Context<float> context;
    Matrix<float> x = c.input.x, dy = c.dy, y(4, 7), dx = Matrix<float>::Constant(4, 5, 7.f);
    LayerOptions options = library.options();
    library.forward(x, batch.inputs(), y, context);
    change(x, context, dy, options, dx);
    TestType gradients(options);
    const std::string error = error_lacks<std::invalid_argument>(
        [&] { library.backward(x, batch.inputs(), context, dy, gradients, dx); }, parts);
    if (error != "") return error;
    return reference::changed(gradients, dx);
  };
  CHECK(lacks([](auto&&...) {}, {}) == "no exception");
  CHECK(lacks([](auto& x, auto&, auto&, auto&, auto&) { x = Matrix<float>::Zero(4, 6); },
              {"in_features = 5", "got 6"}) == "");
  CHECK(lacks([](auto& x, auto&, auto&, auto&, auto&) { x = Matrix<float>::Zero(3, 5); },
              {"sequences", "expected 3 tokens", "got 4"}) == "");
  CHECK(lacks([](auto&, auto& context, auto&, auto&, auto&) { context.routing.rows = 9; },
              {"routing", "rows, got 9"}) == "");
  CHECK(lacks([](auto&, auto&, auto& dy, auto&, auto&) { dy = Matrix<float>::Zero(4, 6); },
              {"dy", "4 x 7", "got 4 x 6"}) == "");
  CHECK(lacks([](auto&, auto&, auto&, auto&, auto& dx) { dx = Matrix<float>::Constant(4, 6, 7.f); },
              {"dx", "4 x 5", "got 4 x 6"}) == "");
  CHECK(lacks([](auto&, auto&, auto&, auto& options, auto&) { options.top_k = 3; },
              {"gradients", "same options"}) == "");
}

TEMPLATE_TEST_CASE("backward checks its inputs against the forward's and then changes nothing", "[gradient]",
                   MoeLayer<float>, MeoLayer<float>) {
  Generator rng(43);
  const auto lacks = [&](Level level, auto change, std::initializer_list<std::string> parts) {
    const Case<TestType> c(small_options(level, 2), {3, 1}, reference::Mode::training, rng);
    const TestType library = c.library();
    const reference::LibraryBatch<float> batch(c.input.batch);
    Inputs<float> inputs = batch.inputs();
    Context<float> context;
    Matrix<float> y(4, 7), dx = Matrix<float>::Constant(4, 5, 7.f);
    library.forward(c.input.x, inputs, y, context);
    change(context, inputs);
    TestType gradients(library.options());
    const std::string error = error_lacks<std::invalid_argument>(
        [&] { library.backward(c.input.x, inputs, context, c.dy, gradients, dx); }, parts);
    if (error != "") return error;
    return reference::changed(gradients, dx);
  };
  CHECK(lacks(Level::task, [](auto&&...) {}, {}) == "no exception");
  const Sequences one = Sequences::from_lengths({1}), three = Sequences::from_lengths({1, 1, 1}),
                  other = Sequences::from_lengths({1, 3}), halves = Sequences::from_lengths({2, 2}),
                  four = Sequences::from_lengths({1, 1, 1, 1});
  const std::vector<Index> too_many{0, 1, 0}, beyond{0, 2}, turned{1, 0};
  const Matrix<float> embeddings = Matrix<float>::Ones(3, 6), narrow = Matrix<float>::Ones(3, 5);
  const auto task_lacks = [&](auto change, std::initializer_list<std::string> parts) {
    return lacks(
        Level::task, [&](auto&, auto& inputs) { change(inputs); }, parts);
  };
  CHECK(task_lacks([&](auto& inputs) { inputs.task_embeddings = {}; }, {"task_embeddings", "got none"}) ==
        "");
  CHECK(task_lacks([&](auto& inputs) { inputs.task_embeddings = narrow; }, {"task_features = 6", "got 5"}) ==
        "");
  CHECK(task_lacks([&](auto& inputs) { inputs.descriptions = &one; }, {"descriptions", "got 1"}) == "");
  CHECK(task_lacks([&](auto& inputs) { inputs.task_of_sequence = too_many; },
                   {"task_of_sequence", "expected 2", "got 3"}) == "");
  CHECK(task_lacks([&](auto& inputs) { inputs.task_of_sequence = beyond; },
                   {"task_of_sequence", "0 to 1", "got 2"}) == "");
  CHECK(task_lacks(
            [&](auto& inputs) {
              inputs.task_embeddings = embeddings;
              inputs.descriptions = &three;
            },
            {"context", "a forward of 3 descriptions, got one of 2"}) == "");
  CHECK(task_lacks([&](auto& inputs) { inputs.task_of_sequence = turned; },
                   {"context", "description 1 for sequence 0, got one with 0"}) == "");

  for (const Level level : all_levels) {
    INFO("level " << to_string(level));
    const auto sequences_lack = [&](const Sequences& sequences, std::initializer_list<std::string> parts) {
      return lacks(
          level, [&](auto&, auto& inputs) { inputs.sequences = &sequences; }, parts);
    };
    CHECK(sequences_lack(other, {"context", "1 tokens in sequence 0, got one with 3"}) == "");
    CHECK(sequences_lack(halves, {"context", "2 tokens in sequence 0, got one with 3"}) == "");
    if (level != Level::task) CHECK(sequences_lack(four, {"context", "4 sequences, got one of 2"}) == "");
    // What is the caller's to read may have been changed or moved away.
    CHECK(lacks(level, [](auto& context, auto&) { context.routing.top_k = 1; }, {"routing", "pairs"}) == "");
    CHECK(lacks(level, [](auto& context, auto&) { Routing<float>(std::move(context.routing)); },
                {"routing", "pairs, got 0"}) == "");
    CHECK(lacks(level,
                [](auto& context, auto&) {
                  Routing<float>& routing = context.routing;
                  routing.top_k = 1;
                  routing.experts.resize(static_cast<std::size_t>(routing.rows));
                  routing.weights.resize(static_cast<std::size_t>(routing.rows));
                },
                {"routing", "top_k = 2", "got 1"}) == "");
    CHECK(lacks(level, [](auto& context, auto&) { context.routing.importance.pop_back(); },
                {"routing", "importance and load of 4", "got 3 and 4"}) == "");
    CHECK(lacks(level, [](auto& context, auto&) { context.routing.load.clear(); },
                {"routing", "importance and load of 4", "got 4 and 0"}) == "");
  }
}

/// A layer with a batch that it has gone forward with, and backwards of it.
template <class Library>
struct Passes {
  using S = typename Library::Scalar;

  explicit Passes(Level level) : c(small_options(level, 2), {3, 1}, reference::Mode::inference, rng) {
    forward(library);
  }
  Passes(const Passes&) = delete;

  Inputs<S> inputs() const { return batch.inputs(); }
  template <class Layer>
  void forward(const Layer& layer) {
    layer.forward(c.input.x, inputs(), y, context);
  }
  void backward(const Library& layer, Context<S>& of) {
    layer.backward(c.input.x, inputs(), of, c.dy, gradients, dx);
  }
  void backward_routed(const Library& layer) {
    std::vector<S> d_weights(routing.weights.size());
    layer.backward_routed(c.input.x, inputs(), routing, context, c.dy, gradients, dx, d_weights);
  }

  /// What is wrong with the error of f, which must be of that kind and change nothing.
  template <class Function>
  std::string lacks(Function&& f, std::initializer_list<std::string> parts) {
    gradients = Library(library.options());
    dx.setConstant(7);
    const std::string error = error_lacks<std::invalid_argument>(f, parts);
    return error != "" ? error : reference::changed(gradients, dx);
  }
  std::string backward_lacks(const Library& layer, std::initializer_list<std::string> parts) {
    return lacks([&] { backward(layer, context); }, parts);
  }

  Generator rng{48};
  Case<Library> c;
  Library library = c.library(), gradients{library.options()};
  reference::LibraryBatch<S> batch{c.input.batch};
  Context<S> context;
  Matrix<S> y{4, 7}, dx{4, 5};
  Routing<S> routing = library.forward(c.input.x, batch.inputs()).routing;
};

TEMPLATE_TEST_CASE("a context is empty from the moment a forward begins until it finishes", "[gradient]",
                   MoeLayer<float>, MeoLayer<float>) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr const char* none = "got one that no forward has finished with";
  for (const Level level : all_levels) {
    INFO("level " << to_string(level));
    Passes<TestType> passes(level);
    CHECK(passes.backward_lacks(passes.library, {}) == "no exception");
    Context<float> fresh;
    CHECK(passes.lacks([&] { passes.backward(passes.library, fresh); }, {"context", none}) == "");

    // Every one begins after a forward that has finished.
    const auto empties = [&](auto begin) {
      passes.forward(passes.library);
      begin();
      const std::string error = passes.backward_lacks(passes.library, {"context", none});
      if (error != "") return error;
      return passes.lacks([&] { passes.backward_routed(passes.library); }, {"context", none});
    };
    const Matrix<float> x = passes.c.input.x, wide = Matrix<float>::Zero(4, 6);
    Matrix<float> short_y(3, 7);
    CHECK(empties([&] {
            TestType broken = passes.library;
            broken.gate().set_weight(Matrix<float>::Constant(broken.gate().gate_features(), 4, nan));
            CHECK_THROWS_AS(passes.forward(broken), std::domain_error);
          }) == "");
    CHECK(empties([&] {
            CHECK_THROWS(passes.library.forward(wide, passes.inputs(), passes.y, passes.context));
          }) == "");
    CHECK(empties([&] {
            CHECK_THROWS(passes.library.forward(x, passes.inputs(), short_y, passes.context));
          }) == "");
    CHECK(empties([&] {
            Routing<float> routing = passes.routing;
            routing.experts[0] = 4;
            CHECK_THROWS(
                passes.library.forward_routed(x, passes.inputs(), routing, passes.y, passes.context));
          }) == "");
    CHECK(empties([&] { passes.library.route(x, passes.inputs(), passes.context); }) == "");
    CHECK(empties([&] {
            const Context<float> moved = std::move(passes.context);
            CHECK(passes.context.task_embeddings_gradient().size() == 0);
          }) == "");
  }
}

TEMPLATE_TEST_CASE("a context knows the layer of its forward", "[gradient]", MoeLayer<float>,
                   MeoLayer<float>) {
  using Other = std::conditional_t<test::is_meo<TestType>, MoeLayer<float>, MeoLayer<float>>;
  for (const Level level : all_levels) {
    INFO("level " << to_string(level));
    Passes<TestType> passes(level);
    TestType copy = passes.library;
    CHECK(passes.backward_lacks(copy, {"context", "this layer's, got that of another, if only a copy"}) ==
          "");
    CHECK(passes.lacks([&] { passes.backward_routed(copy); }, {"context", "of another"}) == "");
    passes.forward(Other(passes.library.options()));
    CHECK(passes.backward_lacks(
              passes.library,
              {"context", test::is_meo<TestType> ? "expected an MEO layer's, got an MoE layer's"
                                                 : "expected an MoE layer's, got an MEO layer's"}) == "");
    LayerOptions options = passes.library.options();
    options.routing.loss_coefficient = 0.5;
    passes.forward(TestType(options));
    CHECK(passes.backward_lacks(passes.library, {"context", "of a layer of other options"}) == "");

    // A routing from elsewhere leaves no decision of the gate, also where an earlier one is still there.
    passes.forward(passes.library);
    passes.library.forward_routed(passes.c.input.x, passes.inputs(), passes.routing, passes.y,
                                  passes.context);
    CHECK(passes.backward_lacks(passes.library,
                                {"context", "got that of one with a routing from elsewhere"}) == "");
    CHECK_NOTHROW(passes.backward_routed(passes.library));
    passes.forward(passes.library);
    CHECK_NOTHROW(passes.backward_routed(passes.library));

    // Layer and context are the same after a move, and the layer after an update in place.
    TestType moved = std::move(passes.library);
    Context<float> moved_context = std::move(passes.context);
    CHECK_NOTHROW(passes.backward(moved, moved_context));
    std::swap(moved, copy);
    CHECK_NOTHROW(passes.backward(copy, moved_context));
    copy.set_weight(0, Matrix<float>::Ones(7, 5));
    CHECK_NOTHROW(passes.backward(copy, moved_context));
  }
}

TEST_CASE("the same tasks may be given in another way", "[gradient]") {
  Passes<MeoLayer<float>> passes(Level::task);
  Inputs<float> inputs = passes.inputs();
  inputs.task_of_sequence = {};  // description b is that of sequence b
  CHECK_NOTHROW(passes.library.backward(passes.c.input.x, inputs, passes.context, passes.c.dy,
                                        passes.gradients, passes.dx));
}

TEMPLATE_TEST_CASE("gradients and dx must be apart from what backward reads", "[gradient]", MoeLayer<float>,
                   MeoLayer<float>) {
  for (const Level level : all_levels) {
    INFO("level " << to_string(level));
    Passes<TestType> passes(level);
    const TestType before = passes.library;
    const auto lacks = [&](const ConstMatrixRef<float>& x, const ConstMatrixRef<float>& dy,
                           TestType& gradients, MatrixRef<float> dx, bool routed,
                           std::initializer_list<std::string> parts) {
      std::vector<float> d_weights(passes.routing.weights.size());
      return passes.lacks(
          [&] {
            if (!routed) passes.library.backward(x, passes.inputs(), passes.context, dy, gradients, dx);
            else
              passes.library.backward_routed(x, passes.inputs(), passes.routing, passes.context, dy,
                                             gradients, dx, d_weights);
          },
          parts);
    };
    // x, dy and dx in columns of one matrix, and dx beside them, on x, on dy.
    Matrix<float> wide = Matrix<float>::Zero(4, 17);
    wide.leftCols(5) = passes.c.input.x;
    const auto x = wide.leftCols(5);
    const auto dy = wide.middleCols(5, 7);
    for (const bool routed : {false, true}) {
      CHECK(lacks(x, dy, passes.gradients, wide.rightCols(5), routed, {}) == "no exception");
      for (const Index first : {0, 4}) {
        CHECK(lacks(x, dy, passes.gradients, wide.middleCols(first, 5), routed,
                    {"dx: expected memory that does not overlap x, got some that does"}) == "");
      }
      for (const Index first : {5, 9, 11}) {
        CHECK(lacks(x, dy, passes.gradients, wide.middleCols(first, 5), routed,
                    {"dx: expected memory that does not overlap dy, got some that does"}) == "");
      }
      CHECK(lacks(x, dy, passes.library, wide.rightCols(5), routed,
                  {"gradients: expected another layer, got the one itself"}) == "");
    }
    for (Index expert = 0; expert < 4; ++expert)
      CHECK(bit_difference(passes.library.weight(expert), before.weight(expert)) == "");
  }
}

TEMPLATE_TEST_CASE("backward with a routing given checks it and what else is given", "[gradient]",
                   MoeLayer<float>, MeoLayer<float>) {
  Generator rng(44);
  const auto lacks = [&](auto change, std::initializer_list<std::string> parts) {
    const Case<TestType> c(small_options(Level::token, 2), {3, 1}, reference::Mode::inference, rng);
    const TestType library = c.library();
    const reference::LibraryBatch<float> batch(c.input.batch);
    Context<float> context;
    Matrix<float> y(4, 7), dy = c.dy, dx = Matrix<float>::Constant(4, 5, 7.f);
    Routing<float> routing = library.forward(c.input.x, batch.inputs(), y, context);
    std::vector<float> d_weights(routing.weights.size(), 7.f);
    change(routing, context, dy, d_weights);
    TestType gradients(library.options());
    const std::string error = error_lacks<std::invalid_argument>(
        [&] {
          library.backward_routed(c.input.x, batch.inputs(), routing, context, dy, gradients, dx, d_weights);
        },
        parts);
    if (error != "") return error;
    for (const float value : d_weights)
      if (value != 7.f) return std::string("d_weights have changed");
    return reference::changed(gradients, dx);
  };
  CHECK(lacks([](auto&&...) {}, {}) == "no exception");
  CHECK(lacks([](auto& routing, auto&, auto&, auto&) { routing.experts[1] = 4; }, {"expert", "got 4"}) == "");
  CHECK(lacks([](auto&, auto&, auto& dy, auto&) { dy = Matrix<float>::Zero(4, 6); },
              {"dy", "4 x 7", "got 4 x 6"}) == "");
  CHECK(lacks([](auto&, auto&, auto&, auto& d_weights) { d_weights.pop_back(); },
              {"d_weights", "values, got"}) == "");
  CHECK(lacks([](auto&, auto& context, auto&, auto&) { context = {}; }, {"context", "no forward has"}) == "");
}

TEMPLATE_TEST_CASE("backward with gradients of weights from elsewhere checks their number", "[gradient]",
                   MoeLayer<float>, MeoLayer<float>) {
  Generator rng(47);
  const Case<TestType> c(small_options(Level::sequence, 2), {3, 1}, reference::Mode::inference, rng);
  const TestType library = c.library();
  const reference::LibraryBatch<float> batch(c.input.batch);
  Context<float> context;
  Matrix<float> y(4, 7), dx = Matrix<float>::Constant(4, 5, 7.f);
  library.forward(c.input.x, batch.inputs(), y, context);
  TestType gradients(library.options());
  for (const std::size_t count : {3u, 5u}) {
    const std::vector<float> d_weights(count, 1.f);
    CHECK(error_lacks<std::invalid_argument>(
              [&] {
                library.backward(c.input.x, batch.inputs(), context, c.dy, gradients, dx, 1.f, d_weights);
              },
              {"d_weights", "expected 4 values", "got " + std::to_string(count)}) == "");
  }
  CHECK((dx.array() == 7.f).all());
  for (const auto& range : parameters(gradients))
    CHECK(std::all_of(range.values.begin(), range.values.end(), [](float value) { return value == 0; }));
}

}  // namespace gradient_test
}  // namespace

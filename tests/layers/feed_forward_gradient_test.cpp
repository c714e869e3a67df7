// Gradients of feed-forward blocks against central differences of the reference, and what they obey.

#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/experts/activation.hpp>
#include <meo/layers/feed_forward.hpp>
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
namespace feed_forward_gradient_test {

using namespace meo;
using namespace meo::test;

using reference::flat;
template <class Library>
using Case = reference::GradientCase<Library>;

FeedForwardOptions small_options(Level level, bool shared_gate, bool gated) {
  FeedForwardOptions options = small_block(level, 3, 5, gated, shared_gate);
  options.num_experts = 3;
  return options;
}

TEMPLATE_TEST_CASE("a block's gradients are the differences of its loss", "[feed_forward][gradient]",
                   (FeedForward<MoeLayer<double>, Gelu>), (FeedForward<MeoLayer<double>, Gelu>)) {
  Generator rng(41);
  for (const Level level : all_levels) {
    for (const bool shared_gate : {false, true}) {
      for (const bool gated : {false, true}) {
        const auto mode = gated ? reference::Mode::training : reference::Mode::inference;
        INFO("level " << to_string(level) << ", shared gate " << shared_gate << ", gated " << gated);
        // With one gate for the block, that of `up`, those of the others are no parameters of its function,
        // and their gradients are zero.
        const Case<TestType> c(small_options(level, shared_gate, gated), {2, 0, 1, 3}, mode, rng);
        reference::check_differences(c.library(), c.parameters, c.input, c.dy);
      }
    }
  }
}

TEMPLATE_TEST_CASE("they are so with one expert selected, with all and without biases",
                   "[feed_forward][gradient]", (FeedForward<MoeLayer<double>, Gelu>),
                   (FeedForward<MeoLayer<double>, Gelu>)) {
  Generator rng(42);
  for (const Index top_k : {1, 2, 3}) {
    for (const bool shared_gate : {false, true}) {
      FeedForwardOptions options = small_options(Level::token, shared_gate, true);
      options.top_k = top_k;
      options.bias = top_k != 2;
      INFO("K " << top_k << ", shared gate " << shared_gate);
      const Case<TestType> c(options, {2, 0, 1, 3}, reference::Mode::training, rng);
      reference::check_differences(c.library(), c.parameters, c.input, c.dy);
    }
  }
}

TEMPLATE_TEST_CASE("a block's gradients are linear in those of y and of the loss, and accumulate",
                   "[feed_forward][gradient]", (FeedForward<MoeLayer<double>, Gelu>),
                   (FeedForward<MeoLayer<double>, Gelu>)) {
  Generator rng(43);
  for (const Level level : {Level::token, Level::task}) {
    for (const bool shared_gate : {false, true}) {
      INFO("level " << to_string(level) << ", shared gate " << shared_gate);
      const Case<TestType> c(small_options(level, shared_gate, true), {2, 0, 1, 3}, reference::Mode::training,
                             rng);
      reference::check_linear(c, rng);
    }
  }
}

TEMPLATE_TEST_CASE("a block's gradients have the same bits for any number of threads",
                   "[feed_forward][gradient]", (FeedForward<MoeLayer<double>, Gelu>),
                   (FeedForward<MeoLayer<double>, Gelu>)) {
  Generator rng(44);
  for (const Level level : {Level::token, Level::task}) {
    for (const bool shared_gate : {false, true}) {
      FeedForwardOptions options = small_options(level, shared_gate, true);
      options.features = 43;
      options.hidden_features = 101;
      INFO("level " << to_string(level) << ", shared gate " << shared_gate);
      const Case<TestType> c(options, {3, 0, 1, 40}, reference::Mode::training, rng);
      const Matrix<double> expected = flat(c.backward(c.dy));
      with_threads([&](Index threads) {
        INFO(threads << " threads");
        CHECK(bit_difference(flat(c.backward(c.dy)), expected) == "");
      });
    }
  }
}

TEMPLATE_TEST_CASE("a block's backward checks shapes and what is left of a forward, and then changes nothing",
                   "[feed_forward][gradient]", (FeedForward<MoeLayer<double>, Gelu>),
                   (FeedForward<MeoLayer<double>, Gelu>)) {
  using Layer = std::remove_cvref_t<decltype(std::declval<TestType&>().up())>;
  Generator rng(45);
  const Sequences two = Sequences::from_lengths({3, 1}), fewer = Sequences::from_lengths({1, 1}),
                  short_of_one = Sequences::from_lengths({3});
  for (const bool shared_gate : {false, true}) {
    for (const Level level : {Level::token, Level::sequence}) {
      INFO("level " << to_string(level) << ", shared gate " << shared_gate);
      const auto lacks = [&](auto change, std::initializer_list<std::string> parts) {
        const Case<TestType> c(small_options(level, shared_gate, true), {3, 1}, reference::Mode::inference,
                               rng);
        const TestType library = c.library();
        FeedForwardOptions options = library.options();
        Inputs<double> inputs{.sequences = &two};
        FeedForwardContext<double> context;
        Matrix<double> x = c.input.x, dy = c.dy, y(4, 3), dx = Matrix<double>::Constant(4, 3, 7);
        library.forward(x, inputs, y, context);
        const auto forward_fewer = [&] {
          context = {};
          Matrix<double> short_y(2, 3);
          library.forward(x.topRows(2), {.sequences = &fewer}, short_y, context);
        };
        change(inputs, context, dy, options, dx, forward_fewer, x);
        TestType gradients(options);
        const std::string error = error_lacks<std::invalid_argument>(
            [&] { library.backward(x, inputs, context, dy, gradients, dx); }, parts);
        if (error != "") return error;
        return reference::changed(gradients, dx);
      };
      using C = FeedForwardContext<double>;
      const auto context_lacks = [&](auto change, std::initializer_list<std::string> parts) {
        return lacks([&](auto&, C& context, auto&...) { change(context); }, parts);
      };
      CHECK(lacks([](auto&&...) {}, {}) == "no exception");
      CHECK(lacks([](auto&, auto&, auto&, auto&, auto&, auto&, auto& x) { x = Matrix<double>::Zero(4, 2); },
                  {"x", "expected features = 3", "got 2"}) == "");
      CHECK(lacks([&](auto& inputs, auto&&...) { inputs.sequences = &short_of_one; },
                  {"sequences", "expected 4 tokens", "got 3"}) == "");
      CHECK(lacks([](auto&, auto&, auto& dy, auto&&...) { dy = Matrix<double>::Zero(4, 2); },
                  {"dy", "4 x 3", "got 4 x 2"}) == "");
      CHECK(lacks([](auto&, auto&, auto&, auto& options, auto&&...) { options.top_k = 1; },
                  {"gradients", "same options"}) == "");
      CHECK(lacks([](auto&, auto&, auto&, auto&, auto& dx,
                     auto&&...) { dx = Matrix<double>::Constant(5, 3, 7); },
                  {"dx", "4 x 3", "got 5 x 3"}) == "");
      CHECK(context_lacks([](C& context) { context = {}; }, {"context", "no forward has finished"}) == "");
      CHECK(context_lacks([](C& context) { context.up.routing.experts[0] = 3; }, {"expert", "got 3"}) == "");
      if (!shared_gate) {
        CHECK(context_lacks([](C& context) { context.down.routing = {}; }, {"routing", "rows, got 0"}) == "");
        CHECK(context_lacks([](C& context) { context.down = {}; }, {"context", "no forward has finished"}) ==
              "");
        CHECK(context_lacks([](C& context) { std::swap(context.gate_up, context.up); },
                            {"context", "got that of another"}) == "");
      }
      CHECK(lacks([](auto&, auto&, auto&, auto&, auto&, auto& forward_fewer, auto&) { forward_fewer(); },
                  {"context", "3 tokens in sequence 0, got one with 1"}) == "");
      const bool recomputes = shared_gate && !test::is_meo<Layer>;
      if (recomputes) continue;
      CHECK(context_lacks([](C& context) { gradient_memory_of(context).pre_activation.clear(); },
                          {"context", "20 values of pre-activations, got 0"}) == "");
      CHECK(context_lacks([](C& context) { memory_of(context).hidden.clear(); },
                          {"context", "20 values of hidden"}) == "");
      CHECK(context_lacks([](C& context) { memory_of(context).gate_hidden.clear(); },
                          {"context", "20 values of gate_up"}) == "");
      CHECK(context_lacks([](C& context) { memory_of(context.down).last_forward.clear(); },
                          {"context", "no forward has finished"}) == "");
      CHECK(context_lacks([](C& context) { memory_of(context.gate_up).last_forward.clear(); },
                          {"context", "no forward has finished"}) == "");
    }
  }
}

/// A block with a batch that it has gone forward with.
template <class Library>
struct Passes {
  explicit Passes(const FeedForwardOptions& options) : c(options, {3, 1}, reference::Mode::inference, rng) {
    forward(c.input.x);
  }
  Passes(const Passes&) = delete;

  void forward(const Matrix<double>& x) { library.forward(x, batch.inputs(), y, context); }
  void backward(const Library& block) {
    block.backward(c.input.x, batch.inputs(), context, c.dy, gradients, dx);
  }
  template <class Function>
  std::string lacks(Function&& f, std::initializer_list<std::string> parts) {
    gradients = Library(library.options());
    dx.setConstant(7);
    const std::string error = error_lacks<std::invalid_argument>(f, parts);
    return error != "" ? error : reference::changed(gradients, dx);
  }

  Generator rng{46};
  Case<Library> c;
  Library library = c.library(), gradients{library.options()};
  reference::LibraryBatch<double> batch{c.input.batch};
  FeedForwardContext<double> context;
  Matrix<double> y{4, 3}, dx{4, 3};
};

TEMPLATE_TEST_CASE("a block's context is empty after a forward that threw, and knows its block",
                   "[feed_forward][gradient]", (FeedForward<MoeLayer<double>, Gelu>),
                   (FeedForward<MeoLayer<double>, Gelu>)) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  for (const bool shared_gate : {false, true}) {
    for (const bool gated : {false, true}) {
      INFO("shared gate " << shared_gate << ", gated " << gated);
      Passes<TestType> passes(small_options(Level::sequence, shared_gate, gated));
      CHECK(passes.lacks([&] { passes.backward(passes.library); }, {}) == "no exception");
      const TestType copy = passes.library;
      CHECK(passes.lacks([&] { passes.backward(copy); }, {"context", "got that of another"}) == "");

      const auto empty = [&] {
        return passes.lacks([&] { passes.backward(passes.library); }, {"context", "no forward has finished"});
      };
      CHECK_THROWS_AS(passes.forward(Matrix<double>::Constant(4, 3, nan)), std::domain_error);
      CHECK(empty() == "");
      passes.forward(passes.c.input.x);
      CHECK_THROWS_AS(passes.forward(Matrix<double>::Zero(4, 2)), std::invalid_argument);
      CHECK(empty() == "");
      if (!shared_gate) {  // the last projection's gate throws
        passes.forward(passes.c.input.x);
        const Matrix<double> weight = passes.library.down().gate().weight();
        passes.library.down().gate().set_weight(Matrix<double>::Constant(5, 3, nan));
        CHECK_THROWS_AS(passes.forward(passes.c.input.x), std::domain_error);
        CHECK(empty() == "");
        passes.library.down().gate().set_weight(weight);
      }
      passes.forward(passes.c.input.x);
      const TestType moved = std::move(passes.library);
      CHECK_NOTHROW(passes.backward(moved));
    }
  }
}

TEMPLATE_TEST_CASE("a block's gradients and dx must be apart from what backward reads",
                   "[feed_forward][gradient]", (FeedForward<MoeLayer<double>, Gelu>),
                   (FeedForward<MeoLayer<double>, Gelu>)) {
  for (const bool shared_gate : {false, true}) {
    INFO("shared gate " << shared_gate);
    Passes<TestType> passes(small_options(Level::sequence, shared_gate, true));
    Matrix<double> wide = Matrix<double>::Zero(4, 9);
    wide.leftCols(3) = passes.c.input.x;
    const auto lacks = [&](TestType& gradients, Index first, std::initializer_list<std::string> parts) {
      return passes.lacks(
          [&] {
            passes.library.backward(wide.leftCols(3), passes.batch.inputs(), passes.context,
                                    wide.middleCols(3, 3), gradients, wide.middleCols(first, 3));
          },
          parts);
    };
    CHECK(lacks(passes.gradients, 6, {}) == "no exception");
    CHECK(lacks(passes.gradients, 0, {"dx: expected memory that does not overlap x"}) == "");
    CHECK(lacks(passes.gradients, 5, {"dx: expected memory that does not overlap dy"}) == "");
    CHECK(lacks(passes.library, 6, {"gradients: expected another block, got the one itself"}) == "");
  }
}

}  // namespace feed_forward_gradient_test
}  // namespace

#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "kernels/threads.hpp"
#include "reference/library_block.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace feed_forward_test {

using namespace meo;
using namespace meo::test;
using reference::Kind;
using reference::Mode;

FeedForwardOptions options_at(Level level, bool gated, bool shared_gate, Index top_k = 2) {
  FeedForwardOptions options = small_block(level, 5, 11, gated, shared_gate, top_k);
  options.routing.gate_before_attention = gated;
  return options;
}

/// A random block with a batch for it, in the reference's types and in the library's.
template <class Library>
struct Case {
  using S = typename Library::Scalar;

  explicit Case(const FeedForwardOptions& options, const std::vector<Index>& lengths = {3, 0, 1, 5},
                Mode mode = Mode::inference)
      : block(reference::random_parameters<Library>(options, rng)),
        input(reference::random_input(block, lengths, mode, rng)),
        library(reference::library_block<Library>(block, options.merge_order)),
        batch(input.batch) {}
  Case(const Case&) = delete;

  FeedForwardOutput<S> forward() const { return library.forward(input.x, batch.inputs()); }

  Generator rng{71};
  reference::Block<S> block;
  reference::RandomInput<S> input;
  Library library;
  reference::LibraryBatch<S> batch;
};

TEMPLATE_TEST_CASE("a block computes what the reference does", "[feed_forward]",
                   (FeedForward<MoeLayer<float>, Gelu>), (FeedForward<MoeLayer<double, 4>, GeluTanh>),
                   (FeedForward<MeoLayer<float, 4>, Silu>), (FeedForward<MeoLayer<double>, Relu>),
                   (FeedForward<MeoLayer<long double>, Identity>)) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    for (const bool gated : {false, true}) {
      for (const bool shared_gate : {false, true}) {
        for (const bool bias : {false, true}) {
          for (const Index top_k : {1, 3, 4}) {
            INFO("level " << to_string(level) << ", gated " << gated << ", shared gate " << shared_gate
                          << ", bias " << bias << ", K " << top_k);
            FeedForwardOptions options = options_at(level, gated, shared_gate, top_k);
            options.bias = bias;
            const Mode mode = bias && level == Level::sequence ? Mode::training : Mode::inference;
            const Case<TestType> c(options, {3, 0, 1, 5}, mode);
            const FeedForwardOutput<S> output = c.forward();
            const auto expected = reference::forward(c.block, c.input.x, c.input.batch);
            reference::check_routing(output.up, expected.up);
            if (!shared_gate) reference::check_routing(output.down, expected.down);
            if (!shared_gate && gated) reference::check_routing(output.gate_up, expected.gate_up);
            CHECK(disagreement(output.y, expected.y) == "");
            CHECK(disagreement(Matrix<S>::Constant(1, 1, output.loss), expected.loss) == "");
            CHECK(output.gate_up.rows == (gated && !shared_gate ? output.up.rows : 0));
            CHECK(output.down.rows == (shared_gate ? 0 : output.up.rows));
          }
        }
      }
    }
  }
}

TEST_CASE("an activation may be any function", "[feed_forward]") {
  const auto doubled = [](double x) { return 2 * x; };
  const FeedForwardOptions options = options_at(Level::sequence, false, false);
  const Case<FeedForward<MeoLayer<double>, Identity>> c(options);
  FeedForward<MeoLayer<double>, decltype(doubled)> block(options, doubled);
  reference::set_parameters(block.up(), c.block.up);
  reference::set_parameters(block.down(), c.block.down);
  auto twice = c.block;  // 2 (x W + b) is x (2 W) + 2 b, exactly
  for (auto& expert : twice.up.experts) {
    expert.weight *= 2;
    expert.bias *= 2;
  }
  const auto expected = reference::library_block<FeedForward<MeoLayer<double>, Identity>>(twice);
  CHECK(bit_difference(block.forward(c.input.x, c.batch.inputs()).y,
                       expected.forward(c.input.x, c.batch.inputs()).y) == "");
}

TEMPLATE_TEST_CASE("with one gate around a non-linearity MEO is not MoE", "[feed_forward]", (MeoLayer<float>),
                   (MeoLayer<double>)) {
  using S = typename TestType::Scalar;
  using Vanilla = MoeLayer<S, TestType::num_experts_at_compile_time>;
  for (const Level level : {Level::sequence, Level::task}) {
    for (const bool gated : {false, true}) {
      for (const Index top_k : {1, 2}) {
        INFO(to_string(level) << " level, gated " << gated << ", K " << top_k);
        const Case<FeedForward<TestType, Gelu>> c(options_at(level, gated, true, top_k));
        auto block = c.block;
        block.up.kind = block.gate_up.kind = block.down.kind = Kind::moe;
        const Matrix<S> vanilla = reference::library_block<FeedForward<Vanilla, Gelu>>(block)
                                      .forward(c.input.x, c.batch.inputs())
                                      .y;
        const Matrix<S> merged = c.forward().y;
        if (top_k == 1) CHECK(bit_difference(merged, vanilla) == "");  // nothing to merge
        else CHECK((merged - vanilla).cwiseAbs().maxCoeff() > S(0.01));
      }
    }
  }
}

template <class S>
Matrix<S> gated_hidden(const Matrix<S>& pre_activation, const Matrix<S>& gate_hidden) {
  const Relu relu;
  Matrix<S> hidden = gate_hidden;
  for (Index i = 0; i < hidden.size(); ++i)
    hidden.data()[i] = relu(pre_activation.data()[i]) * gate_hidden.data()[i];
  return hidden;
}

TEMPLATE_TEST_CASE("a block's gates draw their noise one after another: up, gate_up, down", "[feed_forward]",
                   (FeedForward<MoeLayer<float>, Relu>), (FeedForward<MeoLayer<double>, Relu>)) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    INFO(to_string(level) << " level");
    const Case<TestType> c(options_at(level, true, false), {3, 0, 1, 5}, Mode::training);
    std::mt19937_64 rng(31), same(31);
    Inputs<S> inputs = c.batch.inputs();
    inputs.noise = Noise<S>(rng);
    const FeedForwardOutput<S> drawn = c.library.forward(c.input.x, inputs);

    const auto with_next_noise = [&](const auto& layer, const Matrix<S>& x) {
      const Matrix<S> noise = draw_noise<S>(drawn.up.rows, 4, same);
      inputs.noise = Noise<S>(noise);
      return layer.forward(x, inputs);
    };
    const Output<S> up = with_next_noise(c.library.up(), c.input.x),
                    gate_up = with_next_noise(c.library.gate_up(), c.input.x),
                    down = with_next_noise(c.library.down(), gated_hidden(up.y, gate_up.y));
    CHECK(rng == same);
    CHECK(bit_difference(drawn.up.dense(), up.routing.dense()) == "");
    CHECK(bit_difference(drawn.gate_up.dense(), gate_up.routing.dense()) == "");
    CHECK(bit_difference(drawn.down.dense(), down.routing.dense()) == "");
    CHECK(bit_difference(drawn.y, down.y) == "");
    CHECK(drawn.loss == up.routing.loss + gate_up.routing.loss + down.routing.loss);

    // A single gate draws once.
    const Case<TestType> shared(options_at(level, true, true), {3, 0, 1, 5}, Mode::training);
    inputs = shared.batch.inputs();
    inputs.noise = Noise<S>(rng);
    const auto [y, loss, routing, none, no_other] = shared.library.forward(shared.input.x, inputs);
    draw_noise<S>(routing.rows, 4, same);
    CHECK(rng == same);
  }
}

TEST_CASE("a block names the routing of each of its routers", "[feed_forward]") {
  using Block = FeedForward<MeoLayer<double>, Relu>;
  for (const bool gated : {false, true}) {
    for (const bool shared_gate : {false, true}) {
      for (const bool has_router : {false, true}) {
        if (!has_router && !shared_gate) continue;
        FeedForwardOptions options = options_at(Level::sequence, gated, shared_gate);
        options.has_router = has_router;
        const FeedForwardWorkspace<double> workspace;
        std::vector<std::pair<std::string, const void*>> named, expected;
        Block(options).visit_routings(workspace, [&](const std::string& name, const auto& routing) {
          named.emplace_back(name, &routing);
        });
        if (has_router) expected.emplace_back("up", &workspace.up.routing);
        if (gated && !shared_gate) expected.emplace_back("gate_up", &workspace.gate_up.routing);
        if (!shared_gate) expected.emplace_back("down", &workspace.down.routing);
        CHECK(named == expected);
      }
    }
  }
}

TEMPLATE_TEST_CASE("a block merges in the order that its options say", "[feed_forward]", (MeoLayer<float>),
                   (MeoLayer<double>)) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    for (const bool shared_gate : {false, true}) {
      INFO(to_string(level) << " level, shared gate " << shared_gate);
      const FeedForwardOptions options = options_at(level, true, shared_gate);
      const Case<FeedForward<TestType, Relu>> c(options, {40, 1, 0, 30});
      const auto in_order = [&](MergeOrder order) {
        const auto block = reference::library_block<FeedForward<TestType, Relu>>(c.block, order);
        const auto output = block.forward(c.input.x, c.batch.inputs());
        const TestType up = reference::library_layer<TestType>(c.block.up, order),
                       gate_up = reference::library_layer<TestType>(c.block.gate_up, order),
                       down = reference::library_layer<TestType>(c.block.down, order);
        Workspace<S> workspace;
        const auto routed = [&](const TestType& layer, const Matrix<S>& x, const Routing<S>& own) {
          Matrix<S> y(x.rows(), layer.out_features());
          layer.forward_routed(x, {.sequences = &c.batch.sequences()}, shared_gate ? output.up : own, y,
                               workspace);
          return y;
        };
        const Matrix<S> pre_activation = routed(up, c.input.x, output.up);
        const Matrix<S> hidden = gated_hidden(pre_activation, routed(gate_up, c.input.x, output.gate_up));
        CHECK(bit_difference(output.y, routed(down, hidden, output.down)) == "");
        return output.y;
      };
      const Matrix<S> merged = in_order(MergeOrder::merge_first),
                      combined = in_order(MergeOrder::combine_outputs);
      CHECK(bit_difference(merged, combined) != "");
      CHECK(bit_difference(merged.topRows(40), combined.topRows(40).eval()) != "");
    }
  }
}

TEST_CASE("a block starts with random values for up, gate_up and down, in that order", "[feed_forward]") {
  FeedForward<MeoLayer<float>> block(options_at(Level::token, true, false));
  std::mt19937_64 rng(9), same(9);
  block.initialize(rng);
  for (auto* layer : {&block.up(), &block.gate_up(), &block.down()}) {
    MeoLayer<float> expected(layer->options());
    expected.initialize(same);
    for (Index i = 0; i < 4; ++i) {
      CHECK(layer->weight(i) == expected.weight(i));
      CHECK(layer->bias(i) == expected.bias(i));
    }
    CHECK(layer->gate().weight() == expected.gate().weight());
  }
  CHECK(rng == same);
}

TEMPLATE_TEST_CASE("a block started from a dense one computes what that did", "[feed_forward]",
                   (FeedForward<MoeLayer<float>, Gelu>), (FeedForward<MoeLayer<double>, Gelu>),
                   (FeedForward<MeoLayer<float>, Gelu>), (FeedForward<MeoLayer<double>, Gelu>)) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    for (const bool shared_gate : {false, true}) {
      Case<TestType> c(options_at(level, true, shared_gate));
      const auto up = reference::random_affine<S>(c.rng, 5, 11),
                 gate_up = reference::random_affine<S>(c.rng, 5, 11),
                 down = reference::random_affine<S>(c.rng, 11, 5);
      c.library.up().initialize_from_dense(up.weight, up.bias);
      c.library.gate_up().initialize_from_dense(gate_up.weight, gate_up.bias);
      c.library.down().initialize_from_dense(down.weight, down.bias);
      const auto x = Bounded<S>::exact(c.input.x);
      Bounded<S> expected = down(multiply(activate(reference::Activation::gelu, up(x)), gate_up(x)));
      expected.error *= 3;  // the mixtures round K more terms than a dense projection
      CHECK(disagreement(c.forward().y, expected) == "");
    }
  }
}

TEMPLATE_TEST_CASE("a block's workspace serves any batch and strides", "[feed_forward]",
                   (FeedForward<MoeLayer<float>, Gelu>), (FeedForward<MeoLayer<float>, Gelu>)) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  FeedForwardWorkspace<float> workspace;
  for (const bool shared_gate : {false, true}) {
    for (const bool gated : {true, false}) {
      for (const auto& lengths : {std::vector<Index>{3, 0, 1, 5}, {20, 13}, {2}, {}}) {
        const Case<TestType> c(options_at(Level::token, gated, shared_gate), lengths);
        const Index tokens = c.input.x.rows();
        Matrix<float> around_x = Matrix<float>::Constant(tokens + 2, 5 + 4, nan);
        around_x.block(1, 3, tokens, 5) = c.input.x;
        Matrix<float> around_y = Matrix<float>::Constant(tokens + 2, 5 + 5, 7.f);
        around_y.block(1, 3, tokens, 5).setConstant(nan);
        const float loss = c.library.forward(around_x.block(1, 3, tokens, 5), c.batch.inputs(),
                                             around_y.block(1, 3, tokens, 5), workspace);
        const auto expected = c.forward();
        CHECK(loss == expected.loss);
        CHECK(bit_difference(around_y.block(1, 3, tokens, 5), expected.y) == "");
        around_y.block(1, 3, tokens, 5).setConstant(7.f);
        CHECK((around_y.array() == 7.f).all());
      }
    }
  }
}

TEMPLATE_TEST_CASE("a sequence alone gives the bits that it gives in a batch, through a block",
                   "[feed_forward]", (FeedForward<MoeLayer<float>, Gelu>),
                   (FeedForward<MeoLayer<double>, Gelu>)) {
  using S = typename TestType::Scalar;
  const MergeOrder order = GENERATE(MergeOrder::automatic, MergeOrder::merge_first);
  for (const bool shared_gate : {false, true}) {
    for (const Level level : all_levels) {
      FeedForwardOptions options = options_at(level, true, shared_gate);
      options.merge_order = order;
      const Case<TestType> c(options, {3, 0, 1, 25, 17});
      const auto expected = c.forward();
      for (Index b = 0; b < 5; ++b) {
        const reference::Rows rows = c.input.batch.sequence(b);
        Inputs<S> inputs;
        if (level == Level::task) {
          const reference::Rows description = c.input.batch.description(b);
          inputs.task_embeddings =
              c.input.batch.task_embeddings.middleRows(description.begin, description.count());
        }
        const auto alone = c.library.forward(c.input.x.middleRows(rows.begin, rows.count()), inputs);
        CHECK(bit_difference(alone.y, expected.y.middleRows(rows.begin, rows.count())) == "");
      }
      if (level == Level::task) continue;
      CHECK(bit_difference(c.library.forward(c.input.x, c.batch.sequences()).y, expected.y) == "");
    }
  }
}

TEMPLATE_TEST_CASE("no bit of a block depends on the number of threads", "[feed_forward]",
                   (FeedForward<MoeLayer<float>, Gelu>), (FeedForward<MeoLayer<double>, Gelu>)) {
  for (const bool shared_gate : {false, true}) {
    for (const Level level : all_levels) {
      const Case<TestType> c(options_at(level, true, shared_gate), {30, 0, 1, 41});
      const auto expected = c.forward().y;
      with_threads([&](Index threads) {
        INFO("level " << to_string(level) << ", " << threads << " threads");
        CHECK(bit_difference(c.forward().y, expected) == "");
      });
    }
  }
}

TEMPLATE_TEST_CASE("copies and moved blocks compute what the original did", "[feed_forward]",
                   (FeedForward<MoeLayer<float>, Gelu>), (FeedForward<MeoLayer<float>, Gelu>)) {
  Case<TestType> c(options_at(Level::token, true, false));
  const auto expected = c.forward().y;
  const auto run = [&](const TestType& block) { return block.forward(c.input.x, c.batch.inputs()).y; };
  TestType copy = c.library;
  std::mt19937_64 rng(1);
  c.library.initialize(rng);
  CHECK(bit_difference(run(c.library), expected) != "");
  CHECK(bit_difference(run(copy), expected) == "");
  TestType moved = std::move(copy);
  CHECK(bit_difference(run(moved), expected) == "");
  c.library = moved;
  moved.initialize(rng);
  CHECK(bit_difference(run(c.library), expected) == "");
}

TEST_CASE("a block's options are checked, and its gate_up is there only when gated", "[feed_forward]") {
  using Block = FeedForward<MeoLayer<float, 4>>;
  using Invalid = std::invalid_argument;
  const auto lacks = [](auto change, std::initializer_list<std::string> parts) {
    FeedForwardOptions options = options_at(Level::sequence, false, false);
    change(options);
    return error_lacks<Invalid>([&] { Block block(options); }, parts);
  };
  CHECK(lacks([](auto&) {}, {}) == "no exception");
  CHECK(lacks([](auto& o) { o.features = 0; }, {"meo: features: expected at least 1, got 0"}) == "");
  CHECK(lacks([](auto& o) { o.hidden_features = 0; }, {"meo: hidden_features: expected at least 1, got 0"}) ==
        "");
  CHECK(lacks([](auto& o) { o.top_k = 5; }, {"top_k", "got 5"}) == "");
  CHECK(lacks([](auto& o) { o.num_experts = 3; }, {"num_experts", "expected 4", "got 3"}) == "");

  FeedForwardOptions options = options_at(Level::sequence, false, false);
  options.num_experts = 0;
  Block block(options);
  CHECK(block.options().num_experts == 4);
  CHECK(error_lacks<Invalid>([&] { block.gate_up(); }, {"gate_up", "gated = false"}) == "");
  const Block gated(options_at(Level::sequence, true, false));
  CHECK(gated.gate_up().in_features() == 5);
  CHECK(gated.gate_up().out_features() == 11);
  CHECK(gated.up().out_features() == 11);
  CHECK(gated.down().in_features() == 11);
  CHECK(gated.down().out_features() == 5);
}

TEST_CASE("a block's projections have its options", "[feed_forward]") {
  const FeedForwardOptions set{.features = 5,
                               .hidden_features = 7,
                               .num_experts = 4,
                               .top_k = 3,
                               .shared_experts = {.count = 2, .weight = SharedWeight::sigmoid},
                               .bias = false,
                               .gated = true,
                               .shared_gate = true,
                               .routing = {.level = Level::token, .reduce_factor = 2},
                               .merge_order = MergeOrder::combine_outputs,
                               .has_router = false};
  for (const bool shared_gate : {false, true}) {
    for (const bool has_router : {false, true}) {
      if (!shared_gate && !has_router) continue;
      FeedForwardOptions options = set;
      options.shared_gate = shared_gate;
      options.has_router = has_router;
      const FeedForward<MeoLayer<double>> block(options);
      // An option more, of blocks or of layers, and these two no longer compile: see that it reaches
      // projections.
      const auto& [features, hidden_features, num_experts, top_k, shared_experts, bias, gated, shared,
                   routing, merge_order, any] = options;
      const auto check = [&](const LayerOptions& layer, Index in, Index out, bool router) {
        const auto& [in_features, out_features, experts, k, more_experts, has_bias, layer_routing, order,
                     layer_router] = layer;
        CHECK(in_features == in);
        CHECK(out_features == out);
        CHECK(experts == set.num_experts);
        CHECK(k == set.top_k);
        CHECK(more_experts == set.shared_experts);
        CHECK(has_bias == set.bias);
        CHECK(layer_routing == set.routing);
        CHECK(order == set.merge_order);
        CHECK(layer_router == router);
      };
      CHECK(gated);
      check(block.up().options(), features, hidden_features, has_router);
      check(block.gate_up().options(), features, hidden_features, !shared_gate);
      check(block.down().options(), hidden_features, features, !shared_gate);
    }
  }
}

TEMPLATE_TEST_CASE("a block that throws leaves y as it was", "[feed_forward]",
                   (FeedForward<MoeLayer<float>, Gelu>), (FeedForward<MeoLayer<float>, Gelu>)) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const bool shared_gate : {false, true}) {
    const auto lacks = [&]<class Exception>(Exception*, auto change,
                                            std::initializer_list<std::string> parts) {
      Case<TestType> c(options_at(Level::sequence, true, shared_gate));
      Matrix<float> x = c.input.x, y = Matrix<float>::Constant(9, 5, 7.f);
      Inputs<float> inputs = c.batch.inputs();
      change(c.library, x, inputs, y);
      FeedForwardWorkspace<float> workspace;
      const std::string error =
          error_lacks<Exception>([&] { c.library.forward(x, inputs, y, workspace); }, parts);
      if (error != "") return error;
      return std::string((y.array() == 7.f).all() ? "" : "y has changed");
    };
    constexpr std::invalid_argument* invalid = nullptr;
    constexpr std::domain_error* domain = nullptr;
    const Sequences short_batch = Sequences::from_lengths({3});
    CHECK(lacks(invalid, [](auto&&...) {}, {}) == "no exception");
    CHECK(lacks(invalid,
                [](auto&, auto& x, auto&, auto&) {
                  x.resize(9, 4);
                  x.setZero();
                },
                {"x", "features = 5", "got 4"}) == "");
    CHECK(lacks(invalid, [](auto&, auto&, auto&, auto& y) { y = Matrix<float>::Constant(9, 4, 7.f); },
                {"y", "9 x 5", "got 9 x 4"}) == "");
    CHECK(lacks(invalid, [&](auto&, auto&, auto& inputs, auto&) { inputs.sequences = &short_batch; },
                {"sequences", "9 tokens", "got 3"}) == "");
    CHECK(lacks(domain, [&](auto&, auto& x, auto&, auto&) { x(3, 0) = nan; }, {"finite", "row 2"}) == "");
    if (!shared_gate) {
      const auto break_down = [&](auto& block, auto&, auto&, auto&) {
        block.down().gate().set_weight(Matrix<float>::Constant(11, 4, nan));
      };
      CHECK(lacks(domain, break_down, {"finite", "row 0"}) == "");
    }
  }
}

TEMPLATE_TEST_CASE("a block's y must be apart from x", "[feed_forward]", (FeedForward<MoeLayer<float>, Gelu>),
                   (FeedForward<MeoLayer<float>, Gelu>)) {
  for (const bool shared_gate : {false, true}) {
    const Case<TestType> c(options_at(Level::sequence, true, shared_gate));
    Matrix<float> wide = Matrix<float>::Constant(9, 10, 7.f);
    wide.leftCols(5) = c.input.x;
    const Matrix<float> before = wide;
    const auto forward = [&](auto& memory, Index first) {
      return c.library.forward(wide.leftCols(5), c.batch.inputs(), wide.middleCols(first, 5), memory);
    };
    FeedForwardWorkspace<float> workspace;
    FeedForwardContext<float> context;
    for (const Index first : {0, 4}) {
      const std::initializer_list<std::string> parts{"y: expected memory that does not overlap x"};
      CHECK(error_lacks<std::invalid_argument>([&] { forward(workspace, first); }, parts) == "");
      CHECK(error_lacks<std::invalid_argument>([&] { forward(context, first); }, parts) == "");
      CHECK(bit_difference(wide, before) == "");
    }
    forward(workspace, 5);
    CHECK(bit_difference(wide.rightCols(5), c.forward().y) == "");
  }
}

TEMPLATE_TEST_CASE("a block that was moved from says so until it is assigned to", "[feed_forward]",
                   (FeedForward<MoeLayer<float>, Gelu>), (FeedForward<MeoLayer<float>, Gelu>)) {
  using Error = std::logic_error;
  for (const bool shared_gate : {false, true}) {
    Case<TestType> c(options_at(Level::token, true, shared_gate));
    FeedForwardContext<float> context;
    Matrix<float> y(9, 5), dx = Matrix<float>::Constant(9, 5, 7.f);
    c.library.forward(c.input.x, c.batch.inputs(), y, context);
    const Matrix<float> expected = y;
    const auto says_so = [](auto&& f, const std::string& name) {
      return error_lacks<Error>(f, {name + ": expected one to use, got one that was moved from"});
    };
    const auto backward = [&](const TestType& block, TestType& gradients) {
      block.backward(c.input.x, c.batch.inputs(), context, y, gradients, dx);
    };
    TestType moved = std::move(c.library);
    CHECK(c.library.empty());
    CHECK_FALSE(moved.empty());
    CHECK(says_so([&] { c.forward(); }, "block") == "");
    CHECK(says_so([&] { c.library.forward(c.input.x, c.batch.inputs(), y, context); }, "block") == "");
    CHECK(bit_difference(y, expected) == "");
    CHECK(says_so([&] { backward(c.library, moved); }, "block") == "");
    CHECK(says_so([&] { backward(moved, c.library); }, "gradients") == "");
    CHECK((dx.array() == 7.f).all());
    CHECK(says_so([&] { c.library.up().forward(c.input.x); }, "layer") == "");
    c.library = moved;
    CHECK(bit_difference(c.forward().y, expected) == "");
    TestType& same = c.library;
    c.library = std::move(same);  // as it was or empty
    if (c.library.empty()) CHECK(says_so([&] { c.forward(); }, "block") == "");
    else CHECK(bit_difference(c.forward().y, expected) == "");

    for (int part = 0; part < 3; ++part) {
      TestType lacking = moved;
      auto* const layer = part == 0 ? &lacking.up() : part == 1 ? &lacking.gate_up() : &lacking.down();
      const auto taken = std::move(*layer);
      CHECK(says_so([&] { lacking.forward(c.input.x); }, "block") == "");
    }
  }
}

}  // namespace feed_forward_test
}  // namespace

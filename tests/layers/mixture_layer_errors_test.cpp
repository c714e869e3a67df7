// Every error of the layers: what it says, and that nothing has changed.

#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "reference/library.hpp"
#include "reference/random_layer.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace mixture_layer_errors_test {

using namespace meo;
using namespace meo::test;
using Invalid = std::invalid_argument;

#define MEO_LAYERS (MoeLayer<float>), (MeoLayer<double>)

LayerOptions options_at(Level level) { return small_layer(level, 3, 5); }

template <class Library>
Library random_library(const LayerOptions& options) {
  Generator rng(41);
  return reference::library_layer<Library>(reference::random_parameters<Library>(options, rng));
}

/// All of a layer's parameters in one column.
template <class Library>
Vector<typename Library::Scalar> all_parameters(const Library& layer) {
  std::vector<typename Library::Scalar> values;
  const auto append = [&](const auto& matrix) {
    for (Index r = 0; r < matrix.rows(); ++r) {
      for (Index c = 0; c < matrix.cols(); ++c) values.push_back(matrix(r, c));
    }
  };
  for (Index i = 0; i < layer.num_experts(); ++i) {
    append(layer.weight(i));
    if (layer.options().bias) append(layer.bias(i));
  }
  append(layer.gate().weight());
  append(layer.gate().noise_weight());
  if constexpr (reference::KindOf<Library>::value == reference::Kind::meo) {
    if (layer.options().routing.level == Level::token) {
      append(layer.token_attention().up().weight());
      append(layer.token_attention().up().bias());
    }
  }
  return Eigen::Map<const Vector<typename Library::Scalar>>(values.data(), Index(values.size()));
}

TEMPLATE_TEST_CASE("options that make no layer are refused", "[routed_layer]", MEO_LAYERS) {
  const auto lacks = [](auto change, std::initializer_list<std::string> parts) {
    LayerOptions options = options_at(Level::task);
    change(options);
    return error_lacks<Invalid>([&] { TestType layer(options); }, parts);
  };
  CHECK(lacks([](auto&) {}, {}) == "no exception");
  CHECK(lacks([](auto& o) { o.in_features = 0; }, {"in_features", "at least 1", "got 0"}) == "");
  CHECK(lacks([](auto& o) { o.in_features = -1; }, {"in_features", "at least 1", "got -1"}) == "");
  CHECK(lacks([](auto& o) { o.out_features = 0; }, {"out_features", "at least 1", "got 0"}) == "");
  CHECK(lacks([](auto& o) { o.num_experts = -2; }, {"num_experts", "got -2"}) == "");
  CHECK(lacks([](auto& o) { o.top_k = 0; }, {"top_k", "1 to num_experts = 4", "got 0"}) == "");
  CHECK(lacks([](auto& o) { o.top_k = 5; }, {"top_k", "1 to num_experts = 4", "got 5"}) == "");
  CHECK(lacks([](auto& o) { o.routing.level = static_cast<Level>(7); },
              {"level", "token, sequence, task or segment", "got 7"}) == "");
  CHECK(lacks([](auto& o) { o.routing.reduce_factor = 0; }, {"reduce_factor", "at least 1", "got 0"}) == "");
  CHECK(lacks([](auto& o) { o.routing.task_features = 0; }, {"task_features", "at least 1", "got 0"}) == "");
  CHECK(lacks([](auto& o) { o.routing.loss_coefficient = -0.5; }, {"loss_coefficient", "got -0.5"}) == "");
  CHECK(lacks([](auto& o) { o.routing.loss_coefficient = std::numeric_limits<double>::quiet_NaN(); },
              {"loss_coefficient", "nan"}) == "");
  CHECK(lacks([](auto& o) { o.merge_order = static_cast<MergeOrder>(3); },
              {"merge_order", "automatic, merge_first or combine_outputs", "got 3"}) == "");
  CHECK(lacks([](auto& o) { o.routing.noise_epsilon = -1; }, {"noise_epsilon", "got -1"}) == "");
  CHECK(lacks([](auto& o) { o.in_features = o.out_features = Index(1) << 40; }, {"fits memory"}) == "");
}

TEMPLATE_TEST_CASE("coefficients that are not finite, or no deviation at all, are refused", "[routed_layer]",
                   MEO_LAYERS) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  LayerOptions options = options_at(Level::sequence);
  for (const double epsilon : {0.0, inf, std::numeric_limits<double>::quiet_NaN()}) {
    options.routing.noise_epsilon = epsilon;
    CHECK(error_lacks<Invalid>([&] { TestType layer(options); },
                               {"noise_epsilon: expected a finite number above 0, got "}) == "");
  }
  options = options_at(Level::sequence);
  options.routing.loss_coefficient = inf;
  CHECK(error_lacks<Invalid>([&] { TestType layer(options); },
                             {"loss_coefficient: expected a finite number of at least 0, got inf"}) == "");
  options.routing.loss_coefficient = 0;
  CHECK(error_lacks<Invalid>([&] { TestType layer(options); }, {}) == "no exception");
}

TEST_CASE("coefficients that the scalar rounds away are refused", "[routed_layer]") {
  LayerOptions options = options_at(Level::sequence);
  options.routing.noise_epsilon = 1e-50;
  CHECK(error_lacks<Invalid>([&] { MeoLayer<float> layer(options); },
                             {"noise_epsilon", "does not round to 0, got 1e-50"}) == "");
  CHECK(error_lacks<Invalid>([&] { MeoLayer<double> layer(options); }, {}) == "no exception");
  options.routing.noise_epsilon = 1e39;
  CHECK(error_lacks<Invalid>([&] { MeoLayer<float> layer(options); },
                             {"noise_epsilon", "scalar holds, got 1e+39"}) == "");
  options = options_at(Level::sequence);
  options.routing.loss_coefficient = 1e39;
  CHECK(error_lacks<Invalid>([&] { MeoLayer<float> layer(options); },
                             {"loss_coefficient", "scalar holds, got 1e+39"}) == "");
}

TEST_CASE("an expert count must be given once, and not in two ways", "[routed_layer]") {
  LayerOptions options = options_at(Level::sequence);
  options.num_experts = 3;
  CHECK(error_lacks<Invalid>([&] { MoeLayer<float, 4> layer(options); },
                             {"num_experts", "expected 4", "got 3"}) == "");
  CHECK(error_lacks<Invalid>([&] { MeoLayer<float, 4> layer(options); },
                             {"num_experts", "expected 4", "got 3"}) == "");
  options.num_experts = 0;
  CHECK(error_lacks<Invalid>([&] { MoeLayer<float> layer(options); },
                             {"num_experts", "at least 1", "got 0"}) == "");
  CHECK(error_lacks<Invalid>([&] { MeoLayer<float> layer(options); },
                             {"num_experts", "at least 1", "got 0"}) == "");
}

TEMPLATE_TEST_CASE("a refused parameter changes nothing", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  TestType layer = random_library<TestType>(options_at(Level::token));
  const auto before = all_parameters(layer);
  const Matrix<S> weight = Matrix<S>::Ones(5, 3), transposed = Matrix<S>::Ones(3, 5),
                  square = Matrix<S>::Ones(5, 5);
  const Vector<S> bias = Vector<S>::Ones(5), short_bias = Vector<S>::Ones(4);

  CHECK(error_lacks<Invalid>([&] { layer.set_weight(0, transposed); }, {"weight", "5 x 3", "got 3 x 5"}) ==
        "");
  CHECK(error_lacks<Invalid>([&] { layer.set_weight(0, square); }, {"weight", "5 x 3", "got 5 x 5"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.set_weight(4, weight); }, {"expert", "0 to 3", "got 4"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.set_weight(-1, weight); }, {"expert", "0 to 3", "got -1"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.set_bias(0, short_bias); }, {"bias", "expected 5", "got 4"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.set_bias(4, bias); }, {"expert", "0 to 3", "got 4"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.weight(4); }, {"expert", "0 to 3", "got 4"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.bias(-1); }, {"expert", "0 to 3", "got -1"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.gate().set_weight(weight); },
                             {"gate weight", "3 x 4", "got 5 x 3"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.gate().set_noise_weight(weight); },
                             {"noise weight", "3 x 4", "got 5 x 3"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.initialize_from_dense(transposed, bias); },
                             {"dense weight", "5 x 3", "got 3 x 5"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.initialize_from_dense(weight, short_bias); },
                             {"dense bias", "expected 5", "got 4"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.initialize_from_dense(weight); }, {"dense bias", "got none"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.task_projection(); },
                             {"task_projection", "task level", "got token"}) == "");
  CHECK(bit_difference(all_parameters(layer), before) == "");
}

TEMPLATE_TEST_CASE("a layer without biases has none to read or set", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  LayerOptions options = options_at(Level::sequence);
  options.bias = false;
  TestType layer = random_library<TestType>(options);
  const auto before = all_parameters(layer);
  const Vector<S> bias = Vector<S>::Ones(5);
  const Matrix<S> weight = Matrix<S>::Ones(5, 3);
  CHECK(error_lacks<Invalid>([&] { layer.set_bias(0, bias); }, {"bias", "bias = false"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.bias(0); }, {"bias", "bias = false"}) == "");
  CHECK(error_lacks<Invalid>([&] { layer.initialize_from_dense(weight, bias); },
                             {"dense bias", "expected none", "got 5 values"}) == "");
  const Matrix<S> transposed = Matrix<S>::Ones(3, 5);
  CHECK(error_lacks<Invalid>([&] { layer.initialize_from_dense(transposed); },
                             {"dense weight", "5 x 3", "got 3 x 5"}) == "");
  CHECK(bit_difference(all_parameters(layer), before) == "");
}

TEST_CASE("a layer has token attention at token level only", "[meo_layer]") {
  MeoLayer<float> layer(options_at(Level::sequence));
  CHECK(error_lacks<Invalid>([&] { layer.token_attention(); },
                             {"token_attention", "token level", "at sequence level"}) == "");
}

/// A forward pass with a result and a workspace of its own; y is filled with sevens and must stay so when it
/// throws.
template <class Library>
struct Attempt {
  using S = typename Library::Scalar;

  explicit Attempt(Level level) : layer(random_library<Library>(options_at(level))) {
    Generator rng(42);
    x = random_matrix<S>(rng, 6, 3);
    y = Matrix<S>::Constant(6, 5, S(7));
    embeddings = random_matrix<S>(rng, 4, 6);
    inputs.sequences = &sequences;
    if (level == Level::task) inputs.task_embeddings = embeddings;
  }
  Attempt(const Attempt&) = delete;

  template <class Exception>
  std::string lacks(std::initializer_list<std::string> parts) {
    const std::string error = error_lacks<Exception>([&] { layer.forward(x, inputs, y, workspace); }, parts);
    if (error != "") return error;
    return (y.array() == S(7)).all() ? "" : "y has changed";
  }

  Library layer;
  Matrix<S> x, y, embeddings;
  Sequences sequences = Sequences::from_lengths({2, 1, 3});
  Inputs<S> inputs;
  Workspace<S> workspace;
};

TEMPLATE_TEST_CASE("forward refuses shapes that do not fit", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    Attempt<TestType> good(level);
    CHECK(good.template lacks<Invalid>({}) == "no exception");
    {
      Attempt<TestType> a(level);
      a.x = Matrix<S>::Ones(6, 4);
      CHECK(a.template lacks<Invalid>({"x", "in_features = 3", "got 4"}) == "");
    }
    {
      Attempt<TestType> a(level);
      a.y = Matrix<S>::Constant(6, 3, S(7));
      CHECK(a.template lacks<Invalid>({"y", "6 x 5", "got 6 x 3"}) == "");
    }
    {
      Attempt<TestType> a(level);
      a.y = Matrix<S>::Constant(5, 5, S(7));
      CHECK(a.template lacks<Invalid>({"y", "6 x 5", "got 5 x 5"}) == "");
    }
    {
      Attempt<TestType> a(level);
      a.sequences = Sequences::from_lengths({2, 1, 4});
      CHECK(a.template lacks<Invalid>({"sequences", "6 tokens", "got 7"}) == "");
    }
    {
      Attempt<TestType> a(level);
      const Matrix<S> noise = Matrix<S>::Zero(2, 4);
      a.inputs.noise = Noise<S>(noise);
      const bool by_token = level == Level::token && TestType::Kind::routes_tokens;
      CHECK(a.template lacks<Invalid>({"noise", by_token ? "6 x 4" : "3 x 4", "got 2 x 4"}) == "");
    }
    {
      Attempt<TestType> a(level);
      const Matrix<S> noise = Matrix<S>::Zero(a.layer.gated_rows(6, 3), 3);
      a.inputs.noise = Noise<S>(noise);
      CHECK(a.template lacks<Invalid>({"noise", " x 4", " x 3"}) == "");
    }
  }
}

TEMPLATE_TEST_CASE("forward refuses descriptions that do not fit", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  using A = Attempt<TestType>;
  const auto lacks = [](auto change, std::initializer_list<std::string> parts) {
    A attempt(Level::task);
    change(attempt);
    return attempt.template lacks<Invalid>(parts);
  };
  const Matrix<S> wide = Matrix<S>::Ones(4, 7);
  const Sequences two = Sequences::from_lengths({1, 3}), too_long = Sequences::from_lengths({1, 4});
  const std::vector<Index> short_list{0, 0}, out_of_range{0, 1, 2}, negative{0, -1, 0};

  CHECK(lacks([](A& a) { a.inputs.task_embeddings = {}; }, {"task_embeddings", "got none"}) == "");
  CHECK(lacks([&](A& a) { a.inputs.task_embeddings = wide; },
              {"task_embeddings", "task_features = 6", "got 7"}) == "");
  CHECK(lacks([&](A& a) { a.inputs.descriptions = &too_long; }, {"descriptions", "4 tokens", "got 5"}) == "");
  CHECK(lacks([&](A& a) { a.inputs.descriptions = &two; }, {"descriptions", "3 sequences", "got 2"}) == "");
  CHECK(lacks([&](A& a) { a.inputs.task_of_sequence = short_list; },
              {"task_of_sequence", "3 entries", "got 2"}) == "");
  CHECK(lacks(
            [&](A& a) {
              a.inputs.descriptions = &two;
              a.inputs.task_of_sequence = out_of_range;
            },
            {"task_of_sequence", "0 to 1", "got 2"}) == "");
  CHECK(lacks(
            [&](A& a) {
              a.inputs.descriptions = &two;
              a.inputs.task_of_sequence = negative;
            },
            {"task_of_sequence", "0 to 1", "got -1"}) == "");
}

TEMPLATE_TEST_CASE("forward refuses descriptions at other levels", "[routed_layer]", MEO_LAYERS) {
  const std::vector<Index> list{0, 0, 0};
  for (const Level level : {Level::token, Level::sequence}) {
    Attempt<TestType> embeddings(level), descriptions(level), tasks(level);
    embeddings.inputs.task_embeddings = embeddings.embeddings;
    descriptions.inputs.descriptions = &descriptions.sequences;
    tasks.inputs.task_of_sequence = list;
    for (auto* attempt : {&embeddings, &descriptions, &tasks}) {
      CHECK(attempt->template lacks<Invalid>({"expected none", std::string(to_string(level)), "got some"}) ==
            "");
    }
  }
}

TEMPLATE_TEST_CASE("logits that are not finite are refused, with their row", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  using Limits = std::numeric_limits<S>;
  for (const Level level : {Level::token, Level::sequence}) {
    const bool by_token = level == Level::token && TestType::Kind::routes_tokens;
    for (const S bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
      Attempt<TestType> a(level);
      a.x(4, 1) = bad;  // token 4 is in sequence 2
      CHECK(a.template lacks<std::domain_error>({"finite", by_token ? "row 4" : "row 2"}) == "");
      a.x(4, 1) = 0;
      CHECK(a.template lacks<std::domain_error>({}) == "no exception");  // layer and workspace are as before
    }
    Attempt<TestType> a(level);
    Matrix<S> noise = Matrix<S>::Zero(a.layer.gated_rows(6, 3), 4);
    noise(1, 3) = Limits::quiet_NaN();
    a.inputs.noise = Noise<S>(noise);
    CHECK(a.template lacks<std::domain_error>({"finite", "row 1"}) == "");
  }
  Attempt<TestType> task(Level::task);
  task.embeddings(2, 2) = Limits::quiet_NaN();
  CHECK(task.template lacks<std::domain_error>({"finite", "row 0"}) == "");
  const Sequences descriptions = Sequences::from_lengths({1, 1, 2});
  task.inputs.descriptions = &descriptions;  // token 2 is in that of sequence 2
  CHECK(task.template lacks<std::domain_error>({"finite", "row 2"}) == "");
  const std::vector<Index> tasks{0, 2, 1};
  task.inputs.task_of_sequence = tasks;
  CHECK(task.template lacks<std::domain_error>({"finite", "row 1"}) == "");
}

TEMPLATE_TEST_CASE("a routing from elsewhere that does not fit is refused", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  using R = Routing<S>;
  using Limits = std::numeric_limits<S>;
  for (const Level level : all_levels) {
    INFO(to_string(level) << " level");
    const auto lacks = [&](auto change, std::initializer_list<std::string> parts) {
      Attempt<TestType> a(level);
      R routing = a.layer.route(a.x, a.inputs, a.workspace);
      routing.experts = {2, 0, 1, 3, 3, 2};
      routing.experts.resize(std::size_t(2 * routing.rows), 0);
      for (std::size_t i = 7; i < routing.experts.size(); i += 2) routing.experts[i] = 1;
      change(routing);
      const std::string error = error_lacks<Invalid>(
          [&] { a.layer.forward_routed(a.x, a.inputs, routing, a.y, a.workspace); }, parts);
      if (error != "") return error;
      return std::string((a.y.array() == S(7)).all() ? "" : "y has changed");
    };
    const std::string rows = level == Level::token && TestType::Kind::routes_tokens ? "6" : "3";
    const std::string pairs = rows == "6" ? "12" : "6", fewer = rows == "6" ? "11" : "5";
    CHECK(lacks([](R&) {}, {}) == "no exception");
    CHECK(lacks([](R& r) { r.rows = 4; }, {"routing", "expected " + rows + " rows", "got 4"}) == "");
    CHECK(lacks([](R& r) { r.num_experts = 5; }, {"routing", "num_experts = 4", "got 5"}) == "");
    CHECK(lacks([](R& r) { r.top_k = 0; }, {"routing", "top_k from 1 to 4", "got 0"}) == "");
    CHECK(lacks([](R& r) { r.top_k = 5; }, {"routing", "top_k from 1 to 4", "got 5"}) == "");
    CHECK(lacks([](R& r) { r.experts.pop_back(); },
                {"expected " + pairs + " pairs", "got " + fewer + " experts and " + pairs + " weights"}) ==
          "");
    CHECK(lacks([](R& r) { r.weights.pop_back(); },
                {"expected " + pairs + " pairs", "got " + pairs + " experts and " + fewer + " weights"}) ==
          "");
    CHECK(lacks([](R& r) { r.experts[4] = 4; }, {"expert", "0 to 3", "got 4"}) == "");
    CHECK(lacks([](R& r) { r.experts[4] = -1; }, {"expert", "0 to 3", "got -1"}) == "");
    CHECK(lacks([](R& r) { r.experts[3] = 1; },
                {"routing", "distinct experts in row 1", "got expert 1 twice"}) == "");
    for (const S bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
      CHECK(lacks([&](R& r) { r.weights[5] = bad; }, {"routing", "finite weights", "row 2 for expert 2"}) ==
            "");
    }
  }
}

TEMPLATE_TEST_CASE("y must be apart from x", "[routed_layer]", MEO_LAYERS) {
  using S = typename TestType::Scalar;
  for (const Level level : all_levels) {
    INFO(to_string(level) << " level");
    Attempt<TestType> a(level);
    const auto expected = a.layer.forward(a.x, a.inputs);
    // x in columns of a matrix, and y beside it or on it.
    Matrix<S> wide = Matrix<S>::Constant(6, 13, S(7));
    wide.middleCols(5, 3) = a.x;
    const Matrix<S> before = wide;
    const auto forward = [&](Index first, bool routed) {
      const auto x = wide.middleCols(5, 3);
      if (routed)
        a.layer.forward_routed(x, a.inputs, expected.routing, wide.middleCols(first, 5), a.workspace);
      else a.layer.forward(x, a.inputs, wide.middleCols(first, 5), a.workspace);
    };
    for (const bool routed : {false, true}) {
      for (const Index first : {1, 4, 5, 7}) {
        CHECK(error_lacks<Invalid>([&] { forward(first, routed); },
                                   {"y: expected memory that does not overlap x, got some that does"}) == "");
        CHECK(bit_difference(wide, before) == "");
      }
      for (const Index first : {0, 8}) {
        forward(first, routed);
        CHECK(bit_difference(wide.middleCols(first, 5), expected.y) == "");
        wide = before;
      }
    }
    Matrix<S> none(0, 13);  // without values nothing overlaps
    const Sequences no_sequences;
    a.inputs.sequences = &no_sequences;
    CHECK_NOTHROW(a.layer.forward(none.leftCols(3), a.inputs, none.leftCols(5), a.workspace));
  }
}

TEMPLATE_TEST_CASE("a layer that was moved from says so until it is assigned to", "[routed_layer]",
                   MEO_LAYERS) {
  using S = typename TestType::Scalar;
  using A = Attempt<TestType>;
  const auto says_so = [](auto&& f) {
    return error_lacks<std::logic_error>(f, {"expected one to use, got one that was moved from"});
  };
  for (const Level level : all_levels) {
    INFO(to_string(level) << " level");
    A a(level);
    const auto expected = a.layer.forward(a.x, a.inputs);
    Context<S> context;
    a.layer.forward(a.x, a.inputs, a.y, context);
    a.y.setConstant(S(7));
    CHECK_FALSE(a.layer.empty());
    TestType moved = std::move(a.layer);
    CHECK_FALSE(moved.empty());
    CHECK(a.layer.empty());

    const Matrix<S> weight = Matrix<S>::Ones(5, 3);
    const Vector<S> bias = Vector<S>::Ones(5);
    std::mt19937_64 rng(1);
    std::vector<S> d_weights(expected.routing.weights.size());
    Matrix<S> dx = Matrix<S>::Constant(6, 3, S(7));
    CHECK(a.template lacks<std::logic_error>({"meo: layer: ", "moved from"}) == "");
    CHECK(says_so([&] { a.layer.forward(a.x); }) == "");
    CHECK(says_so([&] { a.layer.route(a.x, a.inputs, a.workspace); }) == "");
    CHECK(says_so([&] { a.layer.forward_routed(a.x, a.inputs, expected.routing, a.y, a.workspace); }) == "");
    CHECK(says_so([&] { a.layer.backward(a.x, a.inputs, context, a.y, moved, dx); }) == "");
    CHECK(says_so([&] {
            a.layer.backward_routed(a.x, a.inputs, expected.routing, context, a.y, moved, dx, d_weights);
          }) == "");
    CHECK(says_so([&] { a.layer.weight(0); }) == "");
    CHECK(says_so([&] { a.layer.set_weight(0, weight); }) == "");
    CHECK(says_so([&] { a.layer.bias(0); }) == "");
    CHECK(says_so([&] { a.layer.set_bias(0, bias); }) == "");
    CHECK(says_so([&] { a.layer.gate().weight(); }) == "");
    CHECK(says_so([&] { a.layer.experts().values(); }) == "");
    CHECK(says_so([&] { a.layer.initialize(rng); }) == "");
    CHECK(says_so([&] { a.layer.initialize_from_dense(weight, bias); }) == "");
    CHECK(says_so([&] { a.layer.initialize_from_dense(weight, bias, rng); }) == "");
    const auto before = all_parameters(moved);
    CHECK(says_so([&] { moved.backward(a.x, a.inputs, context, a.y, a.layer, dx); }) == "");
    CHECK(error_lacks<std::logic_error>(
              [&] { moved.backward(a.x, a.inputs, context, a.y, a.layer, dx); },
              {"meo: gradients: expected one to use, got one that was moved from"}) == "");
    CHECK((dx.array() == S(7)).all());
    CHECK(bit_difference(all_parameters(moved), before) == "");
    const TestType copy = a.layer;
    CHECK(says_so([&] { copy.forward(a.x); }) == "");

    a.layer = moved;
    CHECK(bit_difference(a.layer.forward(a.x, a.inputs).y, expected.y) == "");
    TestType& same = a.layer;
    a.layer = std::move(same);  // as it was or empty
    if (a.layer.empty()) {
      CHECK(says_so([&] { a.layer.forward(a.x, a.inputs); }) == "");
    } else {
      CHECK(bit_difference(a.layer.forward(a.x, a.inputs).y, expected.y) == "");
    }
    // Of a part that was moved away alone.
    const auto gate = std::move(moved.gate());
    CHECK(moved.empty());
    CHECK(says_so([&] { moved.forward(a.x, a.inputs); }) == "");
  }
}

TEMPLATE_TEST_CASE("a layer is empty without its task projection or its token attention", "[routed_layer]",
                   MEO_LAYERS) {
  Attempt<TestType> task(Level::task), token(Level::token);
  const auto projection = std::move(task.layer.task_projection());
  CHECK(task.template lacks<std::logic_error>({"meo: layer: ", "moved from"}) == "");
  if constexpr (test::is_meo<TestType>) {
    const auto up = std::move(token.layer.token_attention().up());
    CHECK(token.template lacks<std::logic_error>({"meo: layer: ", "moved from"}) == "");
  }
}

}  // namespace mixture_layer_errors_test
}  // namespace

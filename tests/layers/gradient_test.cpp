// Gradients of layers against central differences of the reference, and the identities that they obey.

#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "kernels/threads.hpp"
#include "reference/check_differences.hpp"
#include "reference/gradients.hpp"
#include "reference/random_layer.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace {

using namespace meo;
using namespace meo::test;

LayerOptions small_options(Level level, Index top_k) {
  LayerOptions options;
  options.in_features = 5;
  options.out_features = 7;
  options.num_experts = 4;
  options.top_k = top_k;
  options.level = level;
  options.reduce_factor = 2;
  options.loss_coefficient = 0.25;
  options.noise_epsilon = 0.125;
  if (level == Level::task) options.task_features = 6;
  return options;
}

/// A layer with a batch and a gradient of y.
template <class Library>
struct Case {
  using S = typename Library::Scalar;
  reference::Layer<S> layer;
  reference::RandomInput<S> input;
  Matrix<S> dy;

  Case(const LayerOptions& options, const std::vector<Index>& lengths, reference::Mode mode, Generator& rng)
      : layer(reference::random_layer<S>(reference::KindOf<Library>::value, options, rng)),
        input(reference::random_input(layer, lengths, mode, rng)),
        dy(random_matrix<S>(rng, input.x.rows(), options.out_features)) {}

  Library library() const { return reference::library_layer<Library>(layer); }
  auto backward(const Matrix<S>& cotangent, S d_loss = 1) const {
    return reference::backward(library(), layer, input.x, input.batch, cotangent, d_loss);
  }
};

TEMPLATE_TEST_CASE("a layer's gradients are the differences of its loss", "[gradient]", MoeLayer<double>,
                   (MeoLayer<double, 4>)) {
  Generator rng(31);
  for (const Level level : {Level::token, Level::sequence, Level::task}) {
    for (const Index top_k : {1, 2, 4}) {
      for (const auto mode : {reference::Mode::inference, reference::Mode::training}) {
        for (const bool gate_before_attention : {false, true}) {
          if (gate_before_attention && level != Level::token) continue;
          LayerOptions options = small_options(level, top_k);
          options.gate_before_attention = gate_before_attention;
          INFO("level " << to_string(level) << ", K " << top_k << ", training "
                        << (mode == reference::Mode::training) << ", gate before attention "
                        << gate_before_attention);
          const Case<TestType> c(options, {3, 0, 1, 4}, mode, rng);
          reference::check_differences(c.library(), c.layer, c.input, c.dy);
        }
      }
    }
  }
}

/// All gradients under each other as one column.
template <class Parameters, class S>
Matrix<S> flat(reference::Gradients<Parameters, S> gradients) {
  std::vector<S> values(gradients.x.data(), gradients.x.data() + gradients.x.size());
  for (const auto& tensor : reference::tensors(gradients.parameters))
    values.insert(values.end(), tensor.values.data(), tensor.values.data() + tensor.values.size());
  return Eigen::Map<const Matrix<S>>(values.data(), static_cast<Index>(values.size()), 1);
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
        reference::Layer<double> vanilla = merged.layer;
        vanilla.kind = reference::Kind::moe;
        const auto expected = reference::backward(reference::library_layer<MoeLayer<double>>(vanilla),
                                                  vanilla, merged.input.x, merged.input.batch, merged.dy);
        // Sums of up to 140 · 41 products of numbers below 1, of which the largest stay near 10.
        CHECK(disagreement_in_max_norm(flat(merged.backward(merged.dy)), flat(expected), 1e-12) == "");
      }
    }
  }
}

TEMPLATE_TEST_CASE("gradients are linear in those of y and of the loss, and accumulate", "[gradient]",
                   MoeLayer<double>, MeoLayer<double>) {
  Generator rng(33);
  for (const Level level : {Level::token, Level::sequence, Level::task}) {
    const Case<TestType> c(small_options(level, 2), {3, 0, 1, 4}, reference::Mode::training, rng);
    const Matrix<double> other = random_matrix<double>(rng, c.dy.rows(), c.dy.cols());
    const Matrix<double> sum = flat(c.backward(c.dy, 1)) - 2 * flat(c.backward(other, 0.5));
    CHECK(disagreement_in_max_norm(flat(c.backward(c.dy - 2 * other, 0)), sum, 1e-13) == "");

    const TestType library = c.library();
    const reference::LibraryBatch<double> batch(c.input.batch);
    Context<double> context;
    TestType gradients(library.options());
    Matrix<double> y(c.dy.rows(), c.dy.cols()), dx(c.input.x.rows(), c.input.x.cols());
    library.forward(c.input.x, batch.inputs(), y, context);
    for (int pass = 0; pass < 2; ++pass)
      library.backward(c.input.x, batch.inputs(), context, c.dy, gradients, dx);
    const auto once = c.backward(c.dy);
    CHECK(bit_difference(dx, once.x) == "");
    const reference::Gradients<reference::Layer<double>, double> twice{
        reference::parameters_of(gradients, c.layer), 2 * dx, {}};
    CHECK(disagreement_in_max_norm(flat(twice), Matrix<double>(2 * flat(once)), 1e-13) == "");
  }
}

TEMPLATE_TEST_CASE("gradients have the same bits for any number of threads", "[gradient]", MoeLayer<float>,
                   MeoLayer<float>) {
  Generator rng(34);
  for (const Level level : {Level::token, Level::sequence}) {
    LayerOptions options = small_options(level, 2);
    options.in_features = 83;
    options.out_features = 301;
    const Case<TestType> c(options, {3, 0, 1, 40}, reference::Mode::inference, rng);
    const Matrix<float> expected = flat(c.backward(c.dy));
    with_threads([&](Index) { CHECK(bit_difference(flat(c.backward(c.dy)), expected) == ""); });
  }
}

TEST_CASE("sequences that share a merge by chance have gate gradients of their own", "[gradient]") {
  Generator rng(35);
  // A zero gate, as upcycling leaves it: all sequences select the same experts with the same weights.
  LayerOptions options = small_options(Level::sequence, 2);
  Case<MeoLayer<double>> c(options, {3, 2, 4}, reference::Mode::inference, rng);
  c.layer.gate_weight.setZero();
  reference::Layer<double> vanilla = c.layer;
  vanilla.kind = reference::Kind::moe;
  const auto expected = reference::backward(reference::library_layer<MoeLayer<double>>(vanilla), vanilla,
                                            c.input.x, c.input.batch, c.dy);
  CHECK(disagreement_in_max_norm(flat(c.backward(c.dy)), flat(expected), 1e-13) == "");
}

TEST_CASE("sequences of one task share a merge and add up in its gradients", "[gradient]") {
  Generator rng(36);
  for (const auto mode : {reference::Mode::inference, reference::Mode::training}) {
    Case<MeoLayer<double>> c(small_options(Level::task, 2), {3, 2, 4, 1}, mode, rng);
    c.input.batch.task_of_sequence = {1, 0, 1, 1};
    reference::Layer<double> vanilla = c.layer;
    vanilla.kind = reference::Kind::moe;
    const auto actual = c.backward(c.dy);
    const auto expected = reference::backward(reference::library_layer<MoeLayer<double>>(vanilla), vanilla,
                                              c.input.x, c.input.batch, c.dy);
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
    for (const float value : gradients.experts().values())
      if (value != 0) return std::string("gradients have changed");
    return std::string((dx.array() == 7.f).all() ? "" : "dx has changed");
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

}  // namespace

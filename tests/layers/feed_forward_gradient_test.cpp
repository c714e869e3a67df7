// Gradients of feed-forward blocks against central differences of the reference.

#include <string>
#include <type_traits>
#include <vector>

#include <meo/experts/activation.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "reference/gradients.hpp"
#include "reference/library_block.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace {

using namespace meo;
using namespace meo::test;

// As in gradient_test.cpp.
constexpr long double difference_tolerance = 1e-8L;

template <class Block>
constexpr auto kind_of =
    std::is_same_v<decltype(std::declval<Block&>().up()), MoeLayer<double>&> ? reference::Kind::moe
                                                                             : reference::Kind::meo;

template <class Block>
void check_differences(const FeedForwardOptions& options, reference::Activation activation,
                       reference::Mode mode, Generator& rng) {
  reference::Block<double> block = reference::random_block<double>(kind_of<Block>, activation, options, rng);
  auto input = reference::random_input(block, {2, 0, 1, 3}, mode, rng);
  auto& batch = input.batch;  // not a structured binding: Clang 14 cannot capture those
  auto& x = input.x;
  const Matrix<double> cotangent = random_matrix<double>(rng, x.rows(), x.cols());
  auto actual = reference::backward(reference::library_block<Block>(block), block, x, batch, cotangent);

  const Matrix<long double> wide_cotangent = cotangent.cast<long double>();
  const auto loss = [&] { return reference::loss_of(reference::forward(block, x, batch), wide_cotangent); };
  const auto check = [&](const std::string& name, const Matrix<double>& gradient, auto& values) {
    INFO(name);
    CHECK(disagreement_in_max_norm(gradient, reference::differences(values, loss), difference_tolerance) ==
          "");
  };
  check("x", actual.x, x);
  if (options.level == Level::task) check("task embeddings", actual.task_embeddings, batch.task_embeddings);
  auto values = reference::tensors(block);
  auto gradients = reference::tensors(actual.parameters);
  for (std::size_t i = 0; i < values.size(); ++i) {
    // With one gate for the block, that of `up`, those of the others are no parameters of its function.
    check(gradients[i].name, gradients[i].values, values[i].values);
  }
}

TEMPLATE_TEST_CASE("a block's gradients are the differences of its loss", "[feed_forward][gradient]",
                   (FeedForward<MoeLayer<double>, Gelu>), (FeedForward<MeoLayer<double>, Silu>)) {
  constexpr auto activation = std::is_same_v<TestType, FeedForward<MoeLayer<double>, Gelu>>
                                  ? reference::Activation::gelu
                                  : reference::Activation::silu;
  Generator rng(41);
  for (const Level level : {Level::token, Level::sequence, Level::task}) {
    for (const bool shared_gate : {false, true}) {
      for (const bool gated : {false, true}) {
        FeedForwardOptions options;
        options.features = 3;
        options.hidden_features = 5;
        options.num_experts = 3;
        options.top_k = 2;
        options.level = level;
        options.gated = gated;
        options.shared_gate = shared_gate;
        options.reduce_factor = 2;
        options.loss_coefficient = 0.25;
        options.noise_epsilon = 0.125;
        if (level == Level::task) options.task_features = 4;
        const auto mode = gated ? reference::Mode::training : reference::Mode::inference;
        INFO("level " << to_string(level) << ", shared gate " << shared_gate << ", gated " << gated);
        check_differences<TestType>(options, activation, mode, rng);
      }
    }
  }
}

}  // namespace

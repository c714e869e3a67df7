// Gradients of feed-forward blocks against central differences of the reference.

#include <type_traits>

#include <meo/experts/activation.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "reference/check_differences.hpp"
#include "reference/library_block.hpp"
#include "support/catch.hpp"
#include "support/kernels.hpp"
#include "support/random.hpp"

namespace {

using namespace meo;
using namespace meo::test;

TEMPLATE_TEST_CASE("a block's gradients are the differences of its loss", "[feed_forward][gradient]",
                   (FeedForward<MoeLayer<double>, Gelu>), (FeedForward<MeoLayer<double>, Silu>)) {
  constexpr bool is_moe = std::is_same_v<TestType, FeedForward<MoeLayer<double>, Gelu>>;
  constexpr auto kind = is_moe ? reference::Kind::moe : reference::Kind::meo;
  constexpr auto activation = is_moe ? reference::Activation::gelu : reference::Activation::silu;
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
        // With one gate for the block, that of `up`, those of the others are no parameters of its function,
        // and their gradients are zero.
        const auto block = reference::random_block<double>(kind, activation, options, rng);
        const auto input = reference::random_input(block, {2, 0, 1, 3}, mode, rng);
        reference::check_differences(reference::library_block<TestType>(block), block, input,
                                     random_matrix<double>(rng, input.x.rows(), input.x.cols()));
      }
    }
  }
}

}  // namespace

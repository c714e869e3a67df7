#pragma once

/// Sweeps of one library layer type over options and shapes, each forward pass held against the reference,
/// for MEO in either order of merging.

#include <vector>

#include <meo/layers/layer_options.hpp>
#include <meo/types.hpp>

#include "reference/library.hpp"
#include "reference/random_layer.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace meo::reference {

/// A layer's expert count: that of its type, or `dynamic`.
template <class Library>
Index experts_of(Index dynamic) {
  return Library::num_experts_at_compile_time == Eigen::Dynamic ? dynamic
                                                                : Library::num_experts_at_compile_time;
}

template <class Library>
void check_random_case(const LayerOptions& options, const std::vector<Index>& lengths, Mode mode,
                       test::Generator& rng) {
  using S = typename Library::Scalar;
  INFO("level " << to_string(options.routing.level) << ", D " << options.in_features << ", F "
                << options.out_features << ", N " << options.num_experts << ", K " << options.top_k
                << ", bias " << options.bias << ", gate before attention "
                << options.routing.gate_before_attention << ", training " << (mode == Mode::training) << ", "
                << lengths.size() << " sequences");
  const Layer<S> layer = random_parameters<Library>(options, rng);
  const RandomInput<S> input = random_input(layer, lengths, mode, rng);
  for (const MergeOrder order : merge_orders<Library>())
    check_forward(library_layer<Library>(layer, order), layer, input.x, input.batch);
}

/// Every level, top_k from 1 to N, with and without bias and noise, the gate before and after token
/// attention, on a ragged batch with an empty sequence and one of a single token.
template <class Library>
void check_all_options(const std::vector<Index>& dynamic_expert_counts) {
  test::Generator rng(11);
  const bool has_static_count = Library::num_experts_at_compile_time != Eigen::Dynamic;
  for (const Index dynamic_count : has_static_count ? std::vector<Index>{0} : dynamic_expert_counts) {
    const Index n = experts_of<Library>(dynamic_count);
    for (const Level level : {Level::token, Level::sequence, Level::task}) {
      for (Index k = 1; k <= n; ++k) {
        for (const int variant : {0, 1, 2, 3, 4}) {
          LayerOptions options;
          options.in_features = 13;
          options.out_features = 21;
          options.num_experts = n;
          options.top_k = k;
          options.routing.level = level;
          options.bias = variant % 2 == 0;
          options.routing.reduce_factor = 3;
          options.routing.gate_before_attention = variant == 4;
          options.routing.loss_coefficient = 0.25;
          options.routing.noise_epsilon = 0.125;
          if (level == Level::task) options.routing.task_features = 7;
          const Mode mode = variant >= 2 ? Mode::training : Mode::inference;
          check_random_case<Library>(options, {3, 0, 1, 5}, mode, rng);
        }
      }
    }
  }
}

/// T from 1 to 13, D from 1 to 9, F from 1 to 35: every tile edge that a packet width can give. One sequence.
template <class Library>
void check_all_small_shapes(Level level) {
  using S = typename Library::Scalar;
  test::Generator rng(12);
  for (Index d = 1; d <= 9; ++d) {
    for (Index f = 1; f <= 35; ++f) {
      LayerOptions options;
      options.in_features = d;
      options.out_features = f;
      options.num_experts = experts_of<Library>(3);
      options.top_k = 2;
      options.routing.level = level;
      options.bias = (d + f) % 2 == 0;
      const Layer<S> layer = random_parameters<Library>(options, rng);
      for (const MergeOrder order : merge_orders<Library>()) {
        const Library library = library_layer<Library>(layer, order);
        for (Index t = 1; t <= 13; ++t) {
          INFO("T " << t << ", D " << d << ", F " << f << ", order " << static_cast<int>(order));
          const RandomInput<S> input = random_input(layer, {t}, Mode::inference, rng);
          check_forward(library, layer, input.x, input.batch);
        }
      }
    }
  }
}

/// More features and experts than a block of any kernel holds. The gate looks at eight features only, else
/// rounding would decide some of its selections.
template <class Library>
void check_large_batch(Level level) {
  using S = typename Library::Scalar;
  test::Generator rng(13);
  LayerOptions options;
  options.in_features = 1200;
  options.out_features = 70;
  options.num_experts = experts_of<Library>(32);
  options.top_k = 3;
  options.routing.level = level;
  Layer<S> layer = random_parameters<Library>(options, rng);
  layer.gate_weight.bottomRows(options.in_features - 8).setZero();
  const RandomInput<S> input = random_input(layer, {1, 40, 0, 17, 2}, Mode::inference, rng);
  for (const MergeOrder order : merge_orders<Library>())
    check_forward(library_layer<Library>(layer, order), layer, input.x, input.batch);
}

/// One sequence of 77 tokens, 1000 → 1003 features: no size is a multiple of a tile's or panel's.
template <class Library>
void check_odd_sizes() {
  test::Generator rng(14);
  LayerOptions options;
  options.in_features = 1000;
  options.out_features = 1003;
  options.num_experts = experts_of<Library>(4);
  options.top_k = 2;
  check_random_case<Library>(options, {77}, Mode::inference, rng);
}

}  // namespace meo::reference

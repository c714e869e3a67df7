// Gradients of layers against central differences of the reference, and the identities that they obey.

#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "kernels/threads.hpp"
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

// A central difference is off by h²/6 times the third derivative, h = 2⁻¹⁷, which is below 1e3 times the
// largest derivative here.
constexpr long double difference_tolerance = 1e-8L;

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

template <class Library>
void check_differences(const LayerOptions& options, const std::vector<Index>& lengths, reference::Mode mode,
                       Generator& rng) {
  reference::Layer<double> layer =
      reference::random_layer<double>(reference::KindOf<Library>::value, options, rng);
  auto [batch, x] = reference::random_input(layer, lengths, mode, rng);
  const Matrix<double> cotangent = random_matrix<double>(rng, x.rows(), options.out_features);
  auto actual = reference::backward(reference::library_layer<Library>(layer), layer, x, batch, cotangent);

  const Matrix<long double> wide_cotangent = cotangent.cast<long double>();
  const auto loss = [&] { return reference::loss_of(reference::forward(layer, x, batch), wide_cotangent); };
  const auto check = [&](const std::string& name, const Matrix<double>& gradient, auto& values) {
    INFO(name);
    CHECK(disagreement_in_max_norm(gradient, reference::differences(values, loss), difference_tolerance) ==
          "");
  };
  check("x", actual.x, x);
  if (options.level == Level::task) check("task embeddings", actual.task_embeddings, batch.task_embeddings);
  auto values = reference::tensors(layer);
  const auto gradients = reference::tensors(actual.parameters);
  for (std::size_t i = 0; i < values.size(); ++i)
    check(gradients[i].name, gradients[i].values, values[i].values);
}

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
          check_differences<TestType>(options, {3, 0, 1, 4}, mode, rng);
        }
      }
    }
  }
}

}  // namespace

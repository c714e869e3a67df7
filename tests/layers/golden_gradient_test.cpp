// Gradients against the authors' own: all golden files, of layers and blocks, the float ones in float.

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include <meo/experts/activation.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "reference/gradients.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

namespace {
namespace golden_gradient_test {

using namespace meo;
using namespace meo::test;

// tests/goldens/README.md states how far results of one forward are from exact ones. A gradient follows from
// a forward and a backward, in the file and in the library: four times that. Of builds with SSE2, AVX2 with
// FMA and AVX-512, by GCC and by Clang, none needs more than 2.5 times in float, for a sum over sequences of
// what is left when weights' gradients cancel, and 2.2 times in double, for a chain of two layers. Bounds
// γ_n Σ|terms| of most of them would be larger: n counts features, tokens and the gate's roundings.
constexpr double float_tolerance = 4 * 4e-7;
constexpr double double_tolerance = 4 * 5e-16;
// MoE layers round y to float whatever the dtype, and with it the gradient of y. That of the whole file is
// rounded here as well. In a block three roundings are left: the outputs of up and gate_up, and the gradient
// of one of them. 1.5 times 1e-7 is needed.
constexpr double rounded_tolerance = 3 * 1e-7;
// The loss is computed in float whatever the dtype; see loss_condition.
constexpr double loss_tolerance = 4e-7;

/// The gradient of the balance loss is that of deviations v_j − mean(v), which a relative rounding of v
/// changes by (|v_j| + |mean(v)|) / |v_j − mean(v)| as much. The largest of importance, which has no gradient
/// where the only weight of a row is constant, and load, which has one with noise alone.
template <class S>
S loss_condition(const Routing<S>& routing, bool noisy) {
  S condition(1);
  const auto include = [&](const std::vector<S>& values) {
    const Eigen::Map<const Vector<S>> v(values.data(), static_cast<Index>(values.size()));
    const S mean = v.mean(), deviation = (v.array() - mean).abs().maxCoeff();
    if (deviation > 0) condition = std::max(condition, (v.maxCoeff() + mean) / deviation);
  };
  if (routing.top_k > 1) include(routing.importance);
  if (noisy && routing.top_k < routing.num_experts) include(routing.load);
  return condition;
}

template <class S>
S loss_condition(const Output<S>& output, bool noisy) {
  return loss_condition(output.routing, noisy);
}

template <class S>
S loss_condition(const FeedForwardOutput<S>& output, bool noisy) {
  const S of_up_and_down = std::max(loss_condition(output.up, noisy), loss_condition(output.down, noisy));
  return output.gate_up.rows == 0 ? of_up_and_down
                                  : std::max(of_up_and_down, loss_condition(output.gate_up, noisy));
}

template <class Library, class Parameters, class S>
void check_gradients(const Golden<S>& golden, const Library& library, const Parameters& parameters,
                     Parameters expected) {
  INFO(golden.name());
  const bool is_moe = golden.kind() == reference::Kind::moe;
  const Wide<S> tolerance = std::is_same_v<S, float>      ? float_tolerance
                            : is_moe && golden.is_block() ? rounded_tolerance
                                                          : double_tolerance;
  const Matrix<S> x = golden.matrix("x");
  Matrix<S> cotangent = golden.matrix("cotangent");
  if (is_moe) cotangent = cotangent.template cast<float>().template cast<S>().eval();
  const reference::Batch<S> batch = golden.batch();
  const auto run = [&](S d_loss) {
    return reference::backward(library, parameters, x, batch, cotangent, d_loss);
  };
  const Wide<S> condition =
      loss_condition(library.forward(x, reference::LibraryBatch<S>(batch).inputs()), golden.has("noise"));
  auto actual = run(1), without_loss = run(0);
  const auto check = [&](const std::string& name, const Matrix<S>& of_all, const Matrix<S>& of_y,
                         const Matrix<S>& file) {
    INFO(name);
    const Matrix<Wide<S>> wide = file.template cast<Wide<S>>();
    const Wide<S> bound = tolerance * wide.cwiseAbs().maxCoeff() +
                          Wide<S>(loss_tolerance) * condition * (of_all - of_y).cwiseAbs().maxCoeff();
    CHECK(disagreement(of_all, wide, Matrix<Wide<S>>::Constant(wide.rows(), wide.cols(), bound)) == "");
  };
  check("x", actual.x, without_loss.x, golden.matrix("grad.x"));
  if (golden.has("grad.task_embeddings")) {
    check("task_embeddings", actual.task_embeddings, without_loss.task_embeddings,
          golden.matrix("grad.task_embeddings"));
  }
  const auto all = reference::tensors(actual.parameters), of_y = reference::tensors(without_loss.parameters),
             file = reference::tensors(expected);
  REQUIRE(all.size() == file.size());
  for (std::size_t i = 0; i < all.size(); ++i)
    check(all[i].name, all[i].values, of_y[i].values, file[i].values);
}

template <class S>
void check_layer(const Golden<S>& golden) {
  const auto check = [&]<class Library>(Library*) {
    const reference::Layer<S> parameters = golden.layer();
    check_gradients(golden, reference::library_layer<Library>(parameters), parameters, golden.layer("grad."));
  };
  if (golden.kind() == reference::Kind::moe) check(static_cast<MoeLayer<S>*>(nullptr));
  else check(static_cast<MeoLayer<S>*>(nullptr));
}

TEST_CASE("layers repeat the gradients of their golden files", "[golden][gradient]") {
  int layers = 0;
  for (const auto& path : golden_files()) {
    const Golden<double> golden(path);
    if (golden.is_block()) continue;
    ++layers;
    if (golden.is_single_precision()) check_layer(Golden<float>(path));
    else check_layer(golden);
  }
  CHECK(layers == 84);
}

template <class Activation>
void check_blocks(const std::string& name, std::size_t count) {
  const auto paths = golden_files(name);
  CHECK(paths.size() == count);
  for (const auto& path : paths) {
    const Golden<double> golden(path);
    const reference::Block<double> parameters = golden.block();
    const auto check = [&]<class Library>(Library*) {
      check_gradients(golden, reference::library_block<Library>(parameters), parameters,
                      golden.block("grad."));
    };
    if (golden.kind() == reference::Kind::moe) {
      check(static_cast<FeedForward<MoeLayer<double>, Activation>*>(nullptr));
    } else {
      check(static_cast<FeedForward<MeoLayer<double>, Activation>*>(nullptr));
    }
  }
}

TEST_CASE("blocks repeat the gradients of their golden files", "[golden][gradient]") {
  check_blocks<Relu>("_relu_", 4);
  check_blocks<Gelu>("_gelu_", 8);
  check_blocks<Silu>("_silu_", 4);
}

}  // namespace golden_gradient_test
}  // namespace

// Gradients against the authors' own: all golden files, of layers and blocks, the float ones in float.

#include <string>

#include <meo/experts/activation.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "reference/gradients.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/kernels.hpp"

namespace {

using namespace meo;
using namespace meo::test;

// What tests/goldens/README.md states for a file, for its forward and its backward each, and as much again
// for the library's own roundings where they are of the same precision. In a double file the authors round
// the loss to float, and the output of MoE layers as well. The gradient's part that comes from the loss is
// the sum of two, importance's and load's, which may cancel in part.
constexpr double float_tolerance = 2 * 2 * 4e-7;
constexpr double rounded_tolerance = 4e-7;
constexpr double loss_tolerance = 2 * 2 * 4e-7;
constexpr double double_tolerance = 2 * 2 * 5e-16;

template <class Library, class Parameters, class S>
void check_gradients(const Golden<S>& golden, const Library& library, const Parameters& parameters,
                     Parameters expected) {
  INFO(golden.name());
  const Wide<S> tolerance = std::is_same_v<S, float>                ? float_tolerance
                            : golden.kind() == reference::Kind::moe ? rounded_tolerance
                                                                    : double_tolerance;
  const auto run = [&](S d_loss) {
    return reference::backward(library, parameters, golden.matrix("x"), golden.batch(),
                               golden.matrix("cotangent"), d_loss);
  };
  auto actual = run(1), without_loss = run(0);
  const auto check = [&](const std::string& name, const Matrix<S>& of_all, const Matrix<S>& of_y,
                         const Matrix<S>& file) {
    INFO(name);
    const Matrix<Wide<S>> wide = file.template cast<Wide<S>>();
    const Wide<S> bound = tolerance * wide.cwiseAbs().maxCoeff() +
                          Wide<S>(loss_tolerance) * (of_all - of_y).cwiseAbs().maxCoeff();
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

}  // namespace

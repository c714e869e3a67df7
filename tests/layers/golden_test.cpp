// The library's layers against the authors' own results: all golden files of layers, the float ones in float.

#include "support/golden.hpp"

#include <string>

#include <meo/io/checkpoint.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "reference/library.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"

namespace {
namespace golden_test {

using namespace meo;
using namespace meo::test;

// What tests/goldens/README.md states for a file, and as much again for the library's own roundings where
// they are of the same precision. Where the authors round to float and the library does not, the file's
// alone.
constexpr double double_tolerance = 2 * 5e-16;
constexpr double rounded_output_tolerance = 1e-7;
constexpr double loss_tolerance = 4e-7;
constexpr double float_tolerance = 2 * 4e-7;

template <class Library>
void check_layer(const Golden<typename Library::Scalar>& golden, MergeOrder order) {
  using S = typename Library::Scalar;
  INFO(golden.name() << ", order " << static_cast<int>(order));
  const bool single = std::is_same_v<S, float>;
  const reference::Layer<S> expected = golden.layer();
  LayerOptions options = reference::options_of(expected);
  options.merge_order = order;
  Library layer(options);
  io::load(layer, golden.reader(), "param.");
  for (Index i = 0; i < layer.num_experts(); ++i) {
    CHECK(layer.weight(i) == expected.experts[std::size_t(i)].weight);
    if (expected.has_bias()) CHECK(layer.bias(i) == expected.experts[std::size_t(i)].bias);
  }

  const reference::Batch<S> batch = golden.batch();
  const reference::LibraryBatch<S> library_batch(batch);
  const auto [y, routing] = layer.forward(golden.matrix("x"), library_batch.inputs());
  const auto file = [&](const std::string& tensor) {
    return Matrix<Wide<S>>(golden.matrix(tensor).template cast<Wide<S>>());
  };
  const Wide<S> tolerance = single ? float_tolerance : double_tolerance;
  const bool rounded = golden.kind() == reference::Kind::moe && !single;
  CHECK(disagreement_in_max_norm(routing.dense(), file("gates"), tolerance) == "");
  CHECK(disagreement_in_max_norm(reference::row_of(routing.load), file("load"), tolerance) == "");
  CHECK(disagreement_in_max_norm(Matrix<S>::Constant(1, 1, routing.loss), file("loss"),
                                 single ? tolerance : Wide<S>(loss_tolerance)) == "");
  CHECK(disagreement_in_max_norm(y, file("y"), rounded ? Wide<S>(rounded_output_tolerance) : tolerance) ==
        "");

  // The same data set by hand, against the reference's element-wise bounds.
  reference::check_forward(reference::library_layer<Library>(expected, order), expected, golden.matrix("x"),
                           batch);
}

template <class Library>
void check_layer(const Golden<typename Library::Scalar>& golden) {
  for (const MergeOrder order : reference::merge_orders<Library>()) check_layer<Library>(golden, order);
}

/// With the expert count at run time and, where the file has N experts, in the type.
template <template <class, int, class...> class Library, int N>
void check_file(const std::filesystem::path& path) {
  const Golden<double> golden(path);
  if (golden.integer("num_experts") != N) return;
  if (golden.is_single_precision()) {
    const Golden<float> single(path);
    check_layer<Library<float, N>>(single);
    check_layer<Library<float, Eigen::Dynamic>>(single);
  } else {
    check_layer<Library<double, N>>(golden);
    check_layer<Library<double, Eigen::Dynamic>>(golden);
  }
}

template <template <class, int, class...> class Library>
void check_files(const std::string& part, std::size_t count) {
  std::size_t layers = 0;
  for (const auto& path : golden_files(part)) {
    if (Golden<double>(path).is_block()) continue;
    ++layers;
    check_file<Library, 1>(path);
    check_file<Library, 4>(path);
    check_file<Library, 8>(path);
    check_file<Library, 12>(path);
  }
  CHECK(layers == count);
}

TEST_CASE("MoeLayer repeats its golden files", "[moe_layer][golden]") { check_files<MoeLayer>("_moe_", 36); }

TEST_CASE("MeoLayer repeats its golden files", "[meo_layer][golden]") { check_files<MeoLayer>("_meo_", 48); }

}  // namespace golden_test
}  // namespace

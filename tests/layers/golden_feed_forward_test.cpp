// The library's feed-forward blocks against the authors' own results: all golden files of blocks.

#include <string>

#include <meo/experts/activation.hpp>
#include <meo/io/checkpoint.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "reference/library_block.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"

namespace {
namespace golden_feed_forward_test {

using namespace meo;
using namespace meo::test;

// As in golden_test.cpp; a block passes through two layers.
constexpr long double double_tolerance = 2 * 2 * 5e-16L;
constexpr long double rounded_output_tolerance = 1e-7L;
constexpr long double loss_tolerance = 4e-7L;

template <class Block>
void check_block(const Golden<double>& golden) {
  INFO(golden.name());
  const reference::Block<double> expected = golden.block();
  Block block(reference::options_of(expected));
  io::load(block, golden.reader(), "param.");
  const reference::Batch<double> batch = golden.batch();
  const reference::LibraryBatch<double> library_batch(batch);
  const Matrix<double> x = golden.matrix("x");
  Matrix<double> y(x.rows(), x.cols());
  FeedForwardWorkspace<double> workspace;
  const double loss = block.forward(x, library_batch.inputs(), y, workspace);
  const auto file = [&](const std::string& tensor) {
    return Matrix<long double>(golden.matrix(tensor).template cast<long double>());
  };
  const auto tolerance = golden.kind() == reference::Kind::moe ? rounded_output_tolerance : double_tolerance;
  const Matrix<double> hidden = Eigen::Map<const Matrix<double>>(memory_of(workspace).hidden.data(), x.rows(),
                                                                 golden.integer("hidden_features"));
  CHECK(disagreement_in_max_norm(hidden, file("hidden"), tolerance) == "");
  CHECK(disagreement_in_max_norm(y, file("y"), tolerance) == "");
  CHECK(disagreement_in_max_norm(Matrix<double>::Constant(1, 1, loss), file("loss"), loss_tolerance) == "");

  const auto result = reference::forward(expected, x, batch);
  CHECK(disagreement(hidden, result.hidden) == "");
  CHECK(disagreement(y, result.y) == "");
}

template <class Activation>
void check_files(const std::string& name, std::size_t count) {
  const auto paths = golden_files(name);
  CHECK(paths.size() == count);
  for (const auto& path : paths) {
    const Golden<double> golden(path);
    if (golden.kind() == reference::Kind::moe) {
      check_block<FeedForward<MoeLayer<double>, Activation>>(golden);
    } else {
      check_block<FeedForward<MeoLayer<double>, Activation>>(golden);
    }
  }
}

TEST_CASE("FeedForward repeats its golden files", "[feed_forward][golden]") {
  check_files<Relu>("_relu_", 4);
  check_files<Gelu>("_gelu_", 8);
  check_files<Silu>("_silu_", 4);
}

}  // namespace golden_feed_forward_test
}  // namespace

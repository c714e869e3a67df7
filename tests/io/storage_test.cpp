// Layers whose experts are stored in 16 or 8 bits are loaded from files of any type without a layer of
// scalars between, and saved so that they can be read again.

#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "io/files.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace storage_test {

using namespace meo;
using namespace meo::test;
using io::SafetensorsReader;
using io::SafetensorsWriter;

template <class Storage>
using Moe = MoeLayer<float, Eigen::Dynamic, Storage>;
template <class Storage>
using Meo = MeoLayer<float, Eigen::Dynamic, Storage>;

template <class Layer>
Layer random_layer(std::uint64_t seed) {
  Layer layer(small_layer(Level::token, 9, 60));
  Generator rng(seed);
  layer.initialize(rng);
  return layer;
}

/// A layer's parameters as a file has them.
class File {
 public:
  template <class Layer>
  explicit File(const Layer& layer) {
    SafetensorsWriter writer;
    io::save(layer, writer);
    bytes_ = writer.bytes();
  }

  template <class Layer>
  void load(Layer& layer, const io::LoadOptions& options = {}) const {
    io::load(layer, SafetensorsReader(bytes_, "file"), "param.", options);
  }

 private:
  Bytes bytes_;
};

template <class A, class B>
void check_same(const A& a, const B& b) {
  for (Index e = 0; e < a.num_experts(); ++e) {
    CHECK(bit_difference(a.weight(e), b.weight(e)) == "");
    CHECK(bit_difference(a.bias(e), b.bias(e)) == "");
  }
  CHECK(a.gate().weight() == b.gate().weight());
}

TEMPLATE_TEST_CASE("a file of scalars is loaded into small storage as a layer of scalars is converted",
                   "[io][storage]", Eigen::bfloat16, Eigen::half, std::int8_t) {
  const auto moe = random_layer<Moe<float>>(1);
  Moe<TestType> loaded_moe(moe.options());
  File(moe).load(loaded_moe);
  check_same(loaded_moe, Moe<TestType>(moe));

  const auto meo = random_layer<Meo<float>>(2);
  Meo<TestType> loaded_meo(meo.options());
  File(meo).load(loaded_meo);
  check_same(loaded_meo, Meo<TestType>(meo));
}

TEMPLATE_TEST_CASE("small storage that is saved and loaded again is the same", "[io][storage]",
                   Eigen::bfloat16, Eigen::half, std::int8_t) {
  const Meo<TestType> small(random_layer<Meo<float>>(3));
  const File file(small);
  Meo<TestType> again(small.options());
  file.load(again);
  check_same(again, small);
  Meo<float> scalars(small.options());
  file.load(scalars);
  check_same(scalars, small);
}

TEST_CASE("rows longer than what is read at a time have one scale", "[io][storage]") {
  const LayerOptions options{
      .in_features = 2 * io::detail::load_elements + 3, .out_features = 3, .num_experts = 2};
  Moe<float> scalars(options);
  Generator rng(4);
  scalars.initialize(rng);
  Matrix<float> weight = scalars.weight(1);
  weight.rightCols(1) *= 10;  // the last of a row decides
  scalars.set_weight(1, weight);
  Moe<std::int8_t> loaded(options);
  File(scalars).load(loaded);
  check_same(loaded, Moe<std::int8_t>(scalars));
}

TEST_CASE("a block is loaded into small storage", "[io][storage]") {
  FeedForward<Meo<float>> block(small_block(Level::token, 9, 20, true, true));
  Generator rng(5);
  block.initialize(rng);
  FeedForward<Meo<std::int8_t>> loaded(block.options());
  File(block).load(loaded);
  check_same(loaded.up(), Meo<std::int8_t>(block.up()));
  for (Index e = 0; e < 4; ++e) CHECK(loaded.down().weight(e) == Meo<std::int8_t>(block.down()).weight(e));
}

TEST_CASE("what small storage cannot hold is refused, and leaves the layer as it was", "[io][storage]") {
  auto scalars = random_layer<Moe<float>>(6);
  Matrix<float> weight = scalars.weight(2);
  weight(1, 3) = 65536;
  scalars.set_weight(2, weight);
  const File beyond_half(scalars);
  weight(1, 3) = std::numeric_limits<float>::quiet_NaN();
  scalars.set_weight(2, weight);
  const File not_finite(scalars);

  const Moe<Eigen::half> half_before(random_layer<Moe<float>>(7));
  Moe<Eigen::half> half(half_before);
  CHECK(
      error_of([&] { beyond_half.load(half, {.require_finite = true}); }) ==
      "meo: file: tensor \"param.experts.2.dense.weight\": element 12: expected -65504 to 65504, got 65536");
  check_same(half, half_before);
  beyond_half.load(half);
  CHECK(half.weight(2)(1, 3) == std::numeric_limits<float>::infinity());

  const Moe<std::int8_t> bytes_before(random_layer<Moe<float>>(8));
  Moe<std::int8_t> bytes(bytes_before);
  CHECK(error_of([&] { not_finite.load(bytes); }) ==
        "meo: file: tensor \"param.experts.2.dense.weight\": element 12: expected a finite number, got nan");
  check_same(bytes, bytes_before);
}

}  // namespace storage_test
}  // namespace

// Layers whose experts are stored in 16 or 8 bits. They compute, to the bit, what layers of the scalar
// compute with the weights that can be read of them; so all that holds of those holds of these.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "kernels/threads.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/options.hpp"
#include "support/random.hpp"

namespace {
namespace storage_test {

using namespace meo;
using namespace meo::test;

template <class Storage>
using Moe = MoeLayer<float, Eigen::Dynamic, Storage>;
template <class Storage>
using Meo = MeoLayer<float, Eigen::Dynamic, Storage>;

/// A layer of scalars and the one of small storage that is made of it.
template <class LayerType, class Scalars>
struct Types {
  using Layer = LayerType;
  using Float = Scalars;
};
#define ALL_STORAGES                                                                    \
  (Types<Moe<Eigen::bfloat16>, Moe<float>>), (Types<Moe<Eigen::half>, Moe<float>>),     \
      (Types<Moe<std::int8_t>, Moe<float>>), (Types<Meo<Eigen::bfloat16>, Meo<float>>), \
      (Types<Meo<Eigen::half>, Meo<float>>), (Types<Meo<std::int8_t>, Meo<float>>)

/// Weights as they can be read, in a layer of scalars.
template <class Small, class Float>
Float as_read(const Small& small, Float layer) {
  for (Index e = 0; e < small.num_experts(); ++e) layer.set_weight(e, small.weight(e));
  return layer;
}

template <class Layer>
Layer random_layer(const LayerOptions& options, std::uint64_t seed) {
  Layer layer(options);
  Generator rng(seed);
  layer.initialize(rng);
  return layer;
}

/// All that a forward of a batch at a level reads.
struct Batch {
  Batch(const LayerOptions& options, const std::vector<Index>& lengths, Generator& rng)
      : sequences(Sequences::from_lengths(lengths)),
        x(random_normal<float>(rng, sequences.tokens(), options.in_features)),
        descriptions(random_normal<float>(rng, Index(lengths.size()), small_task_features)),
        tasks(Sequences::uniform(Index(lengths.size()), 1)) {
    for (std::size_t b = 0; b < lengths.size(); ++b) task_of.push_back(Index(b / 2));
    inputs.sequences = &sequences;
    if (options.routing.level != Level::task) return;
    inputs.task_embeddings = MatrixView<float>(descriptions);
    inputs.descriptions = &tasks;
    inputs.task_of_sequence = task_of;
  }

  Sequences sequences;
  Matrix<float> x, descriptions;
  Sequences tasks;
  std::vector<Index> task_of;
  Inputs<float> inputs;
};

TEMPLATE_TEST_CASE("small storage computes what the weights that it reads as compute", "[storage]",
                   ALL_STORAGES) {
  Generator rng(81);
  for (const Level level : all_levels) {
    for (const MergeOrder order :
         {MergeOrder::automatic, MergeOrder::merge_first, MergeOrder::combine_outputs}) {
      for (const bool has_bias : {false, true}) {
        LayerOptions options = small_layer(level, 23, 2 * detail::Tile<float>::columns + 5);
        options.merge_order = order;
        options.bias = has_bias;
        const auto trained = random_layer<typename TestType::Float>(options, 5);
        const typename TestType::Layer small(trained);
        const auto same = as_read(small, trained);
        for (const auto& lengths : std::vector<std::vector<Index>>{{1}, {70}, {1, 40, 3, 1, 2 * 17}}) {
          INFO(to_string(level) << " level, " << lengths.size() << " sequences, bias " << has_bias);
          const Batch batch(options, lengths, rng);
          const auto output = small.forward(batch.x, batch.inputs),
                     expected = same.forward(batch.x, batch.inputs);
          CHECK(bit_difference(output.y, expected.y) == "");
          CHECK(output.routing.experts == expected.routing.experts);
          CHECK(output.routing.loss == expected.routing.loss);
        }
      }
    }
  }
}

/// What storing a weight may change it by.
float storage_error(Eigen::bfloat16, float weight, float) { return std::abs(weight) * 0x1p-8f; }
float storage_error(Eigen::half, float weight, float) {
  return std::max(std::abs(weight) * 0x1p-11f, 0x1p-25f);  // below 2^−14 there are steps of 2^−24
}
float storage_error(std::int8_t, float, float largest) { return largest / 127 * (1 + 0x1p-16f) / 2; }

// y moves by Σ_i |g_i| Σ_d |x_d| |W_i − stored W_i|, and by what rounding adds to both outputs.
TEMPLATE_TEST_CASE("outputs are off by what storing the weights costs", "[storage]", ALL_STORAGES) {
  using Storage = typename TestType::Layer::Storage;
  Generator rng(82);
  for (const Index tokens : {1, 37}) {
    LayerOptions options = small_layer(Level::sequence, 70, 45, 3);
    const auto trained = random_layer<typename TestType::Float>(options, 6);
    const typename TestType::Layer small(trained);
    const Matrix<float> x = random_normal<float>(rng, tokens, 70);
    const auto exact = trained.forward(x), output = small.forward(x);
    REQUIRE(exact.routing.experts == output.routing.experts);
    Matrix<double> bound = Matrix<double>::Zero(tokens, 45);
    for (std::size_t i = 0; i < exact.routing.experts.size(); ++i) {
      const Matrix<float> weight = trained.weight(exact.routing.experts[i]);
      const Vector<double> bias = trained.bias(exact.routing.experts[i]).template cast<double>();
      Matrix<double> error(weight.rows(), weight.cols());
      for (Index out = 0; out < weight.rows(); ++out) {
        const float largest = weight.row(out).cwiseAbs().maxCoeff();
        for (Index in = 0; in < weight.cols(); ++in)
          error(out, in) = double(storage_error(Storage(), weight(out, in), largest));
      }
      const Matrix<double> rounding =
          2 * double(gamma<float>(70 + 3 + 2)) * (weight.cwiseAbs().template cast<double>() + error);
      const double gate = std::abs(double(exact.routing.weights[i]));
      bound += gate * (x.cwiseAbs().template cast<double>() * (error + rounding).transpose());
      bound.rowwise() += 2 * double(gamma<float>(75)) * gate * bias.cwiseAbs().transpose();
    }
    CHECK(disagreement(Matrix<double>(output.y.template cast<double>()),
                       Matrix<double>(exact.y.template cast<double>()), bound) == "");
    CHECK(output.y != exact.y);
  }
}

TEMPLATE_TEST_CASE("no bit of small storage depends on threads, on tiles or on what else is in a batch",
                   "[storage]", ALL_STORAGES) {
  Generator rng(83);
  // More rows of an expert than a tile, about one, and few.
  const std::vector<Index> lengths{1, 3 * detail::Tile<float>::rows, 2, detail::Tile<float>::rows};
  for (const Level level : {Level::token, Level::sequence}) {
    const LayerOptions options = small_layer(level, 67, 5 * detail::Tile<float>::columns + 1);
    const typename TestType::Layer small(random_layer<typename TestType::Float>(options, 7));
    const Batch batch(options, lengths, rng);
    const Matrix<float> y = small.forward(batch.x, batch.inputs).y;
    with_threads([&](Index) { CHECK(bit_difference(small.forward(batch.x, batch.inputs).y, y) == ""); });
    Index first = 0;
    for (const Index length : lengths) {
      const Matrix<float> alone = small.forward(batch.x.middleRows(first, length)).y;
      CHECK(bit_difference(alone, Matrix<float>(y.middleRows(first, length))) == "");
      first += length;
    }
  }
}

TEMPLATE_TEST_CASE("blocks of small storage compute what the weights that they read as compute", "[storage]",
                   ALL_STORAGES) {
  Generator rng(84);
  for (const bool gated : {false, true}) {
    for (const bool shared_gate : {false, true}) {
      INFO("gated " << gated << ", shared gate " << shared_gate);
      const auto options = small_block(Level::token, 20, 45, gated, shared_gate);
      FeedForward<typename TestType::Float> trained(options);
      trained.initialize(rng);
      const FeedForward<typename TestType::Layer> small(trained);
      FeedForward<typename TestType::Float> same(trained);
      same.up() = as_read(small.up(), trained.up());
      same.down() = as_read(small.down(), trained.down());
      if (gated) same.gate_up() = as_read(small.gate_up(), trained.gate_up());
      const auto sequences = Sequences::from_lengths({1, 60, 5});
      const Matrix<float> x = random_normal<float>(rng, 66, 20);
      CHECK(bit_difference(small.forward(x, sequences).y, same.forward(x, sequences).y) == "");
    }
  }
}

TEST_CASE("a layer is made of one of other storage, in either direction, with all of its parts",
          "[storage]") {
  const auto trained = random_layer<Meo<float>>(small_layer(Level::token, 9, 12), 8);
  const Meo<Eigen::half> small(trained);
  CHECK(small.options() == trained.options());
  CHECK(small.gate().weight() == trained.gate().weight());
  CHECK(small.token_attention().down().weight() == trained.token_attention().down().weight());
  CHECK(small.token_attention().up().weight() == trained.token_attention().up().weight());
  const Meo<float> back(small);
  const Meo<std::int8_t> smaller(small);
  for (Index e = 0; e < 4; ++e) {
    CHECK(back.weight(e) == small.weight(e));
    CHECK(back.bias(e) == trained.bias(e));
    CHECK(smaller.bias(e) == trained.bias(e));
  }
  CHECK(small.weight(1) != trained.weight(1));
}

TEST_CASE("what cannot be made of a layer is refused by name", "[storage]") {
  auto trained = random_layer<Moe<float>>(small_layer(Level::token, 9, 12), 9);
  Matrix<float> weight = trained.weight(2);
  weight(3, 4) = std::numeric_limits<float>::infinity();
  trained.set_weight(2, weight);
  CHECK(error_lacks<std::invalid_argument>(
            [&] { Moe<std::int8_t>{trained}; },
            {"weight: expected finite numbers, to be stored in 8 bits, got inf for output 3"}) == "");
  CHECK(Moe<Eigen::half>(trained).weight(2)(3, 4) == weight(3, 4));
  const auto moved = std::move(trained);
  CHECK(error_lacks<std::logic_error>([&] { Moe<Eigen::half>{trained}; },
                                      {"layer: expected one to use, got one that was moved from"}) == "");
}

TEST_CASE("numbers beyond what half holds become infinite", "[storage]") {
  Moe<Eigen::half> layer({.in_features = 1, .out_features = 1, .num_experts = 1});
  layer.set_weight(0, Matrix<float>::Constant(1, 1, 65504));
  CHECK(layer.weight(0)(0, 0) == 65504);
  layer.set_weight(0, Matrix<float>::Constant(1, 1, 65536));
  CHECK(layer.weight(0)(0, 0) == std::numeric_limits<float>::infinity());
}

}  // namespace storage_test
}  // namespace

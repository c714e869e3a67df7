// A model's forward and backward allocate nothing once their context has grown, and in inference that has the
// activations of one layer at a time. A program of its own: it replaces the global operator new, and Eigen,
// which calls malloc, reports its allocations through an assertion that release builds keep.

#include <stdexcept>

#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(condition) ((condition) ? static_cast<void>(0) : throw std::logic_error(#condition))

#include <algorithm>
#include <cstddef>
#include <new>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/io/safetensors_writer.hpp>
#include <meo/io/tensor_files.hpp>

#include "../../examples/transformer/model/model.cpp"
#include "../../examples/transformer/model/small_storage.cpp"
#include "../../examples/transformer/model/weights.hpp"
#include "examples/transformer_models.hpp"
#include "io/files.hpp"
#include "support/catch.hpp"
#include "support/heap.hpp"

namespace {

using namespace transformer;
using namespace transformer::test;
namespace heap = meo::test::heap;

/// Allocations by operator new during f; throws for one by Eigen.
template <class Function>
std::size_t allocations_of(const Function& f) {
  const heap::NoEigenMalloc no_malloc;
  return heap::allocations_of(f);
}

template <class Model>
void check(Model model, const std::vector<Index>& lengths) {
  using Scalar = typename Model::Scalar;
  CAPTURE(name_of(model.config()));
  randomize(model, 1);
  const Batch batch = random_batch(model.config(), lengths, 2),
              smaller = random_batch(model.config(), {lengths.back(), 1}, 3);
  Model gradients(model.config());
  typename Model::Context inferred, trained;
  std::mt19937_64 rng(4);
  const Training<Scalar> training{.noise = GateNoise<Scalar>(rng), .dropout_seed = 5};
  const auto infer = [&](const Batch& of) { model.forward(of, nullptr, inferred); };
  const auto train = [&](const Batch& of) {
    model.forward(of, &training, trained);
    model.backward(of, &training, trained, gradients);
  };
  infer(batch);
  train(batch);
  for (const Batch* const of : {&batch, &smaller}) {
    CHECK(allocations_of([&] { infer(*of); }) == 0);
    CHECK(allocations_of([&] { train(*of); }) == 0);
  }
}

TEST_CASE("allocations of models are noticed", "[noalloc]") {
  CHECK(allocations_of([] { ::operator delete(::operator new(8)); }) == 1);
  CHECK_THROWS_AS(allocations_of([] { meo::Matrix<float>::Ones(3, 3).eval(); }), std::logic_error);
}

TEST_CASE("forward and backward of a model allocate nothing", "[transformer][noalloc]") {
  for_each_mixture([&](const MixtureConfig& mixture) {
    for_each_task<float>(mixture, [&](auto model) { check(std::move(model), {5, 70, 2}); });
  });
}

// Where Eigen, left to itself, would take memory for a product's keys.
TEST_CASE("attention to many tokens allocates nothing", "[transformer][noalloc]") {
  for (const Task task : {Task::classification, Task::next_word}) {
    Config config = small_config(task, 1200);
    config.width = 128;
    config.heads = 1;
    config.layers = 1;
    check(Model<double>(config), {1200, 600});
  }
}

/// The most bytes that a first forward takes beside the model.
template <class Model>
std::size_t forward_bytes(Model model, Index layers, const Batch& batch, bool trains) {
  using Scalar = typename Model::Scalar;
  Config config = model.config();
  config.layers = layers;
  model = Model(config);
  randomize(model, 6);
  std::mt19937_64 rng(7);
  const Training<Scalar> training{.noise = GateNoise<Scalar>(rng), .dropout_seed = 8};
  typename Model::Context context;
  const heap::NoEigenMalloc no_malloc;
  return heap::peak_of([&] { model.forward(batch, trains ? &training : nullptr, context); });
}

/// What inference of a dense model keeps at the most, in values a token: five norms' input and deviation,
/// embeddings, queries, keys and values, what they are mixed to, both residuals' input and output, the
/// block's hidden values and the model's outputs; and beside them what attention works in.
template <class Model>
std::size_t most_bytes(const Config& config, const Batch& batch) {
  const Index d = config.width, tokens = batch.tokens();
  const Index of_token = 5 * (d + 1) + d + 3 * d + d + 4 * d + config.hidden + config.vocabulary;
  Index longest = 0;
  for (Index b = 0; b < batch.sequences.size(); ++b) longest = (std::max)(longest, batch.sequences.length(b));
  const auto padded = [](Index values) { return (values + 15) / 16 * 16; };
  const Index of_attention = max_threads() * (4 * longest * padded(d / config.heads) + 64 * padded(longest));
  const Index of_texts = 4 * batch.sequences.size() * d;  // a classifier's
  return static_cast<std::size_t>(tokens * of_token + of_attention + of_texts) *
             sizeof(typename Model::Scalar) +
         static_cast<std::size_t>(tokens + 2 * batch.sequences.size() + 8) * sizeof(Index) +
         sizeof(typename Layer<typename Model::Scalar>::Context);
}

TEST_CASE("inference keeps the activations of one layer at a time", "[transformer][noalloc]") {
  for_each_mixture([&](const MixtureConfig& mixture) {
    for_each_task<float>(mixture, [&](const auto& model) {
      using Model = std::decay_t<decltype(model)>;
      CAPTURE(name_of(model.config()));
      const Batch batch = random_batch(model.config(), {5, 70, 2}, 9);
      const std::size_t inferred = forward_bytes(model, 2, batch, false);
      CHECK(forward_bytes(model, 8, batch, false) == inferred);
      if (mixture.kind == Mixture::none) CHECK(inferred <= most_bytes<Model>(model.config(), batch));
      // In training each layer has its own.
      const std::size_t of_two = forward_bytes(model, 2, batch, true),
                        of_five = forward_bytes(model, 5, batch, true);
      CHECK(of_five - of_two >
            3 * static_cast<std::size_t>(batch.tokens() * 8 * model.config().width) * sizeof(float));
    });
  });
}

TEST_CASE("loading experts in fewer bits takes no floats of all", "[transformer][storage][noalloc]") {
  static const StorageAs<Eigen::bfloat16> bfloat16("bf16");
  const meo::test::Folder folder;
  Config config = small_config(Task::next_word);
  config.width = 64;
  config.hidden = 256;
  config.mixture = small_mixture(Mixture::meo, meo::Level::segment);
  config.mixture.experts = 8;
  Model<float> model(config);
  randomize(model, 10);
  meo::io::SafetensorsWriter writer;
  save(model, writer);
  writer.write(folder / meo::io::tensors_file);
  config.mixture.storage = &bfloat16;
  const std::size_t peak = heap::peak_of([&] {
    Model<float> loaded(config);
    load(loaded, meo::io::TensorFiles::of_folder(folder));
  });
  const std::size_t weights = 2 * 2 * 8 * 64 * 256;  // of experts, which are most of the model
  CHECK(peak > 2 * weights);
  CHECK(peak < 3 * weights);
}

}  // namespace

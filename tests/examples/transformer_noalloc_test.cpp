// A model's forward and backward allocate nothing once their context has grown. A program of its own: it
// replaces the global operator new, and Eigen, which calls malloc, reports its allocations through an
// assertion that release builds keep.

#include <stdexcept>

#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(condition) ((condition) ? static_cast<void>(0) : throw std::logic_error(#condition))

#include <cstddef>
#include <cstdlib>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include "examples/transformer_models.hpp"
#include "support/catch.hpp"

namespace {

std::size_t allocations = 0;

void* allocate(std::size_t size, std::size_t alignment) {
  ++allocations;
  const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* const memory = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

/// Kept out of line: GCC would otherwise see free() meet memory from an operator new that it has not inlined,
/// and warn.
[[gnu::noinline]] void release(void* memory) { std::free(memory); }

}  // namespace

void* operator new(std::size_t size) { return allocate(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }

namespace {

using namespace transformer;
using namespace transformer::test;

/// Allocations by operator new during f; throws for one by Eigen.
template <class Function>
std::size_t allocations_of(Function&& f) {
  struct NoMalloc {
    NoMalloc() { Eigen::internal::set_is_malloc_allowed(false); }
    ~NoMalloc() { Eigen::internal::set_is_malloc_allowed(true); }
  } const no_malloc;
  const std::size_t before = allocations;
  f();
  return allocations - before;
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
    if (task == Task::next_word) check(Gpt2NextWord<double>(config), {1200, 600});
    else check(BertClassifier<double>(config), {1200, 600});
  }
}

}  // namespace

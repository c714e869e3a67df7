// forward and backward allocate nothing once their workspace or context has grown. A program of its own: it
// replaces the global operator new, and Eigen, which calls malloc, reports its allocations through an
// assertion that release builds keep.

#include <stdexcept>

#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(condition) ((condition) ? static_cast<void>(0) : throw std::logic_error(#condition))

#include <cstddef>
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

#include <meo/layers/feed_forward.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/moe_layer.hpp>

#include "reference/library_block.hpp"
#include "support/catch.hpp"
#include "support/options.hpp"

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

constexpr std::size_t default_alignment = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

void* operator new(std::size_t size) { return allocate(size, default_alignment); }
void* operator new[](std::size_t size) { return allocate(size, default_alignment); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }

namespace {

using namespace meo;

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

TEST_CASE("allocations are noticed", "[noalloc]") {
  // Calls of the functions, not new-expressions, which a compiler may leave out.
  CHECK(allocations_of([] {}) == 0);
  CHECK(allocations_of([] { ::operator delete(::operator new(8)); }) == 1);
  CHECK(allocations_of([] { ::operator delete[](::operator new[](8)); }) == 1);
  constexpr std::align_val_t alignment{64};
  CHECK(allocations_of([&] { ::operator delete(::operator new(8, alignment), alignment); }) == 1);
  CHECK(allocations_of([&] { ::operator delete[](::operator new[](8, alignment), alignment); }) == 1);
  CHECK_THROWS_AS(allocations_of([] { Matrix<float>::Ones(3, 3).eval(); }), std::logic_error);
  CHECK_NOTHROW(Matrix<float>::Ones(3, 3).eval());
}

/// Passes with one workspace: a large batch to grow it, then the same and smaller ones, none of which
/// allocates. `run(x, inputs, y)` does one.
template <class S, class Reference, class Run>
void check_batches(const Reference& reference, Index out_features, reference::Mode mode, Run&& run) {
  test::Generator rng(101);
  const std::vector<std::vector<Index>> batches{
      {30, 0, 13, 8}, {30, 0, 13, 8}, {8, 30, 13}, {5, 0, 2}, {1}, {}};
  Index largest_descriptions = -1;  // their lengths are drawn
  for (const auto& lengths : batches) {
    const auto input = reference::random_input(reference, lengths, mode, rng);
    const reference::LibraryBatch<S> batch(input.batch);
    const Inputs<S> inputs = batch.inputs();
    Matrix<S> y(input.x.rows(), out_features);
    if (inputs.task_embeddings.rows() > largest_descriptions) {
      run(input.x, inputs, y);
      largest_descriptions = inputs.task_embeddings.rows();
    }
    INFO(lengths.size() << " sequences");
    CHECK(allocations_of([&] { run(input.x, inputs, y); }) == 0);
  }
}

/// Forward alone and forward with backward. library: a layer or a block of 9 features with the parameters of
/// the reference's.
template <class Workspace, class Context, class Library, class Reference>
void check_passes(const Library& library, const Reference& reference, Index out_features,
                  reference::Mode mode) {
  using S = typename Library::Scalar;
  Workspace workspace;
  check_batches<S>(reference, out_features, mode,
                   [&](const Matrix<S>& x, const Inputs<S>& inputs, Matrix<S>& y) {
                     library.forward(x, inputs, y, workspace);
                   });
  Context context;
  Library gradients(library.options());
  Matrix<S> dx(51, 9);
  check_batches<S>(reference, out_features, mode,
                   [&](const Matrix<S>& x, const Inputs<S>& inputs, Matrix<S>& y) {
                     library.forward(x, inputs, y, context);
                     library.backward(x, inputs, context, y, gradients, dx.topRows(x.rows()));
                   });
}

TEMPLATE_TEST_CASE("a layer allocates nothing once its workspace or context has grown", "[noalloc]",
                   (MoeLayer<float>), (MoeLayer<double, 4>), (MeoLayer<float, 4>), (MeoLayer<double>)) {
  using S = typename TestType::Scalar;
  for (const Level level : test::all_levels) {
    for (const auto mode : {reference::Mode::inference, reference::Mode::training}) {
      const LayerOptions options = test::small_layer(level, 9, 40);
      test::Generator rng(102);
      const auto expected = reference::random_parameters<TestType>(options, rng);
      check_passes<Workspace<S>, Context<S>>(reference::library_layer<TestType>(expected), expected, 40,
                                             mode);
    }
  }
}

TEMPLATE_TEST_CASE("a block allocates nothing once its workspace or context has grown", "[noalloc]",
                   (FeedForward<MoeLayer<float>, Gelu>), (FeedForward<MeoLayer<double, 4>, Silu>)) {
  using S = typename TestType::Scalar;
  for (const Level level : test::all_levels) {
    for (const bool shared_gate : {false, true}) {
      const FeedForwardOptions options = test::small_block(level, 9, 40, true, shared_gate);
      test::Generator rng(103);
      const auto expected = reference::random_parameters<TestType>(options, rng);
      check_passes<FeedForwardWorkspace<S>, FeedForwardContext<S>>(
          reference::library_block<TestType>(expected), expected, 9, reference::Mode::inference);
    }
  }
}

TEST_CASE("noise drawn from a generator allocates nothing either", "[noalloc]") {
  MeoLayer<float> layer({.in_features = 9, .out_features = 8, .num_experts = 4, .top_k = 2});
  std::mt19937_64 rng(1);
  layer.initialize(rng);
  const Matrix<float> x = Matrix<float>::Random(12, 9);
  Matrix<float> y(12, 8);
  Inputs<float> inputs;
  inputs.noise = Noise<float>(rng);
  Workspace<float> workspace;
  layer.forward(x, inputs, y, workspace);
  CHECK(allocations_of([&] { layer.forward(x, inputs, y, workspace); }) == 0);
}

}  // namespace

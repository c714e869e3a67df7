#include <cstdint>
#include <limits>

#include <meo/experts/aligned_vector.hpp>

#include "support/catch.hpp"

namespace {
namespace aligned_vector_test {

using meo::AlignedVector;
using namespace meo::detail;

template <class T>
std::uintptr_t address(const AlignedVector<T>& vector) {
  return reinterpret_cast<std::uintptr_t>(vector.data());
}

struct alignas(256) Wide {
  char bytes[256];
};

TEMPLATE_TEST_CASE("an aligned vector starts at a cache line, whatever its size", "[aligned_vector]", char,
                   float, double, long double) {
  for (std::size_t size = 1; size <= 100; ++size) {
    const AlignedVector<TestType> vector(size), copy(vector);
    CHECK(address(vector) % 64 == 0);
    CHECK(address(copy) % 64 == 0);
  }
}

TEST_CASE("an aligned vector keeps an alignment stricter than a cache line", "[aligned_vector]") {
  for (std::size_t size = 1; size <= 10; ++size) CHECK(address(AlignedVector<Wide>(size)) % 256 == 0);
}

TEST_CASE("a large vector starts at a huge page", "[aligned_vector]") {
  const std::size_t size = 2 * huge_page_bytes;
  CHECK(address(AlignedVector<char>(size)) % huge_page_bytes == 0);
  CHECK(address(AlignedVector<char>(size - 1)) % 64 == 0);
}

TEST_CASE("more elements than memory can hold are refused", "[aligned_vector]") {
  CacheLineAllocator<double> allocator;
  const std::size_t too_many = std::numeric_limits<std::size_t>::max() / sizeof(double) + 1;
  CHECK_THROWS_AS(allocator.allocate(too_many), std::bad_array_new_length);
}

}  // namespace aligned_vector_test
}  // namespace

#pragma once

/// What a program takes from the heap: replaces the global operator new, so that one source file of a program
/// alone may include this. Eigen calls malloc instead, which NoEigenMalloc makes an error.

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

namespace meo::test::heap {

inline std::size_t allocations = 0;  ///< so far
inline std::size_t allocated = 0;    ///< bytes so far, with those that were freed again
inline std::size_t live = 0;         ///< bytes
inline std::size_t peak = 0;         ///< most bytes that were live at a time since this was last set

constexpr std::size_t default_alignment = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

/// With the size in front, for release. Null if there is no memory.
inline void* try_allocate(std::size_t size, std::size_t alignment) noexcept {
  alignment = std::max(alignment, default_alignment);
  const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
  auto* const memory = static_cast<std::byte*>(std::aligned_alloc(alignment, alignment + rounded));
  if (memory == nullptr) return nullptr;
  std::memcpy(memory + alignment - sizeof(size), &size, sizeof(size));
  ++allocations;
  allocated += size;
  live += size;
  peak = std::max(peak, live);
  return memory + alignment;
}

inline void* allocate(std::size_t size, std::size_t alignment = default_alignment) {
  void* const memory = try_allocate(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

/// Kept out of line: GCC would otherwise see free() meet memory from an operator new that it has not inlined,
/// and warn.
[[gnu::noinline]] inline void release(void* memory, std::size_t alignment = default_alignment) {
  if (memory == nullptr) return;
  alignment = std::max(alignment, default_alignment);
  std::size_t size = 0;
  std::memcpy(&size, static_cast<std::byte*>(memory) - sizeof(size), sizeof(size));
  live -= size;
  std::free(static_cast<std::byte*>(memory) - alignment);
}

/// Allocations during f.
template <class Function>
std::size_t allocations_of(Function&& f) {
  const std::size_t before = allocations;
  f();
  return allocations - before;
}

/// Bytes allocated during f, with those that it frees again.
template <class Function>
std::size_t bytes_of(Function&& f) {
  const std::size_t before = allocated;
  f();
  return allocated - before;
}

/// Most bytes that are live at a time during f, beyond those before it.
template <class Function>
std::size_t peak_of(Function&& f) {
  const std::size_t before = peak = live;
  f();
  return peak - before;
}

#ifdef EIGEN_RUNTIME_NO_MALLOC
/// While there is one, allocations by Eigen fail an assertion of Eigen's.
class NoEigenMalloc {
 public:
  NoEigenMalloc() { Eigen::internal::set_is_malloc_allowed(false); }
  ~NoEigenMalloc() { Eigen::internal::set_is_malloc_allowed(true); }
  NoEigenMalloc(const NoEigenMalloc&) = delete;
  NoEigenMalloc& operator=(const NoEigenMalloc&) = delete;
};
#endif

}  // namespace meo::test::heap

void* operator new(std::size_t size) { return meo::test::heap::allocate(size); }
void* operator new[](std::size_t size) { return meo::test::heap::allocate(size); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return meo::test::heap::allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return meo::test::heap::allocate(size, static_cast<std::size_t>(alignment));
}
// Sanitizers have these of their own, which would not call the ones above.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return meo::test::heap::try_allocate(size, meo::test::heap::default_alignment);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return meo::test::heap::try_allocate(size, meo::test::heap::default_alignment);
}
void operator delete(void* memory) noexcept { meo::test::heap::release(memory); }
void operator delete[](void* memory) noexcept { meo::test::heap::release(memory); }
void operator delete(void* memory, std::size_t) noexcept { meo::test::heap::release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { meo::test::heap::release(memory); }
void operator delete(void* memory, std::align_val_t alignment) noexcept {
  meo::test::heap::release(memory, static_cast<std::size_t>(alignment));
}
void operator delete[](void* memory, std::align_val_t alignment) noexcept {
  meo::test::heap::release(memory, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory, std::size_t, std::align_val_t alignment) noexcept {
  meo::test::heap::release(memory, static_cast<std::size_t>(alignment));
}
void operator delete[](void* memory, std::size_t, std::align_val_t alignment) noexcept {
  meo::test::heap::release(memory, static_cast<std::size_t>(alignment));
}

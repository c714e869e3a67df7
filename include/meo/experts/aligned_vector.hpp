#pragma once

/// A std::vector whose memory starts at a cache line, so that no row of a panel straddles two, and lies in
/// huge pages where it is large.

#include <cstddef>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

namespace detail {

inline constexpr std::size_t cache_line_bytes = 64;

/// Of an x86 and of most ARM systems.
inline constexpr std::size_t huge_page_bytes = std::size_t{1} << 21;

template <class T>
struct CacheLineAllocator {
  using value_type = T;

  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}  // NOLINT: allocators convert

  T* allocate(std::size_t count) {
    if (count > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_array_new_length();
    void* const memory = ::operator new(count * sizeof(T), alignment(count));
#if defined(__linux__)
    // Merges read more memory than the tables of small pages cover. Only advice: nothing is lost if it is not
    // taken.
    if (is_large(count)) (void)::madvise(memory, count * sizeof(T), MADV_HUGEPAGE);
#endif
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t count) { ::operator delete(memory, alignment(count)); }

  bool operator==(const CacheLineAllocator&) const { return true; }

 private:
  static bool is_large(std::size_t count) { return count * sizeof(T) >= 2 * huge_page_bytes; }
  static std::align_val_t alignment(std::size_t count) {
    if (is_large(count)) return std::align_val_t{huge_page_bytes};
    return std::align_val_t{alignof(T) > cache_line_bytes ? alignof(T) : cache_line_bytes};
  }
};

}  // namespace detail

/// A vector whose values begin on a cache line, and where they are many on a huge page.
template <class T>
using AlignedVector = std::vector<T, detail::CacheLineAllocator<T>>;

namespace detail {

/// Memory for `count` values; grows the buffer if it must and never shrinks it.
template <class T>
T* reserve(AlignedVector<T>& buffer, Index count) {
  if (static_cast<Index>(buffer.size()) < count) buffer.resize(static_cast<std::size_t>(count));
  return buffer.data();
}

}  // namespace detail
}  // namespace meo

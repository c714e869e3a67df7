#pragma once

/// One set of compiler flags for all that shares a layer.
///
/// How weights are packed, and the code that reads them, follow the compiler's flags: the size and number of
/// vector registers, and with them the register tile, fused multiply-add, OpenMP. So every name of the
/// library lies in an inline namespace named after them, MEO_ABI, as meo::packet32_registers16_fma.
/// Translation units of other flags have functions of their own, and where one passes a layer to another, the
/// program does not link.
///
/// Eigen has no such namespaces: its functions, which allocate memory here and free it there, are shared by
/// all of a program, whatever they were compiled for. A program of two sets of flags therefore stops at its
/// start, with a message. Shared objects with hidden symbols share nothing, and may each have flags of their
/// own. Translation units that define MEO_ALLOW_MIXED_FLAGS are not looked at.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <Eigen/Core>

#if !defined(__cpp_exceptions)
#error "meo reports what it cannot do by exceptions: compile without -fno-exceptions"
#include <meo/ends_here_without_exceptions>  // no such file: ends the compilation, instead of an error for each throw
#endif

#if defined(EIGEN_VECTORIZE_AVX512)
#define MEO_ABI_PACKETS packet64_registers32
#elif defined(EIGEN_VECTORIZE_AVX)
#define MEO_ABI_PACKETS packet32_registers16
#elif defined(EIGEN_VECTORIZE) && (EIGEN_ARCH_ARM64 || EIGEN_ARCH_PPC)
#define MEO_ABI_PACKETS packet16_registers32
#elif defined(EIGEN_VECTORIZE) && EIGEN_ARCH_i386
#define MEO_ABI_PACKETS packet16_registers8
#elif defined(EIGEN_VECTORIZE)
#define MEO_ABI_PACKETS packet16_registers16
#else
#define MEO_ABI_PACKETS scalar
#endif

#if defined(EIGEN_VECTORIZE_FMA) || EIGEN_ARCH_ARM64
#define MEO_ABI_FMA _fma
#else
#define MEO_ABI_FMA
#endif

#if defined(_OPENMP)
#define MEO_ABI_OPENMP _openmp
#else
#define MEO_ABI_OPENMP
#endif

#define MEO_ABI_JOIN_EXPANDED(packets, fma, openmp) packets##fma##openmp
#define MEO_ABI_JOIN(packets, fma, openmp) MEO_ABI_JOIN_EXPANDED(packets, fma, openmp)
#define MEO_ABI_TEXT_OF_EXPANDED(name) #name
#define MEO_ABI_TEXT_OF(name) MEO_ABI_TEXT_OF_EXPANDED(name)

/// The inline namespace of everything in meo.
#define MEO_ABI MEO_ABI_JOIN(MEO_ABI_PACKETS, MEO_ABI_FMA, MEO_ABI_OPENMP)

namespace meo {

/// What the program's translation units were compiled with, as the first of them says; the only name that
/// they all share.
inline const char* abi_of_program = nullptr;

inline namespace MEO_ABI {

/// The name of MEO_ABI.
inline constexpr const char* abi = MEO_ABI_TEXT_OF(MEO_ABI);

namespace detail {

/// Ends the program if another of its translation units was compiled with other flags.
inline bool require_one_abi() {
  if (abi_of_program == nullptr) abi_of_program = abi;
  if (std::strcmp(abi_of_program, abi) == 0) return true;
  std::fprintf(
      stderr,
      "meo: parts of this program were compiled with other flags than the rest, for %s and for %s. They\n"
      "share functions of Eigen, so that memory is corrupted and results are wrong. Compile all of them "
      "with\n"
      "the same -m… and -fopenmp, or make each a shared object with hidden symbols "
      "(-fvisibility=hidden).\n"
      "MEO_ALLOW_MIXED_FLAGS, defined where the library is included, turns this check off.\n",
      abi_of_program, abi);
  std::abort();
}

}  // namespace detail
}  // namespace MEO_ABI
}  // namespace meo

#if !defined(MEO_ALLOW_MIXED_FLAGS)
namespace {
/// In every translation unit, so that each is looked at.
[[maybe_unused]] const bool meo_has_one_abi = meo::detail::require_one_abi();
}  // namespace
#endif

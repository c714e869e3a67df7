#pragma once

/// What the kernels of this build run on. Eigen's own SimdInstructionSetsInUse knows neither FMA nor AVX2.

#include <string>
#include <string_view>

#include <Eigen/Core>

namespace bench {

/// The sets that the compiler's flags allow and Eigen, whose packets the kernels use, takes up, the least
/// first.
inline std::string instruction_sets() {
  std::string sets;
  const auto add = [&]([[maybe_unused]] std::string_view set) {
    if (!sets.empty()) sets += ", ";
    sets += set;
  };
#if defined(EIGEN_VECTORIZE_SSE2)
  add("SSE2");
#endif
#if defined(EIGEN_VECTORIZE_SSE3)
  add("SSE3");
#endif
#if defined(EIGEN_VECTORIZE_SSSE3)
  add("SSSE3");
#endif
#if defined(EIGEN_VECTORIZE_SSE4_1)
  add("SSE4.1");
#endif
#if defined(EIGEN_VECTORIZE_SSE4_2)
  add("SSE4.2");
#endif
#if defined(EIGEN_VECTORIZE_AVX)
  add("AVX");
#endif
#if defined(EIGEN_VECTORIZE_AVX2)
  add("AVX2");
#endif
#if defined(EIGEN_VECTORIZE_FMA)
  add("FMA");
#endif
#if defined(EIGEN_VECTORIZE_AVX512)
  add("AVX512F");
#if defined(__AVX512DQ__)
  add("AVX512DQ");
#endif
#if defined(__AVX512BW__)
  add("AVX512BW");
#endif
#if defined(__AVX512VL__)
  add("AVX512VL");
#endif
#endif
#if defined(EIGEN_VECTORIZE_NEON)
  add("NEON");
#endif
#if defined(EIGEN_VECTORIZE_SVE)
  add("SVE");
#endif
#if defined(EIGEN_VECTORIZE_ALTIVEC)
  add("AltiVec");
#endif
#if defined(EIGEN_VECTORIZE_VSX)
  add("VSX");
#endif
  return sets.empty() ? "no SIMD" : sets;
}

}  // namespace bench

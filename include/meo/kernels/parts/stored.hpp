#pragma once

/// Packets of weights that are stored as something else than what is computed with. Every conversion of what
/// is loaded is exact, but for those from wider types.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <Eigen/Core>

#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/storage.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

#if (defined(__GNUC__) || defined(__clang__)) && defined(EIGEN_VECTORIZE)
#define MEO_HAS_LOAD_FLOATS

/// As many T as a packet of floats has lanes.
template <class T>
using Lanes __attribute__((vector_size(sizeof(T) * PacketOf<float>::size))) = T;

template <class To>
MEO_INLINE To load_bits(const void* from) {
  To to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

template <class T>
MEO_INLINE Packet<float> as_packet(const T& lanes) {
  static_assert(sizeof(T) == sizeof(Packet<float>));
  return load_bits<Packet<float>>(&lanes);
}

// Integers of 8 bits, bfloat16 and half as floats: by the instructions that there are, because GCC 12 takes
// __builtin_convertvector to pieces.

#if defined(EIGEN_VECTORIZE_AVX512)
// With masks that leave nothing out: GCC says of the others that they read what is not set.
MEO_INLINE Packet<float> load_floats(const std::int8_t* from) {
  const auto wide = _mm512_maskz_cvtepi8_epi32(0xFFFF, load_bits<__m128i>(from));
  return _mm512_maskz_cvtepi32_ps(0xFFFF, wide);
}
MEO_INLINE Packet<float> load_floats(const Eigen::bfloat16* from) {
  const auto wide = _mm512_maskz_cvtepu16_epi32(0xFFFF, load_bits<__m256i>(from));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xFFFF, wide, 16));
}
#elif defined(EIGEN_VECTORIZE_AVX2)
MEO_INLINE Packet<float> load_floats(const std::int8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(from)));
}
MEO_INLINE Packet<float> load_floats(const Eigen::bfloat16* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bits<__m128i>(from)), 16));
}
#elif defined(EIGEN_VECTORIZE_SSE2) && !defined(EIGEN_VECTORIZE_AVX)
MEO_INLINE Packet<float> load_floats(const std::int8_t* from) {
  const __m128i bytes = _mm_cvtsi32_si128(load_bits<int>(from));
  const __m128i pairs = _mm_unpacklo_epi8(bytes, bytes);
  return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24));
}
MEO_INLINE Packet<float> load_floats(const Eigen::bfloat16* from) {
  return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadu_si64(from)));
}
#elif defined(EIGEN_VECTORIZE_NEON) && EIGEN_ARCH_ARM64
MEO_INLINE Packet<float> load_floats(const std::int8_t* from) {
  const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(load_bits<std::int32_t>(from)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}
MEO_INLINE Packet<float> load_floats(const Eigen::bfloat16* from) {
  return vreinterpretq_f32_u32(vshll_n_u16(load_bits<uint16x4_t>(from), 16));
}
#else
MEO_INLINE Packet<float> load_floats(const std::int8_t* from) {
  const auto shorts = __builtin_convertvector(load_bits<Lanes<std::int8_t>>(from), Lanes<std::int16_t>);
  const auto integers = __builtin_convertvector(shorts, Lanes<std::int32_t>);
  return as_packet(__builtin_convertvector(integers, Lanes<float>));
}
MEO_INLINE Packet<float> load_floats(const Eigen::bfloat16* from) {
  const auto halves = load_bits<Lanes<std::uint16_t>>(from);
  return as_packet(__builtin_convertvector(halves, Lanes<std::uint32_t>) << 16);
}
#endif

#if defined(EIGEN_VECTORIZE_AVX512)
MEO_INLINE Packet<float> load_floats(const Eigen::half* from) {
  return _mm512_maskz_cvtph_ps(0xFFFF, load_bits<__m256i>(from));
}
#elif defined(__F16C__) && defined(EIGEN_VECTORIZE_AVX)
MEO_INLINE Packet<float> load_floats(const Eigen::half* from) {
  return _mm256_cvtph_ps(load_bits<__m128i>(from));
}
#elif defined(EIGEN_VECTORIZE_NEON) && EIGEN_ARCH_ARM64
MEO_INLINE Packet<float> load_floats(const Eigen::half* from) {
  return vcvt_f32_f16(load_bits<float16x4_t>(from));
}
#else
/// By the bits: exponent and fraction move to their places, 2^112 makes up for the smaller bias of the
/// exponent, and where it has all bits set, an infinity or NaN, it gets the rest of them.
MEO_INLINE Packet<float> load_floats(const Eigen::half* from) {
  using Bits = Lanes<std::uint32_t>;
  const Bits bits = __builtin_convertvector(load_bits<Lanes<std::uint16_t>>(from), Bits);
  const Bits magnitude = (bits & 0x7fff) << 13;
  const Lanes<float> value = load_bits<Lanes<float>>(&magnitude) * 0x1p112f;
  const auto is_not_finite = magnitude >= 0x0f800000;
  return as_packet(load_bits<Bits>(&value) | (load_bits<Bits>(&is_not_finite) & 0x7f800000) |
                   (bits & 0x8000) << 16);
}
#endif

// The other way, to the nearest that there is, ties to even; integers are in range.

#if defined(EIGEN_VECTORIZE_AVX512)
MEO_INLINE void store_floats(std::int8_t* to, const Packet<float>& packet) {
  const __m512i wide = _mm512_maskz_cvtps_epi32(0xFFFF, packet);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_maskz_cvtepi32_epi8(0xFFFF, wide));
}
#elif defined(EIGEN_VECTORIZE_AVX2)
MEO_INLINE void store_floats(std::int8_t* to, const Packet<float>& packet) {
  const __m256i wide = _mm256_cvtps_epi32(packet);
  const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si64(to, _mm_packs_epi16(pairs, pairs));
}
#else
MEO_INLINE void store_floats(std::int8_t* to, const Packet<float>& packet) {
  float values[PacketOf<float>::size];
  store<float>(values, packet);
  for (const float value : values) *to++ = static_cast<std::int8_t>(std::nearbyint(value));
}
#endif

#if defined(EIGEN_VECTORIZE_AVX512)
MEO_INLINE void store_floats(Eigen::half* to, const Packet<float>& packet) {
  const __m256i halves = _mm512_maskz_cvtps_ph(0xFFFF, packet, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(static_cast<void*>(to), &halves, sizeof(halves));
}
#elif defined(__F16C__) && defined(EIGEN_VECTORIZE_AVX)
MEO_INLINE void store_floats(Eigen::half* to, const Packet<float>& packet) {
  const __m128i halves = _mm256_cvtps_ph(packet, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(static_cast<void*>(to), &halves, sizeof(halves));
}
#else
MEO_INLINE void store_floats(Eigen::half* to, const Packet<float>& packet) {
  float values[PacketOf<float>::size];
  store<float>(values, packet);
  for (const float value : values) *to++ = static_cast<Eigen::half>(value);
}
#endif

MEO_INLINE void store_floats(Eigen::bfloat16* to, const Packet<float>& packet) {
  using Bits = Lanes<std::uint32_t>;
  const auto bits = load_bits<Bits>(&packet);
  const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Bits not_a_number = (bits >> 16 & 0x8000) | 0x7fc0;
  const auto is_nan = (bits & 0x7fffffff) > 0x7f800000;
  const auto halves = __builtin_convertvector(is_nan ? not_a_number : rounded, Lanes<std::uint16_t>);
  std::memcpy(static_cast<void*>(to), &halves, sizeof(halves));
}

#endif

/// Stored weights as what is computed with; integers without their scales.
template <class Scalar, class Storage>
MEO_INLINE Packet<Scalar> load_stored(const Storage* from) {
  if constexpr (std::is_same_v<Scalar, Storage>) {
    return load<Scalar>(from);
  } else {
#if defined(MEO_HAS_LOAD_FLOATS)
    if constexpr (std::is_same_v<Scalar, float> && (is_quantized<Storage> || is_16_bit<Storage>))
      return load_floats(from);
#endif
    Scalar values[PacketOf<Scalar>::size];
    for (int i = 0; i < PacketOf<Scalar>::size; ++i) values[i] = static_cast<Scalar>(from[i]);
    return load<Scalar>(values);
  }
}

/// The other way, to the nearest that there is; integers are in range.
template <class Scalar, class Storage>
MEO_INLINE void store_as(Storage* to, const Packet<Scalar>& packet) {
#if defined(MEO_HAS_LOAD_FLOATS)
  if constexpr (std::is_same_v<Scalar, float> && (is_quantized<Storage> || is_16_bit<Storage>))
    return store_floats(to, packet);
#endif
  Scalar values[PacketOf<Scalar>::size];
  store<Scalar>(values, packet);
  for (const Scalar& value : values) {
    using std::nearbyint;
    if constexpr (is_quantized<Storage>) *to++ = static_cast<Storage>(nearbyint(value));
    else *to++ = static_cast<Storage>(value);
  }
}

/// Stored weights of the columns from `column` on. scales: NR of all columns; null unless weights are
/// quantized.
template <class Scalar, class Storage>
MEO_INLINE Packet<Scalar> load_weights(const Storage* from, [[maybe_unused]] const Scalar* scales,
                                       [[maybe_unused]] Index column) {
  if constexpr (is_quantized<Storage>)
    return multiply(load_stored<Scalar>(from), load<Scalar>(scales + column));
  else return load_stored<Scalar>(from);
}

}  // namespace meo::detail

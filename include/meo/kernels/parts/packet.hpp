#pragma once

/// SIMD packets of one scalar, as the kernels see them; the only file that names Eigen::internal.
///
/// Float and double map to the widest packets that the compiler's flags allow (SSE, AVX, AVX-512, NEON, …).
/// A scalar of 16 bits is a packet of one float, so that a chain of multiply-adds is rounded to 16 bits only
/// where it is stored. Any other scalar is a packet of one, for which a type needs no more than +, * and
/// conversion from int.

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include <Eigen/Core>

#include <meo/sums.hpp>
#include <meo/types.hpp>

#if defined(__GNUC__) || defined(__clang__)
#define MEO_INLINE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define MEO_INLINE __forceinline
#else
#define MEO_INLINE inline
#endif

namespace meo::inline MEO_ABI::detail {

template <class Scalar>
struct PacketOf {
  using Type = typename Eigen::internal::packet_traits<Scalar>::type;
  static constexpr int size = Eigen::internal::unpacket_traits<Type>::size;
};

template <class Scalar>
requires is_16_bit<Scalar>
struct PacketOf<Scalar> {
  using Type = Sum<Scalar>;
  static constexpr int size = 1;
};

template <class Scalar>
using Packet = typename PacketOf<Scalar>::Type;

/// Vector registers that the instruction set has.
inline constexpr int num_registers = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS;

template <class Scalar>
MEO_INLINE Packet<Scalar> load(const Scalar* from) {
  if constexpr (is_16_bit<Scalar>) return static_cast<Packet<Scalar>>(*from);
  else return Eigen::internal::ploadu<Packet<Scalar>>(from);
}

template <class Scalar>
MEO_INLINE void store(Scalar* to, const Packet<Scalar>& packet) {
  if constexpr (is_16_bit<Scalar>) *to = static_cast<Scalar>(packet);
  else Eigen::internal::pstoreu(to, packet);
}

template <class Scalar>
MEO_INLINE Packet<Scalar> broadcast(const Scalar& value) {
  if constexpr (is_16_bit<Scalar>) return static_cast<Packet<Scalar>>(value);
  else return Eigen::internal::pset1<Packet<Scalar>>(value);
}

/// a · b + c, with one rounding where the instruction set has fused multiply-add.
template <class P>
MEO_INLINE P multiply_add(const P& a, const P& b, const P& c) {
  return Eigen::internal::pmadd(a, b, c);
}

/// Whether multiply_add rounds once.
template <class Scalar>
inline constexpr bool has_fused_multiply_add =
#if defined(__FMA__) || defined(__AVX512F__) || defined(__ARM_FEATURE_FMA)
    PacketOf<Scalar>::size > 1;
#else
    false;
#endif

/// Hides from the compiler what a packet was computed from.
template <class Scalar>
MEO_INLINE void hide([[maybe_unused]] Packet<Scalar>& packet) {
#if defined(__GNUC__) || defined(__clang__)
  if constexpr (std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>) {
#if defined(__AVX512F__)
    asm("" : "+v"(packet));
#elif defined(__SSE2__)
    asm("" : "+x"(packet));
#elif defined(__aarch64__)
    asm("" : "+w"(packet));
#endif
  }
#endif
}

/// The packet, loaded into a register before it is used. GCC would rather read it from memory at each use,
/// which more than doubles the loads of a tile.
template <class Scalar>
MEO_INLINE Packet<Scalar> in_register(Packet<Scalar> packet) {
#if defined(__GNUC__) && !defined(__clang__)
  if constexpr (PacketOf<Scalar>::size > 1) hide<Scalar>(packet);
#endif
  return packet;
}

template <class P>
MEO_INLINE P add(const P& a, const P& b) {
  return Eigen::internal::padd(a, b);
}
template <class P>
MEO_INLINE P subtract(const P& a, const P& b) {
  return Eigen::internal::psub(a, b);
}
template <class P>
MEO_INLINE P multiply(const P& a, const P& b) {
  return Eigen::internal::pmul(a, b);
}
template <class P>
MEO_INLINE P divide(const P& a, const P& b) {
  return Eigen::internal::pdiv(a, b);
}

/// The smaller and the larger of a and b; NaN where a is.
template <class P>
MEO_INLINE P minimum(const P& a, const P& b) {
  return Eigen::internal::pmin(a, b);
}
template <class P>
MEO_INLINE P maximum(const P& a, const P& b) {
  return Eigen::internal::pmax(a, b);
}

#if defined(EIGEN_VECTORIZE_AVX512) && defined(__GNUC__) && !defined(__clang__)
// The same instructions by other names: of those that Eigen uses GCC says that they read what is not set.
MEO_INLINE __m512 minimum(const __m512& a, const __m512& b) { return _mm512_maskz_min_ps(0xFFFF, b, a); }
MEO_INLINE __m512 maximum(const __m512& a, const __m512& b) { return _mm512_maskz_max_ps(0xFFFF, b, a); }
MEO_INLINE __m512d minimum(const __m512d& a, const __m512d& b) { return _mm512_maskz_min_pd(0xFF, b, a); }
MEO_INLINE __m512d maximum(const __m512d& a, const __m512d& b) { return _mm512_maskz_max_pd(0xFF, b, a); }
#endif

/// All bits of a scalar where a < b, none elsewhere.
template <class P>
MEO_INLINE P less(const P& a, const P& b) {
  return Eigen::internal::pcmp_lt(a, b);
}

template <class P>
MEO_INLINE P bit_and(const P& a, const P& b) {
  return Eigen::internal::pand(a, b);
}
/// a with the bits of b cleared.
template <class P>
MEO_INLINE P bit_clear(const P& a, const P& b) {
  return Eigen::internal::pandnot(a, b);
}
template <class P>
MEO_INLINE P bit_or(const P& a, const P& b) {
  return Eigen::internal::por(a, b);
}
template <class P>
MEO_INLINE P bit_xor(const P& a, const P& b) {
  return Eigen::internal::pxor(a, b);
}

/// An unsigned integer of the scalar's size.
template <class Scalar>
using BitsOf = std::conditional_t<sizeof(Scalar) == 4, std::uint32_t, std::uint64_t>;

/// Moves the bits of each scalar, float or double, up by `count`.
template <class Scalar, int count>
MEO_INLINE Packet<Scalar> shift_bits_up(const Packet<Scalar>& packet) {
  if constexpr (PacketOf<Scalar>::size == 1) {
    return std::bit_cast<Scalar>(std::bit_cast<BitsOf<Scalar>>(packet) << count);
  } else {
#if defined(__GNUC__) || defined(__clang__)
    using Bits [[gnu::vector_size(sizeof(Packet<Scalar>))]] = BitsOf<Scalar>;
    return reinterpret_cast<Packet<Scalar>>(reinterpret_cast<Bits>(packet) << count);
#else
    Scalar scalars[PacketOf<Scalar>::size];
    store<Scalar>(scalars, packet);
    for (Scalar& scalar : scalars) scalar = shift_bits_up<Scalar, count>(scalar);
    return load<Scalar>(scalars);
#endif
  }
}

template <class Scalar>
MEO_INLINE Scalar first(const Packet<Scalar>& packet) {
  Scalar scalars[PacketOf<Scalar>::size];  // Eigen's pfirst makes GCC warn with AVX-512
  store<Scalar>(scalars, packet);
  return scalars[0];
}

/// The sum of a packet's scalars.
template <class Scalar>
MEO_INLINE Scalar sum(const Packet<Scalar>& packet) {
  if constexpr (is_16_bit<Scalar>) return static_cast<Scalar>(packet);
  else return Eigen::internal::predux(packet);
}

/// Transposes the square matrix whose rows are the packets of `block`.
template <class P, int size>
MEO_INLINE void transpose(P (&block)[size]) {
  if constexpr (size > 1) {
    Eigen::internal::PacketBlock<P, size> packets;
    for (int i = 0; i < size; ++i) packets.packet[i] = block[i];
    Eigen::internal::ptranspose(packets);
    for (int i = 0; i < size; ++i) block[i] = packets.packet[i];
  }
}

/// Asks for the cache line at `address`, which need not be readable, to be brought into L2.
MEO_INLINE void prefetch(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 0, 2);
#else
  (void)address;
#endif
}

/// The same, and into L1.
MEO_INLINE void prefetch_near(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 0, 3);
#else
  (void)address;
#endif
}

}  // namespace meo::detail

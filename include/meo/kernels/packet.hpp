#pragma once

/// SIMD packets of one scalar, as the kernels see them; the only file that names Eigen::internal.
///
/// Float and double map to the widest packets that the compiler's flags allow (SSE, AVX, AVX-512, NEON, …).
/// A scalar of 16 bits is a packet of one float, so that a chain of multiply-adds is rounded to 16 bits only
/// where it is stored. Any other scalar is a packet of one, for which a type needs no more than +, * and
/// conversion from int.

#include <concepts>
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

namespace meo::detail {

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

/// Loads what is stored as what is computed with.
template <class Scalar, class Storage>
MEO_INLINE Packet<Scalar> load_stored(const Storage* from) {
  if constexpr (std::same_as<Scalar, Storage>) {
    return load<Scalar>(from);
  } else {
    Scalar values[PacketOf<Scalar>::size];
    for (int i = 0; i < PacketOf<Scalar>::size; ++i) values[i] = static_cast<Scalar>(from[i]);
    return load<Scalar>(values);
  }
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

/// Has a packet loaded into a register before it is used. GCC would rather read it from memory at each use,
/// which more than doubles the loads of a tile.
template <class Scalar>
MEO_INLINE void keep_in_register([[maybe_unused]] Packet<Scalar>& packet) {
#if defined(__GNUC__) && !defined(__clang__)
  if constexpr (PacketOf<Scalar>::size > 1 && std::is_floating_point_v<Scalar>) {
#if defined(__AVX512F__)
    asm("" : "+v"(packet));
#elif defined(__SSE__)
    asm("" : "+x"(packet));
#elif defined(__aarch64__)
    asm("" : "+w"(packet));
#endif
  }
#endif
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

}  // namespace meo::detail

#pragma once

/// A double that counts what is done with it. Eigen has no packets for it, so the kernels run on packets of
/// one.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>

#include <Eigen/Core>

namespace meo_test {

/// What has been done so far by all Counting scalars, of all threads.
struct Counts {
  std::atomic<std::int64_t> multiply_adds = 0;
  std::atomic<std::int64_t> others =
      0;  ///< additions, multiplications, divisions and functions outside of multiply-adds
};

struct Counting {
  static inline Counts counts;

  Counting() = default;
  template <class Number>
  requires std::is_arithmetic_v<Number>
  explicit Counting(Number number) : value(static_cast<double>(number)) {}

  double value = 0;

  friend Counting operator+(Counting a, Counting b) { return counted(a.value + b.value); }
  friend Counting operator-(Counting a, Counting b) { return counted(a.value - b.value); }
  friend Counting operator*(Counting a, Counting b) { return counted(a.value * b.value); }
  friend Counting operator/(Counting a, Counting b) { return counted(a.value / b.value); }
  friend Counting operator-(Counting a) { return counted(-a.value); }
  Counting& operator+=(Counting other) { return *this = *this + other; }

  friend bool operator==(const Counting&, const Counting&) = default;
  friend auto operator<=>(const Counting& a, const Counting& b) { return a.value <=> b.value; }

  friend Counting exp(Counting x) { return counted(std::exp(x.value)); }
  friend Counting log1p(Counting x) { return counted(std::log1p(x.value)); }
  friend Counting erfc(Counting x) { return counted(std::erfc(x.value)); }

 private:
  static Counting counted(double value) {
    ++counts.others;
    return Counting(value);
  }
};

}  // namespace meo_test

namespace Eigen {

template <>
struct NumTraits<meo_test::Counting> : GenericNumTraits<meo_test::Counting> {
  static meo_test::Counting highest() { return meo_test::Counting(std::numeric_limits<double>::max()); }
  static meo_test::Counting lowest() { return meo_test::Counting(std::numeric_limits<double>::lowest()); }
};

namespace internal {

/// What tells a multiply-add of the kernels from any other arithmetic.
template <>
inline meo_test::Counting pmadd(const meo_test::Counting& a, const meo_test::Counting& b,
                                const meo_test::Counting& c) {
  ++meo_test::Counting::counts.multiply_adds;
  return meo_test::Counting(a.value * b.value + c.value);
}

}  // namespace internal
}  // namespace Eigen

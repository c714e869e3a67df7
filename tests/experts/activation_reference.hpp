#pragma once

/// The smooth activations in long double, with what is lost of their exponents brought back, and errors in
/// units in the last place.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include <meo/experts/activation.hpp>

namespace meo::test {

/// f(x), f'(x), and the sum of the magnitudes of the terms that f' is the difference of.
struct ExactActivation {
  long double value;
  long double slope;
  long double slope_terms;
};

/// From the tail Q(a) and −a Q'(a), a = |x|; see meo/kernels/vector_math.hpp.
inline ExactActivation of_tail(long double x, long double tail, long double fall) {
  if (x < 0) return {x * tail, tail - fall, tail + fall};
  return {x - x * tail, 1 - tail + fall, 1 - tail + fall};
}

inline ExactActivation exact(Gelu, long double x) {
  // Beyond 200 every scalar's tail is 0. With δ the error of z, erfc(z + δ) = erfc(z) − 2/√π exp(−z²) δ.
  const long double a = std::min(std::fabs(x), 200.0L), root = std::sqrt(0.5L);
  const long double root_error = -std::fma(root, root, -0.5L) / (2 * root);
  const long double z = a * root, delta = std::fma(a, root, -z) + a * root_error;
  const long double square = z * z, square_error = std::fma(z, z, -square) + 2 * z * delta;
  const long double e = std::exp(-square) * (1 - square_error);
  const long double pi = std::acos(-1.0L);
  const long double tail = (std::erfc(z) - 2 / std::sqrt(pi) * e * delta) / 2;
  return of_tail(std::clamp(x, -200.0L, std::numeric_limits<long double>::max()), tail,
                 a * e / std::sqrt(2 * pi));
}

/// x / (1 + exp(−u)), where exp(−u) and x u' are known for |x|.
inline ExactActivation of_exponential(long double x, long double e, long double a_slope) {
  const long double tail = e / (1 + e);
  return of_tail(x, tail, a_slope * tail / (1 + e));
}

inline ExactActivation exact(Silu, long double x) {
  const long double a = std::min(std::fabs(x), 20000.0L);
  return of_exponential(std::clamp(x, -20000.0L, std::numeric_limits<long double>::max()), std::exp(-a), a);
}

inline ExactActivation exact(GeluTanh, long double x) {
  const long double a = std::min(std::fabs(x), 100.0L);
  const long double linear = std::sqrt(8 / std::acos(-1.0L)), cubic = 0.044715L * linear;
  const long double square = a * a, square_error = std::fma(a, a, -square);
  const long double term = cubic * square, v = linear + term;
  const long double v_error = (term > linear ? (term - v) + linear : (linear - v) + term) +
                              std::fma(cubic, square, -term) + cubic * square_error;
  const long double u = a * v, u_error = std::fma(a, v, -u) + a * v_error;
  return of_exponential(std::clamp(x, -100.0L, std::numeric_limits<long double>::max()),
                        std::exp(-u) * (1 - u_error), a * (linear + 3 * term));
}

/// The distance of two neighbours in S where `value` is; for what is below the normal numbers that of those.
template <class S>
long double unit_in_last_place(long double value) {
  constexpr int min_exponent =
      std::numeric_limits<S>::min_exponent;  // Eigen's have no definition to refer to
  int exponent = min_exponent;
  if (value != 0) std::frexp(value, &exponent);
  return std::ldexp(1.0L, std::max(exponent, min_exponent) - std::numeric_limits<S>::digits);
}

template <class S>
using Bits = std::conditional_t<sizeof(S) == 4, std::uint32_t, std::uint64_t>;

template <class S>
S from_bits(Bits<S> bits) {
  S value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class S>
Bits<S> to_bits(S value) {
  Bits<S> bits;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

/// Finite arguments: of every sign and exponent the least, the greatest and some between; many between −range
/// and range, beyond which nothing happens; and each one's neighbours where the code changes its ways.
template <class S>
std::vector<S> all_over(S range) {
  std::mt19937_64 rng(73);
  std::vector<S> x;
  constexpr int mantissa_bits = std::numeric_limits<S>::digits - 1;
  constexpr Bits<S> num_exponents = Bits<S>(1) << (8 * sizeof(S) - 1 - mantissa_bits);
  constexpr Bits<S> least = Bits<S>(1) << mantissa_bits;
  for (Bits<S> exponent = 0; exponent + 1 < num_exponents; ++exponent) {
    for (const Bits<S> sign : {Bits<S>(0), num_exponents}) {
      const Bits<S> begin = (sign + exponent) << mantissa_bits;
      x.push_back(from_bits<S>(begin));
      x.push_back(from_bits<S>(begin + least - 1));
      for (int i = 0; i < 8; ++i) x.push_back(from_bits<S>(begin + Bits<S>(rng()) % least));
    }
  }
  for (int i = 0; i < 30000; ++i) {
    const double uniform = static_cast<double>(rng() >> 11) * 0x1p-52 - 1;
    x.push_back(static_cast<S>(uniform) * range);
    x.push_back(static_cast<S>(uniform));
  }
  using Constants = detail::VectorConstants<S>;
  for (const S edge : {Constants::largest_gelu, Constants::largest_gelu_tanh, Constants::largest_silu}) {
    for (const S at : {edge, -edge}) {
      for (int i = -2; i <= 2; ++i) x.push_back(from_bits<S>(to_bits(at) + static_cast<Bits<S>>(i)));
    }
  }
  return x;
}

/// An entry of the table of largest errors in the documentation of a header, such as 4.5 for "Gelu" and
/// column 0.
inline double documented_error(const std::string& header, const std::string& name, int column) {
  std::ifstream file(MEO_TEST_DATA_DIR "/../include/meo/" + header);
  const std::string begin = "/// | " + name + " ";
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, begin.size(), begin) != 0) continue;
    std::istringstream cells(line.substr(line.find('|', begin.size()) + 1));
    std::string cell;
    for (int i = 0; i <= column; ++i) std::getline(cells, cell, '|');
    return std::stod(cell);
  }
  return -1;  // no result is within it
}

template <class S>
double documented_error(const std::string& header, const std::string& name) {
  return documented_error(header, name, std::is_same_v<S, float> ? 0 : 1);
}

}  // namespace meo::test

#pragma once

/// What the kernels promise to the bit: every output is one chain of multiply-adds in the order of the
/// inputs, a merged weight one in the order of the experts. Here as plain loops.

#include <vector>

#include <meo/kernels/parts/packet.hpp>
#include <meo/types.hpp>

namespace meo::test {

/// a · b + c with the roundings of one lane of a packet.
template <class S>
S multiply_add_one(S a, S b, S c) {
  S lanes[detail::PacketOf<S>::size];
  detail::store<S>(
      lanes, detail::multiply_add(detail::broadcast<S>(a), detail::broadcast<S>(b), detail::broadcast<S>(c)));
  return lanes[0];
}

/// y + x Wᵀ. x: T × D, weight: F × D, y: T × F, where the chains start.
template <class S>
Matrix<S> chain_product(const Matrix<S>& x, const Matrix<S>& weight, Matrix<S> y) {
  for (Index t = 0; t < x.rows(); ++t) {
    for (Index out = 0; out < weight.rows(); ++out) {
      for (Index in = 0; in < x.cols(); ++in) {
        y(t, out) = multiply_add_one(x(t, in), weight(out, in), y(t, out));
      }
    }
  }
  return y;
}

/// `rows` rows of the bias, where the chains of a product start; zeros where there is no bias.
template <class S>
Matrix<S> bias_rows(const Vector<S>& bias, Index rows, Index out_features) {
  if (bias.size() == 0) return Matrix<S>::Zero(rows, out_features);
  return bias.transpose().replicate(rows, 1);
}

/// Σ g_i M_i, summed in the order given.
template <class S, class M>
M chain_merge(const std::vector<M>& terms, const std::vector<S>& weights) {
  M sum = M::Zero(terms.front().rows(), terms.front().cols());
  for (std::size_t i = 0; i < terms.size(); ++i) {
    for (Index j = 0; j < sum.size(); ++j) {
      sum.data()[j] = multiply_add_one(weights[i], terms[i].data()[j], sum.data()[j]);
    }
  }
  return sum;
}

}  // namespace meo::test

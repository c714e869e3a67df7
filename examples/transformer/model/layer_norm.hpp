#pragma once

/// Layer norm over the features of each token, y = (x − mean) / √(variance + ε) ⊙ weight + bias, with the
/// variance divided by d (Ba et al. 2016, arXiv 1607.06450).
///
/// Letters: T tokens, d width.

#include <cmath>
#include <string>
#include <string_view>

#include "activations.hpp"
#include "parallel.hpp"
#include "parameter.hpp"
#include "sums.hpp"

namespace transformer {

template <class Scalar>
class LayerNorm {
 public:
  /// What backward reads.
  struct Context {
    Activations<Scalar> normed;             ///< T × d, before weight and bias
    Activations<Scalar> inverse_deviation;  ///< T × 1
  };

  /// Weight one, bias zero.
  LayerNorm(Index width, double epsilon)
      : weight_(Parameter<Scalar>::vector(width)),
        bias_(Parameter<Scalar>::vector(width)),
        epsilon_(static_cast<Scalar>(epsilon)) {
    weight_.matrix.setOnes();
  }

  /// x, y: T × d; y may be x.
  void forward(const ConstRows<Scalar>& x, Rows<Scalar> y, Context& context) const {
    const Index width = x.cols();
    Rows<Scalar> normed = context.normed.resize(x.rows(), width);
    Rows<Scalar> inverse_deviation = context.inverse_deviation.resize(x.rows(), 1);
    const auto one_over_width = Scalar(1) / static_cast<Scalar>(width);
    for_rows(x.rows(), [&](Index t) {
      const Scalar* const row = x.row(t).data();
      const Scalar mean = one_over_width * sum_in_lanes<Scalar>(width, [row](Index i, auto lanes) {
                            return values_at(row + i, lanes);
                          });
      normed.row(t).array() = x.row(t).array() - mean;
      const Scalar* const centred = normed.row(t).data();
      const Scalar variance = one_over_width * sum_in_lanes<Scalar>(width, [centred](Index i, auto lanes) {
                                return values_at(centred + i, lanes).square();
                              });
      inverse_deviation(t, 0) = Scalar(1) / std::sqrt(variance + epsilon_);
      normed.row(t) *= inverse_deviation(t, 0);
      y.row(t).array() = normed.row(t).array() * weight_.matrix.array() + bias_.matrix.array();
    });
  }

  /// Of a forward that left the context: dy, dx: T × d; dx may be dy. Adds to the gradients.
  void backward(const Context& context, const ConstRows<Scalar>& dy, LayerNorm& gradients,
                Rows<Scalar> dx) const {
    const ConstRows<Scalar> normed = context.normed.get();
    const ConstRows<Scalar> inverse_deviation = context.inverse_deviation.get();
    const Index width = dy.cols();
    add_column_sums(
        dy.rows(), width,
        [&](Index row, Index first, Index count) {
          return dy.row(row).segment(first, count).array() * normed.row(row).segment(first, count).array();
        },
        gradients.weight_.matrix.data());
    add_column_sums(
        dy.rows(), width,
        [&](Index row, Index first, Index count) { return dy.row(row).segment(first, count).array(); },
        gradients.bias_.matrix.data());
    const auto one_over_width = Scalar(1) / static_cast<Scalar>(width);
    for_rows(dy.rows(), [&](Index t) {
      dx.row(t).array() = dy.row(t).array() * weight_.matrix.array();
      const Scalar* const of_normed = dx.row(t).data();
      const Scalar* const at = normed.row(t).data();
      const Scalar mean = one_over_width * sum_in_lanes<Scalar>(width, [=](Index i, auto lanes) {
                            return values_at(of_normed + i, lanes);
                          });
      const Scalar along = one_over_width * sum_in_lanes<Scalar>(width, [=](Index i, auto lanes) {
                             return values_at(of_normed + i, lanes) * values_at(at + i, lanes);
                           });
      dx.row(t).array() =
          (dx.row(t).array() - mean - normed.row(t).array() * along) * inverse_deviation(t, 0);
    });
  }

  /// self: const or not; see parameter.hpp.
  template <class Self, class Visitor>
  static void visit(Self& self, std::string_view name, const Visitor& visit) {
    visit(std::string(name) + ".weight", self.weight_);
    visit(std::string(name) + ".bias", self.bias_);
  }

 private:
  template <class Row>
  static void for_rows(Index rows, const Row& row) {
    parallel_ranges(rows, [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) row(t);
    });
  }

  Parameter<Scalar> weight_, bias_;
  Scalar epsilon_;
};

}  // namespace transformer

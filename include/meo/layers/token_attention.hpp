#pragma once

/// The token-level attention block, TokenAttention(x) = U relu(V x + v) + u, added to its input (He et al.
/// 2023, section 3.3): it gives every token its own view of the merged expert for two thin products.

#include <algorithm>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/experts/activate.hpp>
#include <meo/experts/activation.hpp>
#include <meo/experts/linear.hpp>
#include <meo/overlap.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// V (⌊D/r⌋ × D) and U, each with a bias.
template <class Scalar>
class TokenAttention {
 public:
  /// Zero weights. Throws std::invalid_argument for sizes that are not positive.
  TokenAttention(Index features, Index reduced_features)
      : down_(features, reduced_features), up_(reduced_features, features) {}

  /// What it was made with.
  Index features() const { return down_.in_features(); }
  Index reduced_features() const { return down_.out_features(); }
  /// Whether it was moved from; see Linear::empty.
  bool empty() const { return down_.empty() || up_.empty(); }

  /// V (reduced_features × features) with v, and U (features × reduced_features) with u.
  Linear<Scalar>& down() { return down_; }
  const Linear<Scalar>& down() const { return down_; }
  Linear<Scalar>& up() { return up_; }
  const Linear<Scalar>& up() const { return up_; }

  /// V and v as PyTorch's nn.Linear starts; U and u zero, so that the block starts as no attention.
  template <class Generator>
  void initialize(Generator& rng) {
    down_.initialize(rng);
    reset();
  }

  /// U and u zero: TokenAttention(x) = 0.
  void reset() { up_.set_zero(); }

  /// attended = x + TokenAttention(x). x: T × features; rows: T × reduced_features of scratch; attended: T ×
  /// features, contiguous. Throws std::invalid_argument if attended or rows overlap x or one another.
  void apply(const MatrixView<Scalar>& x, Scalar* rows, Scalar* attended) const;

  /// Gradients of apply(x, rows, ·) whose result has the gradient d_attended (T × features). Adds those of
  /// the parameters to `gradients`, a block of the same shape, and writes dx, T × features at dx_stride.
  /// d_rows: T × reduced_features of memory. Throws std::invalid_argument if dx overlaps x or d_attended or
  /// if `gradients` is this very block, and then changes nothing.
  void backward(const MatrixView<Scalar>& x, const Scalar* rows, const MatrixView<Scalar>& d_attended,
                Scalar* d_rows, TokenAttention& gradients, Scalar* dx, Index dx_stride,
                AlignedVector<Scalar>& scratch) const;

 private:
  Linear<Scalar> down_;
  Linear<Scalar> up_;
};

template <class Scalar>
void TokenAttention<Scalar>::apply(const MatrixView<Scalar>& x, Scalar* rows, Scalar* attended) const {
  const Index reduced = reduced_features();
  const MatrixView<Scalar> all_rows(rows, x.rows(), reduced, reduced);
  const MatrixView<Scalar> written(attended, x.rows(), features(), features());
  detail::require_apart(written, "attended", x, "x");
  detail::require_apart(all_rows, "rows", x, "x");
  detail::require_apart(written, "attended", all_rows, "rows");
  // A few tokens at a time, which stay in L2 from one step to the next.
  constexpr Index most = 64;
  const Index blocks = (x.rows() + most - 1) / most;
  detail::parallel_ranges(blocks, detail::max_threads(), [&](Index begin, Index end, Index) {
    for (Index first = begin * most; first < (std::min)(end * most, x.rows()); first += most) {
      const Index count = (std::min)(most, x.rows() - first);
      Scalar* const reduced_rows = rows + first * reduced;
      down_.apply({x.row(first), count, x.cols(), x.row_stride()}, reduced_rows, reduced);
      detail::activate<Relu, Scalar>({}, reduced_rows, nullptr, count * reduced, reduced_rows);
      up_.apply({reduced_rows, count, reduced, reduced}, attended + first * features(), features());
      for (Index t = first; t < first + count; ++t) {
        for (Index d = 0; d < features(); ++d) attended[t * features() + d] += x.row(t)[d];
      }
    }
  });
}

template <class Scalar>
void TokenAttention<Scalar>::backward(const MatrixView<Scalar>& x, const Scalar* rows,
                                      const MatrixView<Scalar>& d_attended, Scalar* d_rows,
                                      TokenAttention& gradients, Scalar* dx, Index dx_stride,
                                      AlignedVector<Scalar>& scratch) const {
  const MatrixView<Scalar> written(dx, x.rows(), features(), dx_stride);
  detail::require(&gradients != this, "gradients: expected another block, got the one itself");
  detail::require_apart(written, "dx", x, "x");
  detail::require_apart(written, "dx", d_attended, "d_attended");
  const Index reduced = reduced_features();
  up_.backward({rows, x.rows(), reduced, reduced}, d_attended, gradients.up_, false, d_rows, reduced,
               scratch);
  for (Index i = 0; i < x.rows() * reduced; ++i) {
    if (!(rows[i] > Scalar(0))) d_rows[i] = Scalar(0);
  }
  for (Index t = 0; t < x.rows(); ++t) std::copy_n(d_attended.row(t), features(), dx + t * dx_stride);
  down_.backward(x, {d_rows, x.rows(), reduced, reduced}, gradients.down_, true, dx, dx_stride, scratch);
}

#define MEO_INSTANCES(instance, Scalar) instance class TokenAttention<Scalar>;
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

#pragma once

/// Scaled dot-product attention with several heads, softmax(Q Kᵀ / √s) V for each head of each sequence
/// (Vaswani et al. 2017, arXiv 1706.03762, equation 1).
///
/// Queries, keys and values stand side by side, T × 3d: row t has q, k, v of token t, each of them head by
/// head.
///
/// Letters: T tokens of the batch, n of a sequence, d width, s = d / heads.

#include <algorithm>
#include <vector>

#include <meo/experts/aligned_vector.hpp>
#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

#include "activations.hpp"
#include "dropout.hpp"
#include "parallel.hpp"
#include "softmax.hpp"

namespace transformer {

/// What forward leaves for backward, and the memory of both.
template <class Scalar>
struct AttentionMemory {
  meo::AlignedVector<Scalar> probabilities;  ///< n × n of each sequence and head
  std::vector<Index> begins;                 ///< of each sequence's, for all heads
  meo::AlignedVector<Scalar> scratch;        ///< a part for each thread
};

template <class Scalar>
class Attention {
 public:
  /// width: a multiple of heads.
  Attention(Index width, Index heads, bool causal) : heads_(heads), size_(width / heads), causal_(causal) {}

  /// mixed: T × d. keep: whether a backward follows. dropout: of the probabilities.
  void forward(const ConstRows<Scalar>& qkv, const meo::Sequences& sequences, const Dropout& dropout,
               bool keep, Rows<Scalar> mixed, AttentionMemory<Scalar>& memory) const {
    place_probabilities(sequences, memory);
    if (keep) grown(memory.probabilities, memory.begins.back());
    const Index longest = longest_of(sequences);
    const Layout layout(longest, size_, false);
    const auto scale = Scalar(1) / std::sqrt(static_cast<Scalar>(size_));
    for_heads(sequences, layout.size, memory, [&](Index b, Index head, Scalar* scratch) {
      const Index begin = sequences.begin(b), length = sequences.length(b), stride = padded(length);
      Block q = layout.block(scratch, 0, length), k = layout.block(scratch, 1, length),
            v = layout.block(scratch, 2, length), out = layout.block(scratch, 3, length);
      q = part(qkv, begin, length, 0, head) * scale;
      k = part(qkv, begin, length, 1, head);
      v = part(qkv, begin, length, 2, head);
      const Index first = probabilities_begin(memory, b, head, length);
      for (Index row = 0; row < length; row += query_rows) {
        const Index rows = (std::min)(query_rows, length - row);
        const Index keys = causal_ ? row + rows : length;
        Scalar* const kept = keep ? memory.probabilities.data() + first + row * stride : layout.rows(scratch);
        Block p(kept, rows, keys, Eigen::OuterStride<>(stride));
        multiply_in_parts(keys, [&](Index key, Index count) {
          set_product_with_transposed(rows_of(read(q), row, rows), rows_of(read(k), key, count),
                                      columns_of(p, key, count));
        });
        for (Index r = 0; r < rows; ++r) {
          const Index seen = causal_ ? row + r + 1 : length;
          softmax(kept + r * stride, seen);
          std::fill(kept + r * stride + seen, kept + r * stride + keys, Scalar(0));
        }
        Block weights = p;
        if (dropout) {
          new (&weights) Block(layout.rows(scratch), rows, keys, Eigen::OuterStride<>(stride));
          drop(dropout, first + row * stride, p, weights);
        }
        Block rows_out = rows_of(out, row, rows);
        rows_out.setZero();
        multiply_in_parts(keys, [&](Index key, Index count) {
          add_product(columns_of(read(weights), key, count), rows_of(read(v), key, count), rows_out);
        });
      }
      part(mixed, begin, length, 0, head) = out;
    });
  }

  /// Inference of the last T of P tokens of one text. keys_and_values: P × 2d, all of them. mixed: T × d.
  void forward_last(const ConstRows<Scalar>& qkv, const ConstRows<Scalar>& keys_and_values,
                    Rows<Scalar> mixed, AttentionMemory<Scalar>& memory) const {
    const Index all = keys_and_values.rows(), before = all - qkv.rows();
    const auto scale = Scalar(1) / std::sqrt(static_cast<Scalar>(size_));
    Scalar* const scratch = grown(memory.scratch, max_threads() * all);
    parallel_ranges(heads_, [&](Index begin, Index end, Index thread) {
      for (Index head = begin; head < end; ++head) {
        for (Index t = 0; t < qkv.rows(); ++t) {
          const Index seen = causal_ ? before + t + 1 : all;
          Eigen::Map<meo::Vector<Scalar>> p(scratch + thread * all, seen);
          p.noalias() =
              part(keys_and_values, 0, seen, 0, head) * (part(qkv, t, 1, 0, head).transpose() * scale);
          softmax(p.data(), seen);
          part(mixed, t, 1, 0, head).noalias() = p.transpose() * part(keys_and_values, 0, seen, 1, head);
        }
      }
    });
  }

  /// Of a forward that left the memory. d_mixed: T × d; d_qkv: T × 3d, written.
  void backward(const ConstRows<Scalar>& qkv, const meo::Sequences& sequences, const Dropout& dropout,
                const ConstRows<Scalar>& d_mixed, Rows<Scalar> d_qkv, AttentionMemory<Scalar>& memory) const {
    const Layout layout(longest_of(sequences), size_, true);
    const auto scale = Scalar(1) / std::sqrt(static_cast<Scalar>(size_));
    for_heads(sequences, layout.size, memory, [&](Index b, Index head, Scalar* scratch) {
      const Index begin = sequences.begin(b), length = sequences.length(b), stride = padded(length);
      Block d_k = layout.block(scratch, 0, length), d_v = layout.block(scratch, 1, length);
      d_k.setZero();
      d_v.setZero();
      const ConstBlock q = part(qkv, begin, length, 0, head), k = part(qkv, begin, length, 1, head),
                       v = part(qkv, begin, length, 2, head), d_out = part(d_mixed, begin, length, 0, head);
      const Index first = probabilities_begin(memory, b, head, length);
      for (Index row = 0; row < length; row += query_rows) {
        const Index rows = (std::min)(query_rows, length - row);
        const Index keys = causal_ ? row + rows : length;
        Block p(memory.probabilities.data() + first + row * stride, rows, keys, Eigen::OuterStride<>(stride));
        Block d_p(layout.rows(scratch), rows, keys, Eigen::OuterStride<>(stride));
        Block weights = p;
        multiply_in_parts(keys, [&](Index key, Index count) {
          set_product_with_transposed(rows_of(d_out, row, rows), rows_of(v, key, count),
                                      columns_of(d_p, key, count));
        });
        if (dropout) {
          new (&weights) Block(layout.more_rows(scratch), rows, keys, Eigen::OuterStride<>(stride));
          drop(dropout, first + row * stride, p, weights);
          drop(dropout, first + row * stride, d_p, d_p);
        }
        for (Index r = 0; r < rows; ++r) {
          // Beyond the tokens that the query sees, p is 0, and so becomes d_p.
          softmax_backward<Scalar>(p.row(r).data(), d_p.row(r).data(), keys);
        }
        d_p *= scale;
        Block d_q = part(d_qkv, begin + row, rows, 0, head);
        d_q.setZero();
        multiply_in_parts(keys, [&](Index key, Index count) {
          add_transposed_product(columns_of(read(weights), key, count), rows_of(d_out, row, rows),
                                 rows_of(d_v, key, count));
          add_product(columns_of(read(d_p), key, count), rows_of(k, key, count), d_q);
          add_transposed_product(columns_of(read(d_p), key, count), rows_of(q, row, rows),
                                 rows_of(d_k, key, count));
        });
      }
      part(d_qkv, begin, length, 1, head) = d_k;
      part(d_qkv, begin, length, 2, head) = d_v;
    });
  }

 private:
  using Block = Eigen::Map<meo::Matrix<Scalar>, 0, Eigen::OuterStride<>>;
  using ConstBlock = Eigen::Map<const meo::Matrix<Scalar>, 0, Eigen::OuterStride<>>;

  /// Queries whose scores are formed at a time: enough for Eigen's products to pay for packing the keys, and
  /// few enough that with causal attention little is computed beyond the diagonal.
  static constexpr Index query_rows = 64;

  /// Rows begin at cache lines: what a row's bits depend on is then not where its sequence begins.
  static constexpr Index padded(Index values) { return (values + 15) / 16 * 16; }

  /// A thread's scratch: four blocks of n × s, and rows of probabilities.
  struct Layout {
    Layout(Index longest, Index head_size, bool two_rows)
        : block_stride(padded(head_size)),
          columns(head_size),
          block_size(longest * block_stride),
          rows_size((std::min)(query_rows, longest) * padded(longest)),
          size(4 * block_size + (two_rows ? 2 : 1) * rows_size) {}

    Block block(Scalar* scratch, Index number, Index length) const {
      return {scratch + number * block_size, length, columns, Eigen::OuterStride<>(block_stride)};
    }
    Scalar* rows(Scalar* scratch) const { return scratch + 4 * block_size; }
    Scalar* more_rows(Scalar* scratch) const { return rows(scratch) + rows_size; }

    Index block_stride, columns, block_size, rows_size, size;
  };

  /// q, k or v (0, 1, 2) of a head, and so of whatever stands side by side.
  ConstBlock part(const ConstRows<Scalar>& qkv, Index begin, Index length, Index which, Index head) const {
    return {qkv.data() + begin * qkv.cols() + (which * heads_ + head) * size_, length, size_,
            Eigen::OuterStride<>(qkv.cols())};
  }
  Block part(Rows<Scalar>& qkv, Index begin, Index length, Index which, Index head) const {
    return {qkv.data() + begin * qkv.cols() + (which * heads_ + head) * size_, length, size_,
            Eigen::OuterStride<>(qkv.cols())};
  }

  /// To be read or written, as the block is.
  template <class AnyBlock>
  static AnyBlock rows_of(AnyBlock block, Index first, Index count) {
    return {block.data() + first * block.outerStride(), count, block.cols(),
            Eigen::OuterStride<>(block.outerStride())};
  }
  template <class AnyBlock>
  static AnyBlock columns_of(AnyBlock block, Index first, Index count) {
    return {block.data() + first, block.rows(), count, Eigen::OuterStride<>(block.outerStride())};
  }
  static ConstBlock read(const Block& block) {
    return {block.data(), block.rows(), block.cols(), Eigen::OuterStride<>(block.outerStride())};
  }

  // The products of blocks are of these three types: each more of Eigen's takes half a second to compile.
  static void set_product_with_transposed(const ConstBlock& a, const ConstBlock& b, Block c) {
    c.noalias() = a * b.transpose();
  }
  static void add_product(const ConstBlock& a, const ConstBlock& b, Block c) { c.noalias() += a * b; }
  static void add_transposed_product(const ConstBlock& a, const ConstBlock& b, Block c) {
    c.noalias() += a.transpose() * b;
  }

  static Index longest_of(const meo::Sequences& sequences) {
    Index longest = 0;
    for (Index b = 0; b < sequences.size(); ++b) longest = (std::max)(longest, sequences.length(b));
    return longest;
  }

  void place_probabilities(const meo::Sequences& sequences, AttentionMemory<Scalar>& memory) const {
    memory.begins.assign(1, 0);
    for (Index b = 0; b < sequences.size(); ++b) {
      const Index length = sequences.length(b);
      memory.begins.push_back(memory.begins.back() + heads_ * length * padded(length));
    }
  }
  static Index probabilities_begin(const AttentionMemory<Scalar>& memory, Index b, Index head, Index length) {
    return memory.begins[static_cast<std::size_t>(b)] + head * length * padded(length);
  }

  /// Calls body(sequence, head, scratch) for each, in parallel.
  template <class Body>
  void for_heads(const meo::Sequences& sequences, Index scratch_size, AttentionMemory<Scalar>& memory,
                 const Body& body) const {
    Scalar* const scratch = grown(memory.scratch, max_threads() * scratch_size);
    parallel_ranges(sequences.size() * heads_, [&](Index begin, Index end, Index thread) {
      for (Index i = begin; i < end; ++i) body(i / heads_, i % heads_, scratch + thread * scratch_size);
    });
  }

  /// Calls product(first key, keys) for parts of the keys that Eigen packs on the stack: it would allocate
  /// for more.
  template <class Product>
  void multiply_in_parts(Index keys, const Product& product) const {
    const Index most = (std::max<Index>)(1, EIGEN_STACK_ALLOCATION_LIMIT /
                                                static_cast<Index>(sizeof(Scalar)) / padded(size_) / 16 * 16);
    for (Index key = 0; key < keys; key += most) product(key, (std::min)(most, keys - key));
  }

  /// first: the number of the first value of the rows, by which dropout counts; those of the next row are a
  /// padded row further.
  static void drop(const Dropout& dropout, Index first, const Block& from, Block& to) {
    for (Index r = 0; r < from.rows(); ++r) {
      for (Index c = 0; c < from.cols(); ++c)
        to(r, c) = from(r, c) * dropout.factor<Scalar>(first + r * from.outerStride() + c);
    }
  }

  Index heads_, size_;
  bool causal_;
};

}  // namespace transformer

#pragma once

/// Word embeddings, and the decoder that shares them: the rows of one V × d table are looked up by the
/// model's first layer and multiplied with by its last, logits = h Eᵀ + b.
///
/// The table is packed as the products want it, which are most of a word model's time; looking up T rows of
/// it is little against any layer.
///
/// Letters: V vocabulary, d width, T tokens.

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <meo/experts/aligned_vector.hpp>
#include <meo/experts/linear.hpp>

#include "activations.hpp"
#include "parallel.hpp"
#include "parameter.hpp"

namespace transformer {

template <class Scalar>
class Words {
 public:
  /// has_bias: of the decoder.
  Words(Index vocabulary, Index width, bool has_bias) : table_(width, vocabulary, has_bias) {}

  Index vocabulary() const { return table_.out_features(); }
  meo::Linear<Scalar>& table() { return table_; }

  /// x: T × d, is given the rows of the words.
  void look_up(std::span<const Index> words, Rows<Scalar> x) const {
    parallel_ranges(x.rows(), [&](Index begin, Index end, Index) {
      for (Index t = begin; t < end; ++t) {
        const std::span<Scalar> row(x.row(t).data(), static_cast<std::size_t>(x.cols()));
        table_.bank().read_row(0, words[static_cast<std::size_t>(t)], 0, row);
      }
    });
  }

  /// Of a look_up: adds dx to the gradients, but for the row of the padding word, as nn.Embedding does with a
  /// padding_idx. padding: −1 for none.
  void look_up_backward(std::span<const Index> words, Index padding, const ConstRows<Scalar>& dx,
                        Words& gradients) const {
    auto& table = gradients.table_.bank();
    std::array<Scalar, 64> part;  // of a row
    for (Index t = 0; t < dx.rows(); ++t) {
      const Index word = words[static_cast<std::size_t>(t)];
      if (word == padding) continue;
      for (Index c = 0; c < dx.cols(); c += static_cast<Index>(part.size())) {
        const auto count = (std::min)(part.size(), static_cast<std::size_t>(dx.cols() - c));
        const std::span<Scalar> sums = std::span(part).first(count);
        table.read_row(0, word, c, sums);
        for (std::size_t i = 0; i < count; ++i) sums[i] += dx(t, c + static_cast<Index>(i));
        table.write_row(0, word, c, sums);
      }
    }
  }

  /// h: T × d, logits: T × V.
  void decode(const ConstRows<Scalar>& h, Rows<Scalar> logits) const {
    table_.apply(h, logits.data(), logits.cols());
  }

  /// Of a decode: writes dh, adds to the gradients.
  void decode_backward(const ConstRows<Scalar>& h, const ConstRows<Scalar>& d_logits, Words& gradients,
                       Rows<Scalar> dh, meo::AlignedVector<Scalar>& scratch) const {
    table_.backward(h, d_logits, gradients.table_, false, dh.data(), dh.cols(), scratch);
  }

  /// names: of the table and, where there is one, of the bias. self: const or not; see parameter.hpp.
  template <class Self, class Visitor>
  static void visit(Self& self, const std::string& table_name, const std::string& bias_name,
                    const Visitor& visit) {
    visit(table_name, tensors_named(self.table_, table_name, bias_name));
  }

 private:
  meo::Linear<Scalar> table_;
};

}  // namespace transformer

#pragma once

/// The gradient of a panel of weights, Σ_t x_t ⊗ dy_t over tokens t, accumulated in registers: the same tile
/// as the product's, with MR inputs in place of MR rows and a step for every token instead of every input.
///
/// Every element is one chain of multiply-adds over the tokens in their order.

#include <algorithm>

#include <meo/kernels/packet.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/kernels/unroll.hpp>
#include <meo/types.hpp>

namespace meo::detail {

/// Rows of a matrix in a given order, each with an optional factor.
template <class Scalar>
struct GatheredRows {
  const Scalar* data;
  Index stride;
  const Index* gather = nullptr;    ///< null: all rows in their order
  const Scalar* factors = nullptr;  ///< of each row in the given order; null: 1

  const Scalar* row(Index r) const { return data + (gather != nullptr ? gather[r] : r) * stride; }
};

/// Tokens whose dy is packed at a time: a panel's columns of them fill half of a small L1.
template <class Scalar>
constexpr Index outer_product_tokens() {
  return (Index{1} << 14) / (Tile<Scalar>::columns * static_cast<Index>(sizeof(Scalar)));
}

/// packed[t][c] = factor_t · rows_t[c] for `count` rows from `first` on; zero in the columns from `columns`
/// to NR.
template <class Scalar>
void pack_columns(const GatheredRows<Scalar>& rows, Index first, Index count, Index columns, Scalar* packed) {
  constexpr Index width = Tile<Scalar>::columns;
  for (Index t = 0; t < count; ++t, packed += width) {
    const Scalar* const from = rows.row(first + t);
    if (rows.factors == nullptr) {
      std::copy_n(from, columns, packed);
    } else {
      for (Index c = 0; c < columns; ++c) packed[c] = rows.factors[first + t] * from[c];
    }
    std::fill(packed + columns, packed + width, Scalar(0));
  }
}

/// out[i] (+)= Σ_t x_t[in + i] · dy_t for Count inputs; dy: tokens × NR, packed. Adds if `add`.
template <int Count, class Scalar>
void outer_product_tile(const GatheredRows<Scalar>& x, Index first, Index in, const Scalar* dy, Index tokens,
                        bool add, Scalar* out) {
  constexpr int packets = Tile<Scalar>::packets;
  constexpr int size = PacketOf<Scalar>::size;
  Packet<Scalar> sums[Count][packets];
  unroll<Count>([&](auto i) MEO_INLINE_LAMBDA {
    unroll<packets>([&](auto p) MEO_INLINE_LAMBDA {
      sums[i][p] = add ? load<Scalar>(out + (i * packets + p) * size) : broadcast<Scalar>(Scalar(0));
    });
  });
  const auto add_token = [&](const Scalar* inputs) MEO_INLINE_LAMBDA {
    Packet<Scalar> gradients[packets];
    unroll<packets>([&](auto p) MEO_INLINE_LAMBDA {
      gradients[p] = load<Scalar>(dy + p * size);
      keep_in_register<Scalar>(gradients[p]);
    });
    unroll<Count>([&](auto i) MEO_INLINE_LAMBDA {
      const Packet<Scalar> input = broadcast<Scalar>(inputs[i]);
      unroll<packets>([&](auto p)
                          MEO_INLINE_LAMBDA { sums[i][p] = multiply_add(input, gradients[p], sums[i][p]); });
    });
    dy += Tile<Scalar>::columns;
  };
  if (x.gather == nullptr) {
    const Scalar* inputs = x.data + first * x.stride + in;
    MEO_UNROLL(4)
    for (Index t = 0; t < tokens; ++t, inputs += x.stride) add_token(inputs);
  } else {
    for (Index t = 0; t < tokens; ++t) add_token(x.row(first + t) + in);
  }
  unroll<Count>([&](auto i) MEO_INLINE_LAMBDA {
    unroll<packets>([&](auto p)
                        MEO_INLINE_LAMBDA { store<Scalar>(out + (i * packets + p) * size, sums[i][p]); });
  });
}

/// The last inputs of a panel, fewer than a whole tile.
template <int Count, class Scalar>
void outer_product_last(const GatheredRows<Scalar>& x, Index first, Index in, Index inputs, const Scalar* dy,
                        Index tokens, bool add, Scalar* out) {
  if constexpr (Count > 0) {
    if (inputs == Count) outer_product_tile<Count>(x, first, in, dy, tokens, add, out);
    else outer_product_last<Count - 1>(x, first, in, inputs, dy, tokens, add, out);
  }
}

/// out[d] (+)= Σ_t x_t[in + d] · dy_t for `inputs` inputs from `in` on and the tokens first … first + tokens
/// − 1 of x. dy: tokens × NR, packed; out: inputs × NR.
template <class Scalar>
void outer_product(const GatheredRows<Scalar>& x, Index first, Index in, Index inputs, const Scalar* dy,
                   Index tokens, bool add, Scalar* out) {
  constexpr int rows = Tile<Scalar>::rows;
  constexpr Index columns = Tile<Scalar>::columns;
  Index d = 0;
  for (; d + rows <= inputs; d += rows) {
    outer_product_tile<rows>(x, first, in + d, dy, tokens, add, out + d * columns);
  }
  outer_product_last<rows - 1>(x, first, in + d, inputs - d, dy, tokens, add, out + d * columns);
}

/// The same for the panel's row of biases: out (+)= Σ_t dy_t.
template <class Scalar>
void column_sums(const Scalar* dy, Index tokens, bool add, Scalar* out) {
  constexpr Index columns = Tile<Scalar>::columns;
  if (!add) std::fill_n(out, columns, Scalar(0));
  for (Index t = 0; t < tokens; ++t) {
    for (Index c = 0; c < columns; ++c) out[c] += dy[t * columns + c];
  }
}

}  // namespace meo::detail

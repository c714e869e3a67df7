#pragma once

/// What the layers are compared with: dense products, experts merged in memory, and reading them.

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <meo/kernels/parts/packet.hpp>
#include <meo/kernels/parts/unroll.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/layers/token_attention.hpp>
#include <meo/parallel.hpp>
#include <meo/routing/routing.hpp>
#include <meo/types.hpp>

#if defined(MEO_BENCH_OPENBLAS)
#include <cblas.h>
#endif
#if defined(MEO_BENCH_ONEDNN)
#include <oneapi/dnnl/dnnl.h>
#endif

namespace bench {

using meo::ConstMatrixRef;
using meo::Index;
using meo::Matrix;
using meo::MatrixRef;

// ---------------------------------------------------------------------------------------------------------------
// Dense products, y = x Wᵀ with W in PyTorch's form, out × in

template <class Scalar>
struct DenseProduct {
  std::string name;
  void (*run)(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& weight, MatrixRef<Scalar> y);
  /// dx = dy W and dW = dyᵀ x
  void (*gradients)(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& weight,
                    const ConstMatrixRef<Scalar>& dy, MatrixRef<Scalar> dx, MatrixRef<Scalar> d_weight);
};

template <class Scalar>
void eigen_product(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& weight,
                   MatrixRef<Scalar> y) {
  y.noalias() = x * weight.transpose();
}

template <class Scalar>
void eigen_gradients(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& weight,
                     const ConstMatrixRef<Scalar>& dy, MatrixRef<Scalar> dx, MatrixRef<Scalar> d_weight) {
  dx.noalias() = dy * weight;
  d_weight.noalias() = dy.transpose() * x;
}

#if defined(MEO_BENCH_OPENBLAS)
/// c = op(a) · op(b), op transposing or not.
template <class Scalar>
void openblas_gemm(CBLAS_TRANSPOSE transpose_a, CBLAS_TRANSPOSE transpose_b, const ConstMatrixRef<Scalar>& a,
                   const ConstMatrixRef<Scalar>& b, MatrixRef<Scalar> c) {
  const auto depth = static_cast<blasint>(transpose_a == CblasTrans ? a.rows() : a.cols());
  const auto gemm = [] {
    if constexpr (std::is_same_v<Scalar, float>) return cblas_sgemm;
    else return cblas_dgemm;
  }();
  gemm(CblasRowMajor, transpose_a, transpose_b, static_cast<blasint>(c.rows()),
       static_cast<blasint>(c.cols()), depth, 1, a.data(), static_cast<blasint>(a.outerStride()), b.data(),
       static_cast<blasint>(b.outerStride()), 0, c.data(), static_cast<blasint>(c.outerStride()));
}

template <class Scalar>
void openblas_product(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& weight,
                      MatrixRef<Scalar> y) {
  openblas_gemm<Scalar>(CblasNoTrans, CblasTrans, x, weight, y);
}

template <class Scalar>
void openblas_gradients(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& weight,
                        const ConstMatrixRef<Scalar>& dy, MatrixRef<Scalar> dx, MatrixRef<Scalar> d_weight) {
  openblas_gemm<Scalar>(CblasNoTrans, CblasNoTrans, dy, weight, dx);
  openblas_gemm<Scalar>(CblasTrans, CblasNoTrans, dy, x, d_weight);
}
#endif

#if defined(MEO_BENCH_ONEDNN)
inline void onednn_product(const ConstMatrixRef<float>& x, const ConstMatrixRef<float>& weight,
                           MatrixRef<float> y) {
  dnnl_sgemm('N', 'T', x.rows(), weight.rows(), x.cols(), 1, x.data(), x.outerStride(), weight.data(),
             weight.outerStride(), 0, y.data(), y.outerStride());
}

inline void onednn_gradients(const ConstMatrixRef<float>& x, const ConstMatrixRef<float>& weight,
                             const ConstMatrixRef<float>& dy, MatrixRef<float> dx,
                             MatrixRef<float> d_weight) {
  dnnl_sgemm('N', 'N', dy.rows(), weight.cols(), weight.rows(), 1, dy.data(), dy.outerStride(), weight.data(),
             weight.outerStride(), 0, dx.data(), dx.outerStride());
  dnnl_sgemm('T', 'N', dy.cols(), x.cols(), dy.rows(), 1, dy.data(), dy.outerStride(), x.data(),
             x.outerStride(), 0, d_weight.data(), d_weight.outerStride());
}
#endif

/// The products that there are for a scalar; oneDNN has none for double.
template <class Scalar>
std::vector<DenseProduct<Scalar>> dense_products() {
  std::vector<DenseProduct<Scalar>> products{{"eigen", eigen_product<Scalar>, eigen_gradients<Scalar>}};
#if defined(MEO_BENCH_OPENBLAS)
  products.push_back({"openblas", openblas_product<Scalar>, openblas_gradients<Scalar>});
#endif
#if defined(MEO_BENCH_ONEDNN)
  if constexpr (std::is_same_v<Scalar, float>)
    products.push_back({"onednn", onednn_product, onednn_gradients});
#endif
  return products;
}

/// The dense products of this build, with their versions.
inline std::string describe_dense_products() {
  std::string text = "Eigen " + std::to_string(EIGEN_WORLD_VERSION) + '.' +
                     std::to_string(EIGEN_MAJOR_VERSION) + '.' + std::to_string(EIGEN_MINOR_VERSION);
#if defined(MEO_BENCH_OPENBLAS)
  text += std::string(", ") + openblas_get_config();
#endif
#if defined(MEO_BENCH_ONEDNN)
  const dnnl_version_t& version = *dnnl_version();
  text += ", oneDNN " + std::to_string(version.major) + '.' + std::to_string(version.minor) + '.' +
          std::to_string(version.patch);
#endif
  return text;
}

/// Threads of this library, Eigen, OpenBLAS and oneDNN (whose threads are OpenMP's) alike.
inline void set_threads(int threads) {
#if defined(_OPENMP)
  omp_set_num_threads(threads);
#endif
  Eigen::setNbThreads(threads);
#if defined(MEO_BENCH_OPENBLAS)
  openblas_set_num_threads(threads);
#endif
}

// ---------------------------------------------------------------------------------------------------------------
// The MEO layer in plain Eigen

/// Merges as the authors' code does: Ŵ = Σ g_i W_i of a sequence is written to memory, then multiplied with.
/// The gate's decisions are given, so this does a little less than a layer.
template <class Scalar>
class NaiveMeoLayer {
 public:
  /// experts: N times F × D, without biases, and kept by reference; routing: its rows share the tokens
  /// evenly. Of `layer` only the token attention is taken, if it has one.
  NaiveMeoLayer(const std::vector<Matrix<Scalar>>& experts, meo::Routing<Scalar> routing,
                const meo::MeoLayer<Scalar>& layer)
      : experts_(&experts), routing_(std::move(routing)) {
    if (layer.options().routing.level == meo::Level::token) attention_.emplace(layer.token_attention());
  }

  const meo::Routing<Scalar>& routing() const { return routing_; }

  /// What the experts saw in the last run.
  const Matrix<Scalar>& seen(const Matrix<Scalar>& x) const { return attention_ ? attention_->attended : x; }

  void run(const Matrix<Scalar>& x, Matrix<Scalar>& y) {
    if (attention_) attention_->run(x);
    const Index length = x.rows() / routing_.rows;
    for (Index b = 0; b < routing_.rows; ++b) {
      const std::span<const Index> selected = routing_.row_experts(b);
      const std::span<const Scalar> weights = routing_.row_weights(b);
      merged_.noalias() = weights[0] * expert(selected[0]);
      for (std::size_t i = 1; i < selected.size(); ++i) merged_.noalias() += weights[i] * expert(selected[i]);
      eigen_product<Scalar>(seen(x).middleRows(b * length, length), merged_,
                            y.middleRows(b * length, length));
    }
  }

 private:
  /// x + U relu(V x + v) + u.
  struct Attention {
    explicit Attention(const meo::TokenAttention<Scalar>& attention)
        : down(attention.down().weight()),
          up(attention.up().weight()),
          down_bias(attention.down().bias()),
          up_bias(attention.up().bias()) {}

    void run(const Matrix<Scalar>& x) {
      rows.resize(x.rows(), down.rows());
      attended.resize(x.rows(), x.cols());
      eigen_product<Scalar>(x, down, rows);
      rows = (rows.rowwise() + down_bias.transpose()).cwiseMax(Scalar(0));
      eigen_product<Scalar>(rows, up, attended);
      attended += x.rowwise() + up_bias.transpose();
    }

    Matrix<Scalar> down, up;
    meo::Vector<Scalar> down_bias, up_bias;
    Matrix<Scalar> rows, attended;
  };

  const Matrix<Scalar>& expert(Index e) const { return (*experts_)[static_cast<std::size_t>(e)]; }

  const std::vector<Matrix<Scalar>>* experts_;
  meo::Routing<Scalar> routing_;
  std::optional<Attention> attention_;
  Matrix<Scalar> merged_;
};

/// The activation as the library's blocks apply it.
template <class Scalar, class Activation>
void activate(Matrix<Scalar>& hidden, const Activation& activation) {
  meo::detail::parallel_ranges(hidden.size(), meo::detail::max_threads(), [&](Index begin, Index end, Index) {
    for (Index i = begin; i < end; ++i) hidden.data()[i] = activation(hidden.data()[i]);
  });
}

// ---------------------------------------------------------------------------------------------------------------
// The bytes

/// The sum of all elements of a bank, where the layers read them and in pages of the same size, but for fewer
/// than fill a step at the end. Eight streams at a time: on a Zen 3 core they arrive at 24 GB/s from memory,
/// a single one at 17.
template <class Scalar>
Scalar read(std::span<const Scalar> values) {
  using meo::detail::Packet, meo::detail::PacketOf;
  constexpr int streams = 8, packets = 2;
  constexpr Index step = packets * PacketOf<Scalar>::size;
  const Index length = static_cast<Index>(values.size()) / (streams * step) * step;
  const Packet<Scalar> one = meo::detail::broadcast(Scalar(1));
  Packet<Scalar> sums[streams];
  MEO_UNROLL_ALL
  for (int s = 0; s < streams; ++s) sums[s] = meo::detail::broadcast(Scalar(0));
  for (Index i = 0; i < length; i += step) {
    MEO_UNROLL_ALL
    for (int s = 0; s < streams; ++s) {
      const Scalar* const from = values.data() + s * length + i;
      MEO_UNROLL_ALL
      for (int p = 0; p < packets; ++p) {
        sums[s] = meo::detail::multiply_add(one, meo::detail::load<Scalar>(from + p * PacketOf<Scalar>::size),
                                            sums[s]);
      }
    }
  }
  Scalar total(0);
  MEO_UNROLL_ALL
  for (int s = 0; s < streams; ++s) total += meo::detail::sum<Scalar>(sums[s]);
  return total;
}

/// Writes one value to all elements.
template <class Scalar>
void write(Scalar value, std::span<Scalar> values) {
  const meo::detail::Packet<Scalar> packet = meo::detail::broadcast(value);
  constexpr Index size = meo::detail::PacketOf<Scalar>::size;
  const Index length = static_cast<Index>(values.size()) / size * size;
  for (Index i = 0; i < length; i += size) meo::detail::store<Scalar>(values.data() + i, packet);
  std::fill(values.begin() + length, values.end(), value);
}

// ---------------------------------------------------------------------------------------------------------------
// The operations

/// As many chains as the tile of a product has.
template <class Scalar>
inline constexpr int peak_chains = meo::detail::Tile<Scalar>::rows* meo::detail::Tile<Scalar>::packets;

inline constexpr Index peak_steps = 100'000;

template <class Scalar>
constexpr double multiply_adds_flops() {
  return 2.0 * peak_chains<Scalar> * peak_steps * meo::detail::PacketOf<Scalar>::size;
}

/// What multiply_adds returns: every scalar of every chain comes to 2.
template <class Scalar>
constexpr Scalar multiply_adds_sum() {
  return Scalar(2 * peak_chains<Scalar> * meo::detail::PacketOf<Scalar>::size);
}

/// Independent chains of multiply-adds of registers, by one thread. Returns the sum of all scalars.
template <class Scalar>
Scalar multiply_adds() {
  using meo::detail::Packet;
  Packet<Scalar> sums[peak_chains<Scalar>];
  MEO_UNROLL_ALL
  for (int c = 0; c < peak_chains<Scalar>; ++c) sums[c] = meo::detail::broadcast(static_cast<Scalar>(c));
  Packet<Scalar> factor = meo::detail::broadcast(Scalar(0.5)), addend = meo::detail::broadcast(Scalar(1));
  for (Index step = 0; step < peak_steps; ++step) {
    factor = meo::detail::in_register<Scalar>(factor);
    MEO_UNROLL_ALL
    for (int c = 0; c < peak_chains<Scalar>; ++c)
      sums[c] = meo::detail::multiply_add(factor, sums[c], addend);
  }
  Scalar total(0);
  MEO_UNROLL_ALL
  for (int c = 0; c < peak_chains<Scalar>; ++c) total += meo::detail::sum<Scalar>(sums[c]);
  return total;
}

}  // namespace bench

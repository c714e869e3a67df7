#pragma once

/// A small classifier of byte windows: bytes and positions are embedded, go through residual blocks
/// x + feed_forward(norm(x)), are normed, averaged over the window and classified.
///
/// Letters: B windows, T bytes of a window, d width, C classes.

#include <cmath>
#include <random>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

#include "data.hpp"

namespace train_text {

using meo::Matrix;
using meo::Vector;

/// Chosen when the program runs: a model for each would be compiled as often.
using FeedForward = std::variant<meo::FeedForward<meo::MeoLayer<float>, meo::Relu>,
                                 meo::FeedForward<meo::MoeLayer<float>, meo::Relu>>;

struct ModelOptions {
  meo::FeedForwardOptions feed_forward;
  bool is_moe = false;  ///< whether its layers are MoE instead of MEO
  Index blocks = 2;
  Index window = 64;
  Index classes = 2;
};

/// Layer norm over features, y = (x − mean) / √(variance + ε) · scale + shift.
struct Norm {
  static constexpr float epsilon = 1e-5f;
  Vector<float> scale, shift;

  /// What backward needs.
  struct Context {
    Matrix<float> normed;  // before scale and shift
    Vector<float> inverse_deviation;
  };

  explicit Norm(Index width) : scale(Vector<float>::Zero(width)), shift(Vector<float>::Zero(width)) {}

  Matrix<float> forward(const Matrix<float>& x, Context& context) const {
    context.normed = x.colwise() - x.rowwise().mean();
    context.inverse_deviation =
        (context.normed.rowwise().squaredNorm().array() / static_cast<float>(x.cols()) + epsilon).rsqrt();
    context.normed.array().colwise() *= context.inverse_deviation.array();
    return (context.normed * scale.asDiagonal()).rowwise() + shift.transpose();
  }

  /// Returns dx; adds to gradients.
  Matrix<float> backward(const Context& context, const Matrix<float>& dy, Norm& gradients) const {
    gradients.scale += (dy.array() * context.normed.array()).colwise().sum().matrix().transpose();
    gradients.shift += dy.colwise().sum().transpose();
    Matrix<float> dx = dy * scale.asDiagonal();
    const Vector<float> mean = dx.rowwise().mean();
    const Vector<float> along = (dx.array() * context.normed.array()).rowwise().mean();
    dx.colwise() -= mean;
    dx -= along.asDiagonal() * context.normed;
    return context.inverse_deviation.asDiagonal() * dx;
  }
};

/// Parameters, or what has their shape, as gradients: zero at first.
struct Model {
  struct Block {
    Norm norm;
    FeedForward feed_forward;
  };

  /// What backward needs of a forward pass.
  struct Context {
    std::vector<Norm::Context> norms;
    std::vector<meo::FeedForwardContext<float>> feed_forwards;
    std::vector<Matrix<float>> normed;  // input of each feed-forward block
    Norm::Context final_norm;
    Matrix<float> pooled;
  };

  ModelOptions options;
  Matrix<float> embedding, positions;  // 256 × d, T × d
  std::vector<Block> blocks;
  Norm final_norm;
  Matrix<float> classifier;  // C × d
  Vector<float> classifier_bias;

  explicit Model(const ModelOptions& of)
      : options(of),
        embedding(Matrix<float>::Zero(256, width())),
        positions(Matrix<float>::Zero(of.window, width())),
        final_norm(width()),
        classifier(Matrix<float>::Zero(of.classes, width())),
        classifier_bias(Vector<float>::Zero(of.classes)) {
    for (Index i = 0; i < of.blocks; ++i) {
      if (of.is_moe)
        blocks.push_back({Norm(width()), std::variant_alternative_t<1, FeedForward>(of.feed_forward)});
      else blocks.push_back({Norm(width()), std::variant_alternative_t<0, FeedForward>(of.feed_forward)});
    }
  }

  Index width() const { return options.feed_forward.features; }

  void initialize(std::mt19937_64& rng) {
    const auto fill = [&](auto& matrix, double deviation) {
      std::normal_distribution<double> normal(0, deviation);
      for (Index i = 0; i < matrix.size(); ++i) matrix.data()[i] = static_cast<float>(normal(rng));
    };
    fill(embedding, 1);
    fill(positions, 0.1);
    fill(classifier, 1 / std::sqrt(static_cast<double>(width())));
    for (Block& block : blocks) {
      block.norm.scale.setOnes();
      std::visit([&](auto& feed_forward) { feed_forward.initialize(rng); }, block.feed_forward);
    }
    final_norm.scale.setOnes();
  }

  /// Named flat ranges, as the library's optimisers take them.
  meo::Parameters<float> parameters() {
    meo::Parameters<float> all;
    visit(
        *this,
        [&](const std::string& name, auto& matrix) {
          all.push_back({name, {matrix.data(), static_cast<std::size_t>(matrix.size())}});
        },
        [&](const std::string& prefix, auto& block) {
          for (const auto& range : meo::parameters(block, prefix)) all.push_back(range);
        });
    return all;
  }

  /// In PyTorch's form, the same for every instruction set; names begin with `prefix`.
  void save(meo::io::SafetensorsWriter& writer, const std::string& prefix) const {
    visit(
        *this, [&](const std::string& name, const auto& matrix) { writer.add(prefix + name, matrix); },
        [&](const std::string& part, const auto& block) { meo::io::save(block, writer, prefix + part); });
  }

  /// Throws meo::io::Error for parameters of another model, and may then have loaded some.
  void load(const meo::io::SafetensorsReader& reader, const std::string& prefix) {
    visit(
        *this,
        [&](const std::string& name, auto& matrix) {
          if constexpr (std::decay_t<decltype(matrix)>::IsVectorAtCompileTime)
            matrix = reader.read_vector<float>(prefix + name, matrix.size());
          else matrix = reader.read_matrix<float>(prefix + name, matrix.rows(), matrix.cols());
        },
        [&](const std::string& part, auto& block) { meo::io::load(block, reader, prefix + part); });
  }

  /// Calls visit(name, routing) for every gate of the last forward with the context: "0.up", "0.down",
  /// "1.up", …
  template <class Visit>
  void visit_gates(const Context& context, Visit&& visit) const {
    for (std::size_t i = 0; i < context.feed_forwards.size(); ++i) {
      const auto visit_gate = [&](const std::string& projection, const meo::Routing<float>& routing) {
        visit(std::to_string(i) + "." + projection, routing);
      };
      std::visit([&](const auto& block) { block.visit_routings(context.feed_forwards[i], visit_gate); },
                 blocks[i].feed_forward);
    }
  }

  /// Logits, B × C. balance_loss: the sum of the gates' losses.
  Matrix<float> forward(const Batch& batch, const meo::Inputs<float>& inputs, Context& context,
                        float& balance_loss) const {
    context.norms.resize(blocks.size());
    context.feed_forwards.resize(blocks.size());
    context.normed.resize(blocks.size());
    const Index tokens = batch.size() * batch.window;
    Matrix<float> x(tokens, width()), y(tokens, width());
    for (Index t = 0; t < tokens; ++t) {
      x.row(t) = embedding.row(batch.bytes[static_cast<std::size_t>(t)]) + positions.row(t % batch.window);
    }
    balance_loss = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      context.normed[i] = blocks[i].norm.forward(x, context.norms[i]);
      balance_loss += std::visit(
          [&](const auto& block) {
            return block.forward(context.normed[i], inputs, y, context.feed_forwards[i]);
          },
          blocks[i].feed_forward);
      x += y;
    }
    x = final_norm.forward(x, context.final_norm);
    context.pooled.resize(batch.size(), width());
    for (Index b = 0; b < batch.size(); ++b)
      context.pooled.row(b) = x.middleRows(b * batch.window, batch.window).colwise().mean();
    return context.pooled.lazyProduct(classifier.transpose()).rowwise() + classifier_bias.transpose();
  }

  /// d_logits: B × C. The balance loss counts in full. Adds to gradients.
  void backward(const Batch& batch, const meo::Inputs<float>& inputs, Context& context,
                const Matrix<float>& d_logits, Model& gradients) const {
    gradients.classifier += d_logits.transpose().lazyProduct(context.pooled);
    gradients.classifier_bias += d_logits.colwise().sum().transpose();
    const Matrix<float> d_pooled = d_logits.lazyProduct(classifier) / static_cast<float>(batch.window);
    Matrix<float> dx(batch.size() * batch.window, width()), through_block(dx.rows(), dx.cols());
    for (Index t = 0; t < dx.rows(); ++t) dx.row(t) = d_pooled.row(t / batch.window);
    dx = final_norm.backward(context.final_norm, dx, gradients.final_norm);
    for (std::size_t i = blocks.size(); i-- > 0;) {
      Block& block_gradients = gradients.blocks[i];
      std::visit(
          [&]<class Block>(const Block& block) {
            block.backward(context.normed[i], inputs, context.feed_forwards[i], dx,
                           std::get<Block>(block_gradients.feed_forward), through_block);
          },
          blocks[i].feed_forward);
      dx += blocks[i].norm.backward(context.norms[i], through_block, block_gradients.norm);
    }
    for (Index t = 0; t < dx.rows(); ++t) {
      gradients.embedding.row(batch.bytes[static_cast<std::size_t>(t)]) += dx.row(t);
      gradients.positions.row(t % batch.window) += dx.row(t);
    }
  }

 private:
  /// Calls matrix(name, matrix or vector) and block(prefix, feed-forward block) of all parameters.
  template <class Self, class OfMatrix, class OfBlock>
  static void visit(Self& self, OfMatrix&& matrix, OfBlock&& block) {
    const auto norm = [&](const std::string& name, auto& of) {
      matrix(name + ".scale", of.scale);
      matrix(name + ".shift", of.shift);
    };
    matrix("embedding", self.embedding);
    matrix("positions", self.positions);
    for (std::size_t i = 0; i < self.blocks.size(); ++i) {
      const std::string prefix = "blocks." + std::to_string(i) + ".";
      norm(prefix + "norm", self.blocks[i].norm);
      std::visit([&](auto& of) { block(prefix + "feed_forward.", of); }, self.blocks[i].feed_forward);
    }
    norm("final_norm", self.final_norm);
    matrix("classifier", self.classifier);
    matrix("classifier_bias", self.classifier_bias);
  }
};

/// Mean cross-entropy of the logits; its gradient replaces them.
inline float cross_entropy(Matrix<float>& logits, const std::vector<Index>& labels) {
  double loss = 0;
  for (Index b = 0; b < logits.rows(); ++b) {
    const Index label = labels[static_cast<std::size_t>(b)];
    logits.row(b).array() -= logits.row(b).maxCoeff();
    loss -= static_cast<double>(logits(b, label));
    logits.row(b) = logits.row(b).array().exp();
    const float sum = logits.row(b).sum();
    loss += std::log(static_cast<double>(sum));
    logits.row(b) /= sum;
    logits(b, label) -= 1;
  }
  logits /= static_cast<float>(logits.rows());
  return static_cast<float>(loss / static_cast<double>(logits.rows()));
}

}  // namespace train_text

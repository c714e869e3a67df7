#pragma once

/// A gated block of many small experts with one router, as today's models have them, and the least that it
/// has to do: dense products of the rows that each expert is given, or reading the experts.
///
/// Letters: T tokens, D features, H hidden features, N experts, K of them for a token.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <meo/experts/activation.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/routing/routing_options.hpp>

#include "baselines.hpp"

namespace bench {

template <class Scalar>
class RoutedBlock {
 public:
  using Block = meo::FeedForward<meo::MoeLayer<Scalar>, meo::Silu>;

  /// Of random experts and gates, run once over x: T × D, which outlives it, as y does.
  RoutedBlock(const Matrix<Scalar>& x, Matrix<Scalar>& y, Index hidden_features, Index num_experts,
              Index top_k, const meo::RoutingOptions& router)
      : x_(x), y_(y), block_(options(x, hidden_features, num_experts, top_k, router)) {
    std::mt19937_64 rng(1);
    block_.up().gate().initialize(rng, 3);
    // Hundreds of millions of draws want a fast generator.
    std::uint32_t bits = 1;
    for (auto* layer : {&block_.up(), &block_.gate_up(), &block_.down()}) {
      const auto scale = static_cast<Scalar>(1 / std::sqrt(static_cast<double>(layer->in_features())));
      for (Scalar& value : layer->experts().values()) {
        bits = bits * 1664525u + 1013904223u;
        value = (static_cast<Scalar>(bits >> 8) * static_cast<Scalar>(0x1p-23) - 1) * scale;
      }
    }
    run();
    rows_.resize(static_cast<std::size_t>(num_experts));
    for (const Index e : routing().experts) ++rows_[static_cast<std::size_t>(e)];
    const Index most = *std::max_element(rows_.begin(), rows_.end());
    gathered_ = Matrix<Scalar>::Constant(most, x.cols(), Scalar(1));
    hidden_.resize(most, hidden_features);
    gate_hidden_.resize(most, hidden_features);
  }
  RoutedBlock(const RoutedBlock&) = delete;
  RoutedBlock& operator=(const RoutedBlock&) = delete;

  void run() { block_.forward(x_, {}, y_, workspace_); }

  /// Holds y against what plain Eigen makes of the routing, expert by expert. Ends the program with exit code
  /// 1 where they differ.
  void verify(const std::string& name) const {
    const meo::Routing<Scalar>& routing = this->routing();
    Matrix<Scalar> expected = Matrix<Scalar>::Zero(y_.rows(), y_.cols());
    for (Index e = 0; e < routing.num_experts; ++e) {
      if (rows_[static_cast<std::size_t>(e)] == 0) continue;
      std::vector<Index> rows;
      std::vector<Scalar> weights;
      for (Index row = 0; row < routing.rows; ++row) {
        const auto experts = routing.row_experts(row);
        const auto place =
            static_cast<std::size_t>(std::find(experts.begin(), experts.end(), e) - experts.begin());
        if (place == experts.size()) continue;
        rows.push_back(row);
        weights.push_back(routing.row_weights(row)[place]);
      }
      const Matrix<Scalar> of = x_(rows, Eigen::all);
      Matrix<Scalar> hidden = of * block_.up().weight(e).transpose();
      hidden =
          hidden.array() * hidden.array().logistic() * (of * block_.gate_up().weight(e).transpose()).array();
      const Matrix<Scalar> out = hidden * block_.down().weight(e).transpose();
      for (std::size_t i = 0; i < rows.size(); ++i)
        expected.row(rows[i]) += weights[i] * out.row(static_cast<Index>(i));
    }
    const Scalar error = (y_ - expected).cwiseAbs().maxCoeff(), largest = expected.cwiseAbs().maxCoeff();
    if (error <= static_cast<Scalar>(1e-4) * largest) return;
    std::cerr << "meo_bench: " << name << " is wrong: off by " << error << " of " << largest << '\n';
    std::exit(1);
  }

  /// For each expert the three products of as many rows as it was given. Its weights are the bytes of the
  /// block's own, read as plain matrices: the values are others, which takes no other time.
  void run_gathered(const DenseProduct<Scalar>& product) {
    const Index features = x_.cols(), hidden_features = hidden_.cols();
    for (std::size_t e = 0; e < rows_.size(); ++e) {
      const Index rows = rows_[e];
      if (rows == 0) continue;
      const auto weight = [&](const auto& layer, Index out, Index in) {
        return Eigen::Map<const Matrix<Scalar>>(bytes_of(layer, e).data(), out, in);
      };
      const auto x = gathered_.topRows(rows);
      product.run(x, weight(block_.up(), hidden_features, features), hidden_.topRows(rows));
      product.run(x, weight(block_.gate_up(), hidden_features, features), gate_hidden_.topRows(rows));
      product.run(hidden_.topRows(rows), weight(block_.down(), features, hidden_features), y_.topRows(rows));
    }
  }

  /// Reads the experts that have rows, where the block reads them: of each a stretch in every panel. Returns
  /// the sum of their weights.
  Scalar run_read() const {
    Scalar sum = 0;
    for (const auto* layer : {&block_.up(), &block_.gate_up(), &block_.down()}) {
      const auto panels = layer->experts().panels();
      for (std::size_t e = 0; e < rows_.size(); ++e) {
        for (Index p = 0; rows_[e] > 0 && p < panels.num_panels(); ++p)
          sum += read<Scalar>(
              {panels.panel(p, static_cast<Index>(e)), static_cast<std::size_t>(panels.panel_size())});
      }
    }
    return sum;
  }

  /// Of the products, and of the experts that have rows.
  double flops() const {
    return 6.0 * static_cast<double>(routing().experts.size()) *
           static_cast<double>(x_.cols() * hidden_.cols());
  }
  double expert_bytes() const {
    const auto experts =
        static_cast<double>(std::count_if(rows_.begin(), rows_.end(), [](Index r) { return r > 0; }));
    return 3.0 * experts * static_cast<double>(x_.cols() * hidden_.cols()) * sizeof(Scalar);
  }

 private:
  static meo::FeedForwardOptions options(const Matrix<Scalar>& x, Index hidden_features, Index num_experts,
                                         Index top_k, meo::RoutingOptions routing) {
    routing.level = meo::Level::token;
    return {.features = x.cols(),
            .hidden_features = hidden_features,
            .num_experts = num_experts,
            .top_k = top_k,
            .bias = false,
            .gated = true,
            .shared_gate = true,
            .routing = std::move(routing)};
  }

  const meo::Routing<Scalar>& routing() const { return workspace_.up.routing; }

  static std::span<const Scalar> bytes_of(const meo::MoeLayer<Scalar>& layer, std::size_t expert) {
    const std::span<const Scalar> all = layer.experts().values();
    const std::size_t size = all.size() / static_cast<std::size_t>(layer.num_experts());
    return all.subspan(expert * size, size);
  }

  const Matrix<Scalar>& x_;
  Matrix<Scalar>& y_;
  Block block_;
  meo::FeedForwardWorkspace<Scalar> workspace_;
  std::vector<Index> rows_;  ///< of each expert
  Matrix<Scalar> gathered_, hidden_, gate_hidden_;
};

}  // namespace bench

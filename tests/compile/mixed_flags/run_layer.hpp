#pragma once

/// A layer made and run, against its outputs element by element in double, in the translation unit that
/// includes this.

#include <cmath>
#include <random>

#include <meo/meo.hpp>

// Every unit has a copy of its own, so that what they share is the libraries' alone.
namespace {

/// Whether a layer's outputs are right.
bool layer_is_right() {
  const meo::Index tokens = 13, in_features = 37, out_features = 53;
  std::mt19937_64 rng(1);
  meo::MeoLayer<float> layer({.in_features = in_features,
                              .out_features = out_features,
                              .num_experts = 4,
                              .top_k = 3,
                              .merge_order = meo::MergeOrder::merge_first});
  layer.initialize(rng);
  const meo::Matrix<float> x = meo::Matrix<float>::Random(tokens, in_features);
  const auto [y, routing] = layer.forward(x);
  for (meo::Index t = 0; t < tokens; ++t) {
    for (meo::Index f = 0; f < out_features; ++f) {
      double expected = 0, magnitude = 0;
      for (std::size_t i = 0; i < routing.experts.size(); ++i) {
        const meo::Index expert = routing.experts[i];
        const double weight = routing.weights[i];
        double output = static_cast<double>(layer.bias(expert)(f));
        double size = std::abs(output);
        const meo::Matrix<float> w = layer.weight(expert);
        for (meo::Index d = 0; d < in_features; ++d) {
          const double product = static_cast<double>(x(t, d)) * static_cast<double>(w(f, d));
          output += product;
          size += std::abs(product);
        }
        expected += weight * output;
        magnitude += weight * size;
      }
      // A chain of in_features + 1 products of merged weights, each of three products itself.
      const double bound = (in_features + 8) * 6e-8 * magnitude;
      if (!(std::abs(static_cast<double>(y(t, f)) - expected) <= bound)) return false;
    }
  }
  return true;
}

}  // namespace

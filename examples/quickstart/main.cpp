/// The smallest program: one learns how a layer is made and started, and what a forward gives back.

#include <iostream>
#include <random>

#include <meo/meo.hpp>

int main() {
  // Eight experts of 768 -> 3072 features, of which every sequence selects and merges two.
  std::mt19937_64 rng(42);
  meo::MeoLayer<float, 8> layer({.in_features = 768, .out_features = 3072, .top_k = 2});
  layer.initialize(rng);

  const meo::Matrix<float> x = meo::Matrix<float>::Random(128, 768);  // one sequence of 128 tokens
  const auto [y, routing] = layer.forward(x);

  std::cout << "y: " << y.rows() << " x " << y.cols() << '\n';
  for (std::size_t i = 0; i < routing.experts.size(); ++i) {
    std::cout << "expert " << routing.experts[i] << " with weight " << routing.weights[i] << '\n';
  }
}

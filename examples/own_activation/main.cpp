/// An activation of one's own: one learns what a block asks of it, a call for forward and a derivative for
/// backward, both for any scalar, and how to see that they belong together.

#include <cmath>
#include <iostream>
#include <random>

#include <meo/meo.hpp>

/// relu(x)², as in Primer (So et al. 2021, arXiv 2109.08668).
struct SquaredRelu {
  template <class Scalar>
  Scalar operator()(const Scalar& x) const {
    return x > Scalar(0) ? x * x : Scalar(0);
  }
  template <class Scalar>
  Scalar derivative(const Scalar& x) const {
    return x > Scalar(0) ? 2 * x : Scalar(0);
  }
};

int main() {
  using Block = meo::FeedForward<meo::MeoLayer<double>, SquaredRelu>;
  Block block({.features = 8, .hidden_features = 32, .num_experts = 4, .top_k = 2, .shared_gate = true});
  Block gradients(block.options());
  std::mt19937_64 rng(42);
  block.initialize(rng);

  const meo::Matrix<double> x = meo::Matrix<double>::Random(5, 8), dy = meo::Matrix<double>::Random(5, 8);
  meo::Matrix<double> y(5, 8), dx(5, 8);
  meo::FeedForwardContext<double> context;
  block.forward(x, {}, y, context);
  block.backward(x, {}, context, dy, gradients, dx, 0.0);

  // A step along dx changes the sum of y's products with dy by dx's squares.
  const double step = 1e-6;
  const double above = block.forward(x + step * dx).y.cwiseProduct(dy).sum();
  const double below = block.forward(x - step * dx).y.cwiseProduct(dy).sum();
  const double slope = (above - below) / (2 * step);
  std::cout << "slope along the gradient: " << slope << ", its squares: " << dx.squaredNorm() << '\n';
  return std::abs(slope - dx.squaredNorm()) < 1e-6 * dx.squaredNorm() ? 0 : 1;
}

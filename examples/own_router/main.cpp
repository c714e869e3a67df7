/// A router of one's own and its gradients, here expert choice (Zhou et al. 2022, arXiv 2202.09368): every
/// expert takes as many tokens, so that a token has any number of experts. Letters: T tokens, N experts.

#include <algorithm>
#include <functional>
#include <iostream>
#include <random>
#include <vector>

#include <meo/meo.hpp>

/// Each expert takes the `capacity` tokens that score highest with it, more if some are level. scores: T × N.
meo::Assignment<float> choose(const meo::Matrix<float>& scores, meo::Index capacity) {
  meo::Vector<float> least(scores.cols());  // score that each expert takes
  for (meo::Index expert = 0; expert < scores.cols(); ++expert) {
    meo::Vector<float> of_expert = scores.col(expert);
    std::nth_element(of_expert.begin(), of_expert.begin() + capacity - 1, of_expert.end(), std::greater<>());
    least(expert) = of_expert(capacity - 1);
  }
  meo::Assignment<float> assignment{.rows = scores.rows(), .num_experts = scores.cols(), .begins = {0}};
  for (meo::Index token = 0; token < scores.rows(); ++token) {
    for (meo::Index expert = 0; expert < scores.cols(); ++expert) {
      if (scores(token, expert) < least(expert)) continue;
      assignment.experts.push_back(expert);
      assignment.weights.push_back(scores(token, expert));
    }
    assignment.begins.push_back(static_cast<meo::Index>(assignment.experts.size()));
  }
  return assignment;
}

int main() {
  const meo::LayerOptions options{
      .in_features = 64,
      .out_features = 32,
      .routing = {.level = meo::Level::token},  // a row of the assignment is a token
      .has_router = false};
  meo::MoeLayer<float, 4> layer(options), gradients(options);
  std::mt19937_64 rng(42);
  layer.initialize(rng);
  const meo::Matrix<float> x = meo::Matrix<float>::Random(12, 64),
                           target = meo::Matrix<float>::Random(12, 32);
  const meo::Matrix<float> router = meo::Matrix<float>::Random(64, 4) / 8;

  const meo::Matrix<float> scores = (x * router).array().logistic();
  const meo::Assignment<float> assignment = choose(scores, 6);
  meo::Matrix<float> y(x.rows(), 32), dx(x.rows(), 64);
  meo::Context<float> context;
  layer.forward_routed(x, {}, assignment, y, context);
  std::cout << "weights, tokens x experts:\n" << assignment.dense() << '\n';

  meo::Assignment<float> d_assignment = assignment;  // the same pairs with the gradients of their weights
  std::fill(d_assignment.weights.begin(), d_assignment.weights.end(), 0.0f);
  layer.backward_routed(x, {}, assignment, context, y - target, gradients, dx, d_assignment.weights);

  // On through the scores, which is the router's own business.
  const meo::Matrix<float> d_logits = d_assignment.dense().array() * scores.array() * (1 - scores.array());
  const meo::Matrix<float> d_router = x.transpose() * d_logits;
  dx += d_logits * router.transpose();
  std::cout << "gradient norms: router " << d_router.norm() << ", x " << dx.norm() << ", expert 0 "
            << gradients.weight(0).norm() << '\n';
}

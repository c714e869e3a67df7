/// A router of one's own: one learns how experts run by a decision from elsewhere, and how gradients come
/// back to its maker. A token has every expert whose score is above one half, none, some or all. Letters: T
/// tokens, D features, N experts.

#include <iostream>
#include <random>
#include <vector>

#include <meo/meo.hpp>

/// scores: T × N, which are the weights as well.
meo::Assignment<float> choose(const meo::Matrix<float>& scores) {
  meo::Assignment<float> assignment{.rows = scores.rows(), .num_experts = scores.cols(), .begins = {0}};
  for (meo::Index token = 0; token < scores.rows(); ++token) {
    for (meo::Index expert = 0; expert < scores.cols(); ++expert) {
      if (scores(token, expert) <= 0.5f) continue;
      assignment.experts.push_back(expert);
      assignment.weights.push_back(scores(token, expert));
    }
    assignment.begins.push_back(static_cast<meo::Index>(assignment.experts.size()));
  }
  return assignment;
}

int main() {
  meo::MoeLayer<float, 4> layer(
      {.in_features = 64,
       .out_features = 32,
       .routing = {.level = meo::Level::token},  // a row of an assignment is a token
       .has_router = false}),
      gradients(layer.options());
  std::mt19937_64 rng(42);
  layer.initialize(rng);
  const meo::Matrix<float> x = meo::Matrix<float>::Random(12, 64), dy = meo::Matrix<float>::Random(12, 32);
  const meo::Matrix<float> router = meo::Matrix<float>::Random(64, 4);  // D × N

  const meo::Matrix<float> scores = (x * router).array().logistic();
  const meo::Assignment<float> assignment = choose(scores);
  meo::Matrix<float> y(12, 32), dx(12, 64);
  meo::Context<float> context;
  layer.forward_routed(x, {}, assignment, y, context);
  std::cout << "weights, tokens x experts:\n" << assignment.dense() << '\n';

  meo::Assignment<float> d_scores{assignment};  // the same pairs with the gradients of their weights
  d_scores.weights.assign(assignment.weights.size(), 0.0f);
  layer.backward_routed(x, {}, assignment, context, dy, gradients, dx, d_scores.weights);
  // On through the scores, which is the router's own business.
  const meo::Matrix<float> d_logits = d_scores.dense().array() * scores.array() * (1 - scores.array());
  const meo::Matrix<float> d_router = x.transpose() * d_logits;
  dx += d_logits * router.transpose();
  std::cout << "gradient norms: router " << d_router.norm() << ", x " << dx.norm() << '\n';
}

/// Training: one learns what a step is made of, forward with a context and noise, backward into a layer of
/// gradients, clipping, an optimiser, and how the balance loss keeps all experts in use. Two kinds of
/// sequences want two different linear maps; a merged layer of four experts has to tell them apart.

#include <iostream>
#include <random>

#include <meo/meo.hpp>

using meo::Index;
using meo::Matrix;

int main() {
  constexpr Index sequences = 16, length = 8, in = 16, out = 8;
  std::mt19937_64 rng(42);
  std::normal_distribution<float> normal;
  const auto random = [&](Index rows, Index cols) {
    return Matrix<float>(Matrix<float>::NullaryExpr(rows, cols, [&] { return normal(rng); }));
  };
  // The first feature says which map a sequence wants.
  const Matrix<float> maps[] = {random(in, out) / 4, random(in, out) / 4};
  const auto batch = meo::Sequences::uniform(sequences, length);

  meo::MeoLayer<float> layer({.in_features = in, .out_features = out, .num_experts = 4, .top_k = 2});
  layer.initialize(rng);
  meo::MeoLayer<float> gradients(layer.options());  // parameters and gradients are of one form
  meo::AdamW<float> optimizer(meo::parameters(layer), {.learning_rate = 1e-2});
  meo::RoutingStatistics statistics(layer.num_experts());
  meo::Context<float> context;  // what a forward leaves for its backward
  Matrix<float> y(batch.tokens(), out), dx(batch.tokens(), in), target(batch.tokens(), out);

  for (int step = 0; step <= 1000; ++step) {
    Matrix<float> x = random(batch.tokens(), in);
    for (Index b = 0; b < sequences; ++b) {
      auto tokens = x.middleRows(batch.begin(b), length);
      tokens.col(0).setConstant(b % 2 == 0 ? 1.0f : -1.0f);
      target.middleRows(batch.begin(b), length) = tokens * maps[b % 2];
    }
    meo::Inputs<float> inputs{.sequences = &batch};
    inputs.noise = meo::Noise<float>(rng);  // so that experts beyond the gate's favourites get to learn
    const auto& routing = layer.forward(x, inputs, y, context);
    statistics.add(routing);

    const Matrix<float> dy = (y - target) / static_cast<float>(sequences * length);
    meo::set_zero(meo::parameters(gradients));
    layer.backward(x, inputs, context, dy, gradients, dx);  // the balance loss's gradient included
    meo::clip_gradient_norm(meo::parameters(gradients), 1.0f);
    optimizer.step(meo::parameters(layer), meo::parameters(gradients));

    if (step % 200 != 0) continue;
    std::cout << "step " << step << ": error " << (y - target).squaredNorm() / static_cast<float>(y.size())
              << ", balance loss " << routing.loss << ", shares of the experts";
    for (Index expert = 0; expert < layer.num_experts(); ++expert)
      std::cout << ' ' << statistics.share(expert);
    std::cout << '\n';
    statistics.reset();
  }
}

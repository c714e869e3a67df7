/// Data parallel training: one learns how several processes train one model, each on its part of every batch,
/// with the losses of one process: gradients are on their way while backward goes on, and balance losses are
/// those of the whole batch. Lines of text run up or down the alphabet, as their first character says, and a
/// model of two merged blocks predicts each next letter: `mpirun -n 3 distributed`.

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>
#include <meo/distributed/gradient_reducer.hpp>
#include <meo/distributed/statistics_sum.hpp>
#include <meo/meo.hpp>

using meo::Index;
using Matrix = meo::Matrix<double>;
using Block = meo::FeedForward<meo::MeoLayer<double>, meo::Relu>;

constexpr Index lines = 12, length = 16, letters = 26, width = 24, num_experts = 4;

void train(const meo::mpi::Communicator& world) {
  std::mt19937_64 rng(42);  // the same on all ranks: all begin with one model and draw the same batches
  std::normal_distribution<double> normal(0, 1 / std::sqrt(width));
  Matrix embedding = Matrix::NullaryExpr(letters + 2, width, [&] { return normal(rng); });
  embedding.bottomRows(2) *= 4;  // what a line begins with: its gate sees the mean of the line
  std::vector<Block> blocks(
      2, Block({.features = width, .hidden_features = 48, .num_experts = num_experts, .top_k = 2}));
  std::vector<Block> gradients = blocks;
  meo::Parameters<double> parameters, all_gradients;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    blocks[i].initialize(rng);
    for (const auto& range : meo::parameters(blocks[i])) parameters.push_back(range);
    for (const auto& range : meo::parameters(gradients[i])) all_gradients.push_back(range);
  }
  meo::AdamW<double> optimizer(parameters, {.learning_rate = 5e-3});

  const meo::mpi::RankRange own = meo::mpi::range_of(lines, world.size(), world.rank());  // of the lines
  const Index tokens = own.size() * length;
  const auto batch = meo::Sequences::uniform(own.size(), length);
  const meo::mpi::StatisticsSum<double> add_up(world);
  std::vector<meo::FeedForwardContext<double>> contexts(blocks.size());
  std::vector<Matrix> x(blocks.size() + 1, Matrix(tokens, width));

  for (int step = 0; step <= 200; ++step) {
    std::vector<Index> text;
    for (Index line = 0; line < lines; ++line) {
      const bool is_down = rng() % 2 != 0;
      const auto start = static_cast<Index>(rng() % letters);
      if (line < own.begin || line >= own.end) continue;
      text.push_back(is_down ? letters + 1 : letters);
      for (Index t = 0; t < length; ++t) text.push_back((start + (is_down ? letters - 1 : 1) * t) % letters);
    }
    const auto character = [&](Index token) {
      return text[static_cast<std::size_t>(token + token / length)];
    };
    const auto next = [&](Index token) { return text[static_cast<std::size_t>(token + token / length + 1)]; };
    const Matrix noise = meo::draw_noise<double>(lines, num_experts, rng).middleRows(own.begin, own.size());
    meo::Inputs<double> inputs{.sequences = &batch};
    inputs.noise = meo::Noise<double>(noise);  // this rank's rows of the batch's
    inputs.reduction = meo::StatisticsReduction<double>(add_up);

    for (Index t = 0; t < tokens; ++t) x[0].row(t) = embedding.row(character(t));
    double loss = 0, balance_loss = 0;  // a part for each rank; the same for all
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      balance_loss += blocks[i].forward(x[i], inputs, x[i + 1], contexts[i]);
      x[i + 1] += x[i];
    }
    Matrix d_logits = x.back() * embedding.transpose();
    for (Index t = 0; t < tokens; ++t) {
      auto row = d_logits.row(t);
      row = (row.array() - row.maxCoeff()).exp();
      row /= row.sum();  // probabilities
      loss -= std::log(row(next(t))) / (lines * length);
      row(next(t)) -= 1;
    }
    world.all_reduce_sum(std::span(&loss, 1));

    meo::set_zero(all_gradients);
    Matrix dx = d_logits * embedding / (lines * length), through_block(tokens, width);
    meo::mpi::GradientReducer<double> reducer(world);
    for (std::size_t i = blocks.size(); i-- > 0;) {
      blocks[i].backward(x[i], inputs, contexts[i], dx, gradients[i], through_block);
      dx += through_block;
      reducer.add(meo::parameters(gradients[i]));  // summed while the block before is at work
    }
    reducer.finish();
    meo::clip_gradient_norm(all_gradients, 1.0);
    optimizer.step(parameters, all_gradients);
    if (world.rank() == 0 && step % 40 == 0)
      std::printf("step %3d: loss %.6f, balance loss %.6f\n", step, loss, balance_loss);
  }
}

int main(int argc, char** argv) {
  const meo::mpi::Environment environment(argc, argv);
  const meo::mpi::Communicator world;
  return meo::mpi::run(world, [&] { train(world); });
}

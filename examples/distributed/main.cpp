/// Data parallel training: one learns how several processes train one model, each on its part of every batch,
/// with the losses of one process: gradients go on their way while backward goes on, and balance losses are
/// those of the whole batch. Lines of letters run up or down the alphabet, as their first character says, and
/// a model of two merged blocks predicts each next letter.
///
///     mpirun -n 3 distributed

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

constexpr Index lines = 12, length = 16, letters = 26, characters = letters + 2, width = 24, num_experts = 4;

void train(const meo::mpi::Communicator& world) {
  std::mt19937_64 rng(
      42);  // the same on all ranks, so that all begin with one model and draw the same batches
  std::normal_distribution<double> normal;
  const Matrix embedding =
      Matrix::NullaryExpr(characters, width, [&] { return normal(rng) / std::sqrt(width); });
  const meo::FeedForwardOptions options{
      .features = width, .hidden_features = 48, .num_experts = num_experts, .top_k = 2};
  std::vector<Block> blocks(2, Block(options)), gradients = blocks;
  meo::Parameters<double> parameters, parameter_gradients;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    blocks[i].initialize(rng);
    for (const auto& range : meo::parameters(blocks[i], std::to_string(i) + ".")) parameters.push_back(range);
    for (const auto& range : meo::parameters(gradients[i], std::to_string(i) + "."))
      parameter_gradients.push_back(range);
  }
  meo::AdamW<double> optimizer(parameters, {.learning_rate = 3e-3});

  // This rank's lines are first … first + own − 1.
  const Index first = lines * world.rank() / world.size(),
              own = lines * (world.rank() + 1) / world.size() - first;
  const auto batch = meo::Sequences::uniform(own, length);
  const meo::mpi::StatisticsSum<double> add_up(world);
  std::vector<meo::FeedForwardContext<double>> contexts(blocks.size());
  std::vector<Matrix> x(blocks.size() + 1, Matrix(own * length, width));

  for (int step = 0; step <= 200; ++step) {
    std::vector<Index> text(static_cast<std::size_t>(own * (length + 1)));
    for (Index line = 0; line < lines; ++line) {
      const Index is_down = static_cast<Index>(rng() % 2), start = static_cast<Index>(rng() % letters);
      for (Index t = 0; t <= length && line >= first && line < first + own; ++t) {
        const Index letter = (start + (is_down != 0 ? letters - 1 : 1) * t) % letters;
        text[static_cast<std::size_t>((line - first) * (length + 1) + t)] =
            t == 0 ? letters + is_down : letter;
      }
    }
    const auto character = [&](Index token, Index ahead) {
      return text[static_cast<std::size_t>(token + token / length + ahead)];
    };
    const Matrix noise =
        meo::draw_noise<double>(lines, num_experts, rng);  // of the batch, and this rank's rows
    meo::Inputs<double> inputs{.sequences = &batch};
    inputs.noise =
        meo::Noise<double>(meo::MatrixView<double>(noise.row(first).data(), own, num_experts, num_experts));
    inputs.reduction = meo::StatisticsReduction<double>(add_up);

    for (Index t = 0; t < own * length; ++t) x[0].row(t) = embedding.row(character(t, 0));
    double losses[] = {0, 0};  // this rank's part of the cross-entropy; balance losses, the same on all ranks
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      losses[1] += blocks[i].forward(x[i], inputs, x[i + 1], contexts[i]);
      x[i + 1] += x[i];
    }
    Matrix probabilities = x.back() * embedding.transpose();
    for (Index t = 0; t < own * length; ++t) {
      auto row = probabilities.row(t);
      row = (row.array() - row.maxCoeff()).exp();
      row /= row.sum();
      losses[0] -= std::log(row(character(t, 1))) / (lines * length);
      row(character(t, 1)) -= 1;
    }

    meo::set_zero(parameter_gradients);
    Matrix dx = probabilities * embedding / (lines * length), through(dx.rows(), width);
    meo::mpi::GradientReducer<double> reducer(world);
    for (std::size_t i = blocks.size(); i-- > 0;) {
      blocks[i].backward(x[i], inputs, contexts[i], dx, gradients[i], through);
      dx += through;
      reducer.add(meo::parameters(gradients[i]));
    }
    reducer.finish();
    meo::clip_gradient_norm(parameter_gradients, 1.0);
    optimizer.step(parameters, parameter_gradients);

    world.all_reduce_sum(std::span(losses, 1));
    if (world.rank() == 0 && step % 40 == 0)
      std::printf("step %3d: loss %.6f, balance %.6f\n", step, losses[0], losses[1]);
  }
}

int main(int argc, char** argv) {
  const meo::mpi::Environment environment(argc, argv);
  const meo::mpi::Communicator world;
  return meo::mpi::run(world, [&] { train(world); });
}

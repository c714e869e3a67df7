// A layer that is trained on parts of a batch, against one rank that has all of it.

#include <string>
#include <utility>
#include <vector>

#include <meo/distributed/gradient_norm.hpp>
#include <meo/distributed/gradient_reducer.hpp>
#include <meo/distributed/statistics_sum.hpp>
#include <meo/distributed/tensor_parallel.hpp>
#include <meo/layers/meo_layer.hpp>
#include <meo/training/parameters.hpp>

#include "distributed/part_of_batch.hpp"
#include "distributed/world.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/random.hpp"

namespace {
namespace data_parallel_test {

using namespace meo;
using namespace meo::test;

constexpr Index in = 12, out = 9, experts = 5;

struct Step {
  double loss;
  Matrix<double> y, dx;
  MeoLayer<double> gradients;
};

Step step(const MeoLayer<double>& layer, const Batch& batch, bool is_noisy,
          StatisticsReduction<double> reduction = {}) {
  Step step{0, Matrix<double>(batch.x.rows(), out), Matrix<double>(batch.x.rows(), in),
            MeoLayer<double>(layer.options())};
  Context<double> context;
  Inputs<double> inputs = batch.inputs();
  if (!is_noisy) inputs.noise = {};
  inputs.reduction = reduction;
  step.loss = layer.forward(batch.x, inputs, step.y, context).loss;
  layer.backward(batch.x, inputs, context, batch.dy, step.gradients, step.dx);
  return step;
}

std::vector<std::vector<double>> copy(const Parameters<double>& ranges) {
  std::vector<std::vector<double>> all;
  for (const auto& range : ranges) all.emplace_back(range.values.begin(), range.values.end());
  return all;
}

Matrix<double> values_of(const ParameterRange<double>& range) {
  return Eigen::Map<const Matrix<double>>(range.values.data(), 1, static_cast<Index>(range.values.size()));
}

TEST_CASE("ranks with parts of a batch have the loss and the gradients of one with all of it") {
  Generator rng(1);
  const bool is_noisy = GENERATE(false, true);
  const RoutingOptions routing =
      GENERATE(RoutingOptions{}, RoutingOptions{.scores = {.function = ScoreFunction::softmax},
                                                .losses = {.share_coefficient = 0.5, .z_coefficient = 0.25}});
  CAPTURE(is_noisy, routing.scores.function);
  MeoLayer<double> layer(
      {.in_features = in, .out_features = out, .num_experts = experts, .top_k = 2, .routing = routing});
  layer.initialize(rng);
  const Batch batch = random_batch(rng, {3, 8, 1, 0, 17, 6, 5}, in, out, experts, false);
  Step expected = step(layer, batch, is_noisy);

  const mpi::StatisticsSum<double> add_up(world());
  Step own = step(layer, part_of(batch, world()), is_noisy, StatisticsReduction<double>(add_up));
  const Index first = first_token(batch, world()), tokens = own.y.rows();
  // What is not the same to the bit has gone through sums over sequences or tokens, and some dozens of
  // roundings in N terms each between.
  const double tolerance = double(gamma<double>(4 * batch.x.rows() + 50 * experts));
  CHECK(share_of_bound(own.loss, expected.loss, tolerance * expected.loss) <= 1);
  CHECK(bit_difference(own.y, Matrix<double>(expected.y.middleRows(first, tokens))) == "");
  CHECK(disagreement(own.dx, Matrix<double>(expected.dx.middleRows(first, tokens)),
                     Matrix<double>::Constant(tokens, in, tolerance * expected.dx.cwiseAbs().maxCoeff())) ==
        "");

  const Parameters<double> gradients = parameters(own.gradients),
                           expected_gradients = parameters(expected.gradients);
  const auto parts = copy(gradients);
  std::vector<std::vector<double>> sums;
  // Every range by itself, several in a bucket, all in one: the sums are the same to the bit.
  for (const Index bucket : {1, 150, 1 << 20}) {
    mpi::GradientReducer<double> reducer(world(), bucket);
    for (int repeat = 0; repeat < 2; ++repeat) {
      for (std::size_t i = 0; i < parts.size(); ++i)
        std::copy(parts[i].begin(), parts[i].end(), gradients[i].values.begin());
      for (std::size_t i = gradients.size(); i-- > 0;) reducer.add({gradients[i]});
      reducer.finish();
      if (sums.empty()) sums = copy(gradients);
      CHECK(copy(gradients) == sums);
    }
  }
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    CAPTURE(gradients[i].name);
    CHECK(disagreement_in_max_norm(values_of(gradients[i]), values_of(expected_gradients[i]), tolerance) ==
          "");
  }
}

/// Ranks of the same color.
mpi::Communicator split(int color) {
  MPI_Comm part = MPI_COMM_NULL;
  MPI_Comm_split(world().handle(), color, world().rank(), &part);
  const mpi::Communicator own(part);
  MPI_Comm_free(&part);
  return own;
}

TEST_CASE("layers that are split over some ranks have the losses of the rows of all") {
  // A grid of ranks: those of a row share a layer, those of a column a batch.
  const int width = world().size() == 4 ? 2 : 1;
  const mpi::Communicator row = split(world().rank() / width), column = split(world().rank() % width);
  Generator rng(1);
  MeoLayer<double> layer({.in_features = in, .out_features = out, .num_experts = experts, .top_k = 2});
  layer.initialize(rng);
  const Batch batch = random_batch(rng, {3, 8, 1, 0, 17, 6, 5}, in, out, experts, false);
  Step expected = step(layer, batch, true);

  const Batch part = part_of(batch, column);
  using Split = mpi::TensorParallel<MeoLayer<double>>;
  const Split own(row, layer);
  Split gradients(row, layer.options());
  Split::Context context;
  const mpi::StatisticsSum<double> add_up(column);
  Inputs<double> inputs = part.inputs();
  inputs.reduction = StatisticsReduction<double>(add_up);
  const Index first = first_token(batch, column), tokens = part.x.rows();
  Matrix<double> y(tokens, out), dx(tokens, in);
  const double loss = own.forward(part.x, inputs, y, context);
  own.backward(part.x, inputs, context, part.dy, gradients, dx);
  const double tolerance = double(gamma<double>(4 * batch.x.rows() + 50 * experts));
  CHECK(share_of_bound(loss, expected.loss, tolerance * expected.loss) <= 1);
  CHECK(bit_difference(y, Matrix<double>(expected.y.middleRows(first, tokens))) == "");
  mpi::GradientReducer<double> reducer(column);
  const Parameters<double> shared = mpi::split_parameters(gradients).shared;
  reducer.add(shared);
  reducer.finish();
  Split split_expected(row, expected.gradients);
  const Parameters<double> expected_shared = mpi::split_parameters(split_expected).shared;
  for (std::size_t i = 0; i < shared.size(); ++i) {
    CAPTURE(shared[i].name);
    CHECK(disagreement_in_max_norm(values_of(shared[i]), values_of(expected_shared[i]), tolerance) == "");
  }
}

TEST_CASE("a split layer's ranks, which have the same rows, are not added up") {
  const MeoLayer<double> layer({.in_features = in, .out_features = out, .num_experts = experts, .top_k = 2});
  const mpi::TensorParallel<MeoLayer<double>> split(world(), layer);
  mpi::TensorParallel<MeoLayer<double>>::Context context;
  const mpi::StatisticsSum<double> add_up(world());
  Inputs<double> inputs;
  inputs.reduction = StatisticsReduction<double>(add_up);
  const Matrix<double> x = Matrix<double>::Zero(4, in), wide = Matrix<double>::Zero(4, in + 1);
  Matrix<double> y(4, out);
  if (world().size() > 1) {
    CHECK(error_lacks<std::invalid_argument>([&] { split.forward(x, inputs, y, context); },
                                             {"reduction", "other rows", "on rank 1"}) == "");
  }
  // Nor does a rank that throws wait for others, which may wait for it to add up. Here they do not even come.
  if (world().rank() > 0) return;
  CHECK(error_lacks<std::invalid_argument>([&] { split.forward(wide, inputs, y, context); },
                                           {"12 columns", "got 13"}) == "");
}

TEST_CASE("a bucket has room for one value at least") {
  CHECK(error_lacks<std::invalid_argument>([] { const mpi::GradientReducer<double> none(world(), 0); },
                                           {"bucket_values", "at least 1", "got 0"}) == "");
}

}  // namespace data_parallel_test
}  // namespace

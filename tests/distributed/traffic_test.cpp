// The bytes that are handed to MPI, against what they are on paper.

#include <numeric>
#include <span>
#include <vector>

#include <meo/distributed/communicator.hpp>
#include <meo/distributed/expert_parallel.hpp>
#include <meo/distributed/gradient_reducer.hpp>
#include <meo/distributed/tensor_parallel.hpp>
#include <meo/distributed/traffic.hpp>
#include <meo/layers/feed_forward.hpp>
#include <meo/layers/moe_layer.hpp>
#include <meo/training/parameters.hpp>

#include "distributed/world.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace traffic_test {

using namespace meo;
using namespace meo::mpi;

using Block = FeedForward<MoeLayer<double>, Gelu>;

/// Bytes that all ranks send in function(); what is counted here itself is left out.
template <class Function>
double counted(const Function& function) {
  const std::size_t before = world().bytes_sent();
  function();
  auto bytes = static_cast<double>(world().bytes_sent() - before);
  world().all_reduce_sum(std::span(&bytes, 1));
  return bytes;
}

TEST_CASE("what is handed to MPI for other ranks is counted, and by all copies of a communicator") {
  const auto ranks = static_cast<std::size_t>(world().size());
  const auto others = static_cast<double>(world().size() - 1), all = static_cast<double>(world().size());
  std::vector<float> five(5), five_of_each(5 * ranks), received(5 * ranks);
  const std::vector<Index> fives(ranks, 5);
  const std::span<const float> values(five);
  const Communicator copy(world());
  CHECK(counted([&] { copy.broadcast(std::span(five), world().size() - 1); }) == others * 20);
  CHECK(counted([&] { copy.all_gather(values, std::span(received)); }) == all * others * 20);
  CHECK(counted([&] { copy.all_gather_v(values, std::span(received), fives); }) == all * others * 20);
  CHECK(counted([&] { copy.all_to_all(std::span<const float>(five_of_each), std::span(received)); }) ==
        all * others * 20);
  CHECK(counted([&] {
          copy.all_to_all_v(std::span<const float>(five_of_each), fives, std::span(received), fives);
        }) == all * others * 20);
  CHECK(counted([&] { copy.all_reduce_sum(std::span(five)); }) == 2 * others * 20);
}

TEST_CASE("traffic on paper is what is sent") {
  const Index tokens = 6;  // of each rank
  TrafficShape shape{.ranks = world().size(),
                     .features = 16,
                     .hidden_features = 32,
                     .num_experts = 5,
                     .top_k = 5,
                     .value_bytes = sizeof(double)};
  const auto others = static_cast<double>(world().size() - 1),
             all_tokens = static_cast<double>(tokens * world().size());
  const FeedForwardOptions options{.features = shape.features,
                                   .hidden_features = shape.hidden_features,
                                   .num_experts = shape.num_experts,
                                   .top_k = shape.top_k,
                                   .bias = false,
                                   .shared_gate = true,
                                   .routing = {.level = Level::token}};
  test::Generator rng(1);
  Block block(options), block_gradients(options);
  block.initialize(rng);
  const Matrix<double> x = test::random_matrix<double>(rng, tokens, shape.features);
  Matrix<double> y(tokens, shape.features), dx(tokens, shape.features);

  const Parameters<double> ranges = parameters(block_gradients);
  double values = 0;  // with the padding of packed panels
  for (const auto& range : ranges) values += static_cast<double>(range.values.size());
  CHECK(values >= expert_values(shape) + router_values(shape));
  GradientReducer<double> reducer(world());
  CHECK(counted([&] {
          reducer.add(ranges);
          reducer.finish();
        }) == reduced_bytes(values, shape));

  // That ranks agree takes two numbers for each two of them, which are not on the paper.
  const double agreement = 16 * others * (others + 1);

  // Every token goes to all experts, so that none is selected more often than another.
  const ExpertParallel<Block> spread(world(), block);
  ExpertParallel<Block> spread_gradients(world(), options);
  ExpertParallel<Block>::Context context;
  const Traffic expert = traffic(Parallelism::expert, shape);
  const double counts = others * static_cast<double>(shape.num_experts * Index{sizeof(Index)});
  CHECK(counted([&] { spread.forward(x, {}, y, context); }) ==
        Approx(expert.forward * all_tokens + counts + agreement).epsilon(1e-12));
  CHECK(counted([&] { spread.backward(x, {}, context, y, spread_gradients, dx); }) ==
        Approx(expert.backward * all_tokens + agreement).epsilon(1e-12));

  // The tokens are all ranks'.
  const TensorParallel<Block> split(world(), block);
  TensorParallel<Block> split_gradients(world(), options);
  TensorParallel<Block>::Context split_context;
  const Traffic tensor = traffic(Parallelism::tensor, shape);
  const double forward = counted([&] { split.forward(x, {}, y, split_context); });
  CHECK(forward >= tensor.forward * tokens);
  CHECK(forward <= tensor.forward * tokens + agreement);
  const double backward = counted([&] { split.backward(x, {}, split_context, y, split_gradients, dx); });
  const double router =
      reduced_bytes(static_cast<double>(ranges[0].values.size() + ranges[1].values.size()), shape);
  CHECK(backward >= tensor.backward * tokens + router);
  CHECK(backward <= tensor.backward * tokens + router + agreement);
}

constexpr TrafficShape eight{.ranks = 8, .features = 4, .hidden_features = 16, .num_experts = 8, .top_k = 2};
static_assert(traffic(Parallelism::data, eight).forward == 0);
static_assert(traffic(Parallelism::data, eight).step == 2 * 7 * (8 * 2 * 4 * 16 + 2 * 8 * 4 + 2 * 8) * 4);
static_assert(traffic(Parallelism::tensor, eight).forward == 2 * 7 * 4 * 4);
static_assert(traffic(Parallelism::expert, eight).forward == 2 * 2 * 4 * 4 * 7 / 8.);
static_assert(traffic(Parallelism::padded, eight).forward == traffic(Parallelism::expert, eight).forward);
static_assert(held_values(Parallelism::tensor, eight) * 8 == held_values(Parallelism::data, eight));

}  // namespace traffic_test
}  // namespace

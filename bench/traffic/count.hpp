#pragma once

/// A step of training by each way, with the bytes that all ranks have handed to MPI meanwhile.

#include <cmath>
#include <random>
#include <span>
#include <vector>

#include <meo/distributed/communicator.hpp>
#include <meo/distributed/expert_parallel.hpp>
#include <meo/distributed/gradient_reducer.hpp>
#include <meo/distributed/statistics_sum.hpp>
#include <meo/distributed/tensor_parallel.hpp>
#include <meo/meo.hpp>

#include "traffic/point.hpp"

namespace bench::traffic {

/// Bytes that all ranks send in work().
template <class Work>
double sent_by(const meo::mpi::Communicator& world, const Work& work) {
  const std::size_t before = world.bytes_sent();
  work();
  auto bytes = static_cast<double>(world.bytes_sent() - before);
  world.all_reduce_sum(std::span(&bytes, 1));
  return bytes;
}

/// The shape's block with one router, and tokens of this rank.
class Run {
 public:
  Run(const meo::mpi::Communicator& world, const Point& point) : world_(world), point_(point) {
    options_ = {
        .features = point.shape.features,
        .hidden_features = point.shape.hidden_features,
        .num_experts = point.shape.num_experts,
        .top_k = point.shape.top_k,
        .bias = false,
        .shared_gate = true,
        .routing = {.level = point.way.by == Parallelism::expert ? meo::Level::token : meo::Level::sequence}};
  }

  /// Bytes for a token, and for a step.
  Traffic count() {
    if (point_.way.by == Parallelism::data) return count_data();
    if (point_.way.by == Parallelism::tensor) return count_tensor();
    if (point_.way.by == Parallelism::expert) return count_expert();
    return count_padded();
  }

 private:
  using MeoBlock = meo::FeedForward<meo::MeoLayer<float>, meo::Relu>;
  using MoeBlock = meo::FeedForward<meo::MoeLayer<float>, meo::Relu>;

  /// Tokens of all ranks are the same on all with tensor parallelism.
  meo::Matrix<float> tokens(Index count, int seed) const {
    std::mt19937_64 rng(static_cast<std::uint64_t>(seed));
    std::normal_distribution<float> normal;
    return meo::Matrix<float>::NullaryExpr(count, options_.features, [&] { return normal(rng); });
  }

  template <class Block>
  Block initialized() const {
    std::mt19937_64 rng(1);
    Block block(options_);
    block.initialize(rng);
    return block;
  }

  double a_token(double bytes) const { return bytes / static_cast<double>(point_.tokens); }

  void add_up(const meo::Parameters<float>& gradients) const {
    meo::mpi::GradientReducer<float> reducer(world_);
    reducer.add(gradients);
    reducer.finish();
  }

  Traffic count_data() const {
    const MeoBlock block = initialized<MeoBlock>();
    MeoBlock gradients(options_);
    const meo::Matrix<float> x = tokens(point_.tokens / world_.size(), world_.rank());
    meo::Matrix<float> y = x, dx = x;
    meo::FeedForwardContext<float> context;
    const meo::mpi::StatisticsSum<float> statistics(world_);
    meo::Inputs<float> inputs;
    inputs.reduction = meo::StatisticsReduction<float>(statistics);
    return {0, 0, sent_by(world_, [&] {
              block.forward(x, inputs, y, context);
              block.backward(x, inputs, context, y, gradients, dx);
              add_up(meo::parameters(gradients));
            })};
  }

  Traffic count_tensor() const {
    using Split = meo::mpi::TensorParallel<MeoBlock>;
    const Split block(world_, initialized<MeoBlock>());
    Split gradients(world_, options_);
    const meo::Matrix<float> x = tokens(point_.tokens, 0);
    meo::Matrix<float> y = x, dx = x;
    typename Split::Context context;
    const double forward = sent_by(world_, [&] { block.forward(x, {}, y, context); });
    const double backward = sent_by(world_, [&] { block.backward(x, {}, context, y, gradients, dx); });
    // One message has both the gradient of the tokens and that of the router.
    const double router = meo::mpi::reduced_bytes(router_size(gradients), point_.shape);
    return {a_token(forward), a_token(backward - router), router};
  }

  static double router_size(meo::mpi::TensorParallel<MeoBlock>& block) {
    std::size_t values = 0;
    block.part().up().gate().visit([&](std::string_view, auto&& part) {
      if constexpr (!meo::detail::is_buffer<std::remove_cvref_t<decltype(part)>>)
        values += part.values().size();
    });
    return static_cast<double>(values);
  }

  Traffic count_expert() const {
    using Spread = meo::mpi::ExpertParallel<MoeBlock>;
    const Spread block(world_, initialized<MoeBlock>());
    Spread gradients(world_, options_);
    const meo::Matrix<float> x = tokens(point_.tokens / world_.size(), world_.rank());
    meo::Matrix<float> y = x, dx = x;
    typename Spread::Context context;
    const double forward = sent_by(world_, [&] { block.forward(x, {}, y, context); });
    const double backward = sent_by(world_, [&] { block.backward(x, {}, context, y, gradients, dx); });
    const double step = sent_by(world_, [&] {
      std::vector<float> sums(static_cast<std::size_t>(2 * options_.num_experts));
      std::vector<Index> counts(static_cast<std::size_t>(options_.num_experts + 1));
      meo::mpi::StatisticsSum<float>{world_}(sums, counts);
      add_up(gradients.router_parameters());
    });
    return {a_token(forward), a_token(backward), step};
  }

  /// The messages alone: what every expert has room for goes there and back, in forward and in backward.
  Traffic count_padded() const {
    const TrafficShape& shape = point_.shape;
    const Index own_tokens = point_.tokens / world_.size();
    const auto capacity =
        static_cast<Index>(std::ceil(shape.capacity_factor * static_cast<double>(shape.top_k * own_tokens) /
                                     static_cast<double>(shape.num_experts)));
    const Index expert_size = capacity * shape.features;
    std::vector<Index> counts;
    for (int rank = 0; rank < world_.size(); ++rank)
      counts.push_back(meo::mpi::range_of(shape.num_experts, world_.size(), rank).size() * expert_size);
    const Index own = counts[static_cast<std::size_t>(world_.rank())];
    const std::vector<Index> own_of_each(counts.size(), own);
    std::vector<float> rows(static_cast<std::size_t>(shape.num_experts * expert_size));
    std::vector<float> arrived(static_cast<std::size_t>(own * world_.size()));
    const double once = sent_by(world_, [&] {
      world_.all_to_all_v(std::span<const float>(rows), counts, std::span(arrived), own_of_each);
      world_.all_to_all_v(std::span<const float>(arrived), own_of_each, std::span(rows), counts);
    });
    return {a_token(once), a_token(once), meo::mpi::traffic(Parallelism::padded, shape).step};
  }

  const meo::mpi::Communicator& world_;
  Point point_;
  meo::FeedForwardOptions options_;
};

/// Of all ways, as many ranks as there are.
inline std::vector<Point> counted_points(const meo::mpi::Communicator& world) {
  std::vector<Point> points;
  for (const Way& way : ways) {
    Point point = point_of(way, to_count, world.size());
    point.traffic = Run(world, point).count();
    points.push_back(point);
  }
  return points;
}

}  // namespace bench::traffic

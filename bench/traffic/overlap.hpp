#pragma once

/// How much of the sum of gradients over ranks is hidden behind backward.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <meo/distributed/communicator.hpp>
#include <meo/distributed/gradient_reducer.hpp>
#include <meo/meo.hpp>

namespace bench::traffic {

/// Seconds from where all ranks begin to where the last one ends, each the median of some rounds.
struct Overlap {
  double backward;  ///< alone
  double after;     ///< backward, and then the sums
  double during;    ///< sums of a block begin as soon as backward is done with it

  /// Of what the sums take after backward, the share that they do not take during it.
  double hidden() const { return (after - during) / (after - backward); }
};

/// Blocks one behind another, as a model has them, and tokens of this rank.
class OverlapRun {
 public:
  explicit OverlapRun(const meo::mpi::Communicator& world) : world_(world), reducer_(world) {
    std::mt19937_64 rng(static_cast<std::uint64_t>(world.rank()));
    std::normal_distribution<float> normal;
    x_ = meo::Matrix<float>::NullaryExpr(512, options.features, [&] { return normal(rng); });
    y_ = dy_ = dx_ = x_;
    for (Block& block : blocks_) block.initialize(rng);
    for (std::size_t i = 0; i < blocks_.size(); ++i) blocks_[i].forward(x_, {}, y_, contexts_[i]);
  }

  /// One after another in every round, so that what else the machine does is in all of them.
  Overlap measure(int rounds) {
    std::vector<double> backward, after, during;
    for (int round = 0; round < rounds; ++round) {
      backward.push_back(seconds([&] { run_backward([](Block&) {}); }));
      after.push_back(seconds([&] {
        run_backward([](Block&) {});
        for (auto gradients = gradients_.rbegin(); gradients != gradients_.rend(); ++gradients)
          reducer_.add(meo::parameters(*gradients));
        reducer_.finish();
      }));
      during.push_back(seconds([&] {
        run_backward([&](Block& gradients) { reducer_.add(meo::parameters(gradients)); });
        reducer_.finish();
      }));
    }
    return {median(backward), median(after), median(during)};
  }

 private:
  using Block = meo::FeedForward<meo::MeoLayer<float>, meo::Relu>;
  static constexpr std::size_t num_blocks = 6;
  static inline const meo::FeedForwardOptions options{.features = 256,
                                                      .hidden_features = 1024,
                                                      .num_experts = 8,
                                                      .top_k = 2,
                                                      .shared_gate = true,
                                                      .routing = {.level = meo::Level::sequence}};

  template <class Done>
  void run_backward(const Done& done) {
    for (std::size_t i = blocks_.size(); i-- > 0;) {
      blocks_[i].backward(x_, {}, contexts_[i], dy_, gradients_[i], dx_);
      done(gradients_[i]);
    }
  }

  template <class Work>
  double seconds(const Work& work) const {
    world_.barrier();
    const auto start = std::chrono::steady_clock::now();
    work();
    world_.barrier();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  static double median(std::vector<double>& values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  }

  meo::mpi::Communicator world_;
  meo::mpi::GradientReducer<float> reducer_;
  std::vector<Block> blocks_ = std::vector<Block>(num_blocks, Block(options));
  std::vector<Block> gradients_ = blocks_;
  std::vector<meo::FeedForwardContext<float>> contexts_{num_blocks};
  meo::Matrix<float> x_, y_, dy_, dx_;
};

}  // namespace bench::traffic

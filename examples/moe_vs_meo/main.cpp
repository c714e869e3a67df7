/// The same parameters through both layers: one learns what they compute, what it costs, and what it takes.
///
/// At sequence level a projection by MEO and one by MoE are the same function, for K times fewer operations.

#include <algorithm>
#include <chrono>
#include <iomanip>
#include <iostream>
#include <random>
#include <vector>

#include <meo/meo.hpp>

namespace {

using Clock = std::chrono::steady_clock;

constexpr meo::Index sequences = 8, length = 128, runs = 5;

/// Copies every parameter that the two layers share.
void copy_parameters(const meo::MeoLayer<float, 8>& from, meo::MoeLayer<float, 8>& to) {
  for (meo::Index expert = 0; expert < from.num_experts(); ++expert) {
    to.set_weight(expert, from.weight(expert));
    to.set_bias(expert, from.bias(expert));
  }
  to.gate().set_weight(from.gate().weight());
  to.gate().set_noise_weight(from.gate().noise_weight());
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <class Function>
double milliseconds(const Function& function) {
  const auto start = Clock::now();
  function();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace

int main() {
  std::mt19937_64 rng(42);
  const auto batch = meo::Sequences::uniform(sequences, length);
  const meo::Matrix<float> x = meo::Matrix<float>::Random(batch.tokens(), 768);
  const meo::Inputs<float> inputs{.sequences = &batch};
  meo::Matrix<float> moe_y(x.rows(), 3072), meo_y(x.rows(), 3072);
  meo::Workspace<float> workspace;  // reused, so that no forward but the first allocates

  std::cout << "768 -> 3072 features, 8 experts, " << sequences << " sequences of " << length << " tokens\n\n"
            << "  K   max difference   GFLOP: MoE     MEO   milliseconds: MoE      MEO   MoE / MEO\n";
  for (const meo::Index top_k : {1, 2, 4, 8}) {
    meo::MeoLayer<float, 8> merged({.in_features = 768, .out_features = 3072, .top_k = top_k});
    merged.initialize(rng);
    meo::MoeLayer<float, 8> vanilla(merged.options());
    copy_parameters(merged, vanilla);

    std::vector<double> moe_times, meo_times;
    for (meo::Index run = 0; run < runs; ++run) {
      moe_times.push_back(milliseconds([&] { vanilla.forward(x, inputs, moe_y, workspace); }));
      meo_times.push_back(milliseconds([&] { merged.forward(x, inputs, meo_y, workspace); }));
    }

    const meo::LayerShape shape = meo::layer_shape<float>(merged.options(), batch);
    const auto gflop = [&](meo::Method method) {
      return static_cast<double>(meo::flops(method, shape).total()) * 1e-9;
    };
    std::cout << std::fixed << std::setw(3) << top_k << std::setprecision(8) << std::setw(17)
              << (moe_y - meo_y).cwiseAbs().maxCoeff() << std::setprecision(2) << std::setw(13)
              << gflop(meo::Method::moe) << std::setw(8) << gflop(meo::Method::meo) << std::setprecision(1)
              << std::setw(20) << median(moe_times) << std::setw(9) << median(meo_times)
              << std::setprecision(2) << std::setw(12) << median(moe_times) / median(meo_times) << '\n';
  }
}

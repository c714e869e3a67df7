#pragma once

/// What a pair of layers takes.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <string_view>
#include <vector>

#include <meo/flops.hpp>

#include "flops/layer_pair.hpp"

namespace bench::flops {

using meo::Method;

/// What a pair runs, the dense products first.
struct Run {
  std::string_view name;
  Method method;
  void (LayerPair::*run)();
};
inline constexpr std::array<Run, 4> runs{{{"dense, Eigen", Method::dense, &LayerPair::run_eigen},
                                          {"dense, meo::Linear", Method::dense, &LayerPair::run_linear},
                                          {"MoE", Method::moe, &LayerPair::run_moe},
                                          {"MEO", Method::meo, &LayerPair::run_meo}}};
inline constexpr std::size_t num_dense = 2;

/// Median milliseconds of the runs, made in turn so that none of them has the machine, or its caches, to
/// itself.
struct Times {
  std::array<double, runs.size()> milliseconds;
  std::size_t rounds;
};

inline Times measure(LayerPair& pair) {
  using Clock = std::chrono::steady_clock;
  constexpr std::size_t fewest = 5, most = 101;
  constexpr std::chrono::seconds budget{2};

  std::array<std::vector<double>, runs.size()> milliseconds;
  for (const Run& run : runs) (pair.*run.run)();  // grows the workspace
  const Clock::time_point start = Clock::now();
  for (std::size_t round = 0; round < fewest || (round < most && Clock::now() - start < budget); ++round) {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const Clock::time_point begin = Clock::now();
      (pair.*runs[i].run)();
      milliseconds[i].push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
    }
  }
  const auto median = [](std::vector<double>& values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  };
  Times times{.milliseconds = {}, .rounds = milliseconds[0].size()};
  std::transform(milliseconds.begin(), milliseconds.end(), times.milliseconds.begin(), median);
  return times;
}

}  // namespace bench::flops

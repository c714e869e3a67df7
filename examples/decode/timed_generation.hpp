#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <vector>

#include <meo/meo.hpp>

/// A way to generate: from a token's x, 1 × features, to its y, which normalised is the next one's x.
struct TimedGeneration {
  std::function<void(const meo::Matrix<float>& x, meo::Matrix<float>& y)> step;
  meo::Matrix<float> x, y = x;
  std::vector<double> milliseconds = {};

  void next() {
    const auto start = std::chrono::steady_clock::now();
    step(x, y);
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    milliseconds.push_back(time.count());
    x = y * (std::sqrt(static_cast<float>(x.cols())) / y.norm());
  }

  double median() {
    std::sort(milliseconds.begin(), milliseconds.end());
    return milliseconds[milliseconds.size() / 2];
  }
};

#pragma once

/// The learning rate over a run, as BERT is trained: linear up, linear down.

#include <algorithm>
#include <cmath>

#include <meo/types.hpp>

namespace transformer {

using meo::Index;

struct Schedule {
  double peak = 1e-4;
  Index steps = 0;       ///< of the whole run
  double warm_up = 0.1;  ///< part of the steps in which the rate grows

  /// Of a step, from 1 to steps: grows from near 0 to the peak, falls to near 0 from there. No step has 0.
  double rate(Index step) const {
    const auto growing = static_cast<Index>(std::ceil(warm_up * static_cast<double>(steps)));
    if (step <= growing) return peak * static_cast<double>(step) / static_cast<double>(growing);
    return peak * static_cast<double>(steps - step + 1) / static_cast<double>(steps - growing);
  }
};

}  // namespace transformer

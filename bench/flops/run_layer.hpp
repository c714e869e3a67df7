#pragma once

/// The layer run: its outputs verified, and a table of its times beside its operations.

#include <algorithm>
#include <array>
#include <cstddef>
#include <iostream>
#include <string>
#include <vector>

#include <Eigen/Core>

#include <meo/flops.hpp>
#include <meo/types.hpp>

#include "flops/arguments.hpp"
#include "flops/layer.hpp"
#include "flops/layer_pair.hpp"
#include "flops/table.hpp"
#include "flops/times.hpp"
#include "instruction_sets.hpp"

namespace bench::flops {

/// Returns whether the outputs agree.
inline bool run_layer(const Arguments& arguments) {
  std::cout << "The same layer run at sequence level: float, Eigen " << EIGEN_WORLD_VERSION << '.'
            << EIGEN_MAJOR_VERSION << '.' << EIGEN_MINOR_VERSION << ", " << Eigen::nbThreads()
            << " thread(s),\ncompiled for " << bench::instruction_sets() << "\n\n";
  std::vector<Times> all_times;
  std::array<double, num_dense> dense_milliseconds{};  // over all K, to choose by
  double worst_error = 0;
  for (const Index top_k : arguments.top_k) {
    LayerPair pair(arguments, top_k);
    worst_error = std::max(worst_error, pair.error());
    if (worst_error > 1) {
      std::cerr << "meo_flops: at K = " << top_k
                << " the outputs of MoE, MEO, meo::Linear and Eigen disagree\n";
      return false;
    }
    all_times.push_back(measure(pair));
    for (std::size_t i = 0; i < num_dense; ++i) dense_milliseconds[i] += all_times.back().milliseconds[i];
  }

  const auto fastest = static_cast<std::size_t>(
      std::min_element(dense_milliseconds.begin(), dense_milliseconds.end()) - dense_milliseconds.begin());
  Table table({"method", "K", "MFLOPs", "FLOPs x dense", "ms", "time x dense", "GFLOP/s", "runs"}, 1);
  for (std::size_t k = 0; k < all_times.size(); ++k) {
    const Index top_k = arguments.top_k[k];
    const Times& times = all_times[k];
    const LayerShape shape = shape_of(up_projection(arguments, top_k, Level::sequence), arguments);
    const double dense = mflops(meo::flops(Method::dense, shape).total());
    table.add({});
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const double count = mflops(meo::flops(runs[i].method, shape).total());
      table.add({std::string(runs[i].name), runs[i].method == Method::dense ? "-" : std::to_string(top_k),
                 fixed(count, 3), fixed(count / dense, 3), fixed(times.milliseconds[i], 3),
                 fixed(times.milliseconds[i] / times.milliseconds[fastest], 3),
                 fixed(count / times.milliseconds[i], 1), std::to_string(times.rounds)});
    }
  }
  std::cout << table << "\nTime x dense is over \"" << runs[fastest].name
            << "\", the fastest dense product of this build.\n"
            << "MoE, MEO, meo::Linear and Eigen agree in every element, to " << fixed(worst_error, 4)
            << " of the rounding error's bound.\n";
  return true;
}

}  // namespace bench::flops

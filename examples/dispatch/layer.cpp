/// The layer, compiled once for each instruction set; all symbols but run_layer are hidden.

#include "layer.hpp"

#include <exception>
#include <random>

#include <meo/meo.hpp>

extern "C" __attribute__((visibility("default"))) int run_layer(const float* x, std::size_t tokens,
                                                                unsigned seed, float* y) {
  try {  // no exception leaves a shared object that has a library of its own
    meo::MeoLayer<float> layer({.in_features = 768, .out_features = 3072, .num_experts = 8, .top_k = 2});
    std::mt19937_64 rng(seed);
    layer.initialize(rng);
    const auto rows = static_cast<meo::Index>(tokens);
    Eigen::Map<meo::Matrix<float>>(y, rows, 3072) =
        layer.forward(Eigen::Map<const meo::Matrix<float>>(x, rows, 768)).y;
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

#pragma once

#include <random>

#include <meo/io/checkpoint.hpp>
#include <meo/meo.hpp>

// In an unnamed namespace, so that each translation unit has its own copy and only the library's functions
// are shared.
namespace {

meo::Matrix<float> run_layer() {
  std::mt19937_64 rng(1);
  meo::MeoLayer<float, 4> layer(
      {.in_features = 8, .out_features = 16, .top_k = 2, .routing = {.level = meo::Level::token}});
  layer.initialize(rng);
  return layer.forward(meo::Matrix<float>::Ones(3, 8)).y;
}

}  // namespace

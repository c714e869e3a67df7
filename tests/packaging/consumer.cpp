// The smallest user of meo::meo; every way of getting the library builds and runs this.

#include <cstdio>
#include <random>

#include <meo/meo.hpp>

int main() {
  std::mt19937_64 rng(1);
  meo::MeoLayer<float> layer({.in_features = 8, .out_features = 16, .num_experts = 4, .top_k = 2});
  layer.initialize(rng);
  const meo::Matrix<float> y = layer.forward(meo::Matrix<float>::Ones(3, 8)).y;
  std::printf("meo %d.%d.%d: %td x %td\n", MEO_VERSION_MAJOR, MEO_VERSION_MINOR, MEO_VERSION_PATCH, y.rows(),
              y.cols());
  return y.allFinite() && y.rows() == 3 && y.cols() == 16 ? 0 : 1;
}

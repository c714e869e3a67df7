// expect: meo: NumExperts must be at least 1, or Eigen::Dynamic
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
constexpr int num_experts = 1;
#else
constexpr int num_experts = 0;
#endif

void use() { meo::MeoLayer<float, num_experts> layer({.in_features = 2, .out_features = 2}); }

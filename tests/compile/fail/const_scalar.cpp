// expect: meo: Scalar must be a plain type, without const or reference
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
using Layer = meo::MeoLayer<float>;
#else
using Layer = meo::MeoLayer<const float>;
#endif

void use() { Layer layer({.in_features = 2, .out_features = 2, .num_experts = 2}); }

// expect: meo: Scalar must be a floating-point type or behave like one, not an integer
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
using Scalar = float;
#else
using Scalar = int;
#endif

void use() { meo::MoeLayer<Scalar, 4> layer({.in_features = 2, .out_features = 2}); }

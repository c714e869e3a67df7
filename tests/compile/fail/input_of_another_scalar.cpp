// expect: meo: x has another scalar than the layer or block; convert it with x.cast<Scalar>()
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
using Scalar = float;
#else
using Scalar = double;
#endif

void use(const meo::MeoLayer<float, 8>& layer, const meo::Matrix<Scalar>& x) { layer.forward(x); }

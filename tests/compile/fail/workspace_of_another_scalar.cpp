// expect: meo: the workspace must be of the layer's or block's scalar
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
using Scalar = float;
#else
using Scalar = double;
#endif

void use(const meo::MoeLayer<float, 8>& layer, const meo::Matrix<float>& x, meo::Matrix<float>& y) {
  meo::Workspace<Scalar> workspace;
  layer.forward(x, {}, y.topRows(4), workspace);
}

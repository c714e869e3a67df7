// expect: meo: y must be a meo::Matrix of the layer's or block's scalar, or a block or map of one
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
using Output = meo::Matrix<float>;
#else
using Output = Eigen::MatrixXf;
#endif

void use(const meo::MeoLayer<float, 8>& layer, const meo::Matrix<float>& x, Output& y) {
  meo::Workspace<float> workspace;
  layer.forward(x, {}, y, workspace);
}

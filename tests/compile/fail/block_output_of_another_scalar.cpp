// expect: meo: y must be a meo::Matrix of the layer's or block's scalar, or a block or map of one
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
using Scalar = float;
#else
using Scalar = double;
#endif

void use(const meo::FeedForward<meo::MeoLayer<float, 8>>& block, const meo::Matrix<float>& x,
         meo::Matrix<Scalar>& y) {
  meo::FeedForwardContext<float> context;
  block.forward(x, {}, y, context);
}

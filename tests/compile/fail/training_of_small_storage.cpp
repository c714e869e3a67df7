// expect: meo: backward needs experts that are stored as Scalar: train such a layer, and make the smaller one
// of it
#include <meo/layers/meo_layer.hpp>

#ifdef MEO_CONTROL
using Storage = float;
#else
using Storage = Eigen::bfloat16;
#endif
using Layer = meo::MeoLayer<float, Eigen::Dynamic, Storage>;

void use(const Layer& layer, const meo::Matrix<float>& x, meo::Context<float>& context, Layer& gradients,
         meo::Matrix<float>& dx) {
  layer.backward(x, {}, context, x, gradients, dx);
}

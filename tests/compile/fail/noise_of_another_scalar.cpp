// expect: meo: a matrix of another scalar cannot be viewed; convert it with x.cast<Scalar>()
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
using Scalar = float;
#else
using Scalar = double;
#endif

void use(const meo::MeoLayer<float, 8>& layer, const meo::Matrix<float>& x,
         const meo::Matrix<Scalar>& noise) {
  layer.forward(x, {.noise = meo::Noise<float>(noise)});
}

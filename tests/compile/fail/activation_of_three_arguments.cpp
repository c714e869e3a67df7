// expect: meo: Activation must be callable as Scalar(Scalar) const
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
using Activation = meo::Relu;
#else
struct Activation {
  float operator()(float x, float y, float z) const { return x * y * z; }
};
#endif

void use() {
  meo::FeedForward<meo::MeoLayer<float, 8>, Activation> block({.features = 2, .hidden_features = 3});
}

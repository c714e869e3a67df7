// expect: meo: backward needs an Activation with a member Scalar derivative(Scalar) const
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
using Activation = meo::Relu;
#else
struct Activation {
  float operator()(float x) const { return x * x; }
};
#endif

void use() {
  using Block = meo::FeedForward<meo::MeoLayer<float, 8>, Activation>;
  Block block({.features = 2, .hidden_features = 3}), gradients(block.options());
  meo::Matrix<float> x(4, 2), y(4, 2), dx(4, 2);
  meo::FeedForwardContext<float> context;
  block.forward(x, {}, y, context);
  block.backward(x, {}, context, y, gradients, dx);
}

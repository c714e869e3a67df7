// What users of meo::compiled write; instances.cmake says what their compiler is not to make of it.

#include <random>
#include <span>
#include <string>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/meo.hpp>

namespace {

template <class Library, class Context, class Scalar>
void train(const typename Library::Options& options, const meo::io::SafetensorsReader& file) {
  meo::io::check_shapes<Library>(options, file);
  Library library(options), gradients = library;
  std::mt19937_64 rng;
  library.initialize(rng);
  meo::io::load(library, file);
  const meo::Matrix<Scalar> x = meo::Matrix<Scalar>::Random(4, 8);
  meo::Matrix<Scalar> y(4, 8), dx(4, 8);
  Context context;
  library.forward(x, {}, y, context);
  library.backward(x, {}, context, y, gradients, dx);
  meo::clip_gradient_norm(meo::parameters(gradients), Scalar(1));
  meo::Sgd<Scalar>(meo::parameters(library), {}).step(meo::parameters(library), meo::parameters(gradients));
  meo::AdamW<Scalar>(meo::parameters(library), {}).step(meo::parameters(library), meo::parameters(gradients));
  meo::io::SafetensorsWriter writer;
  meo::io::save(library, writer);
}

template <class Scalar, class Layer>
void train_all(const meo::io::SafetensorsReader& file) {
  train<Layer, meo::Context<Scalar>, Scalar>({.in_features = 8, .out_features = 8, .num_experts = 2}, file);
  const meo::FeedForwardOptions options{.features = 8, .hidden_features = 8, .num_experts = 2};
  train<meo::FeedForward<Layer, meo::Gelu>, meo::FeedForwardContext<Scalar>, Scalar>(options, file);
  train<meo::FeedForward<Layer, meo::Relu>, meo::FeedForwardContext<Scalar>, Scalar>(options, file);
  meo::Assignment<Scalar> assignment;
  assignment.check(0, 2);
  assignment.dense();
  const Layer layer({.in_features = 8, .out_features = 8, .num_experts = 2});
  const meo::Matrix<Scalar> x = meo::Matrix<Scalar>::Random(4, 8);
  meo::MergedExpert(layer, layer.forward(x).routing).forward(x);
  const meo::FeedForward<Layer, meo::Gelu> block(options);
  meo::FeedForwardWorkspace<Scalar> workspace;
  meo::MergedFeedForward(block, workspace).forward(x);
}

}  // namespace

void train_all(const meo::io::SafetensorsReader& file) {
  train_all<float, meo::MoeLayer<float>>(file);
  train_all<float, meo::MeoLayer<float>>(file);
  train_all<double, meo::MoeLayer<double>>(file);
  train_all<double, meo::MeoLayer<double>>(file);
}

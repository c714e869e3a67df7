/// From PyTorch to C++: one learns how a layer is filled from a safetensors file, and what is said of one
/// that does not fit. Needs a file of a MEO layer at token level of 12 -> 21 features and one expert, as
/// tests/goldens/037_meo_token_n1_k1_eval_f64_bias.safetensors; run_checkpoint finds such sizes by itself.

#include <iostream>

#include <meo/io/checkpoint.hpp>
#include <meo/meo.hpp>

int main(int argc, char** argv) try {
  const meo::io::SafetensorsReader file(argc > 1 ? argv[1] : "layer.safetensors");
  meo::MeoLayer<double> layer({.in_features = 12,
                               .out_features = 21,
                               .num_experts = 1,
                               .routing = {.level = meo::Level::token, .reduce_factor = 4}});
  meo::io::load(layer, file, "param.");  // what the names begin with; "" for a state_dict as it is
  const auto [y, routing] = layer.forward(meo::Matrix<double>::Ones(3, 12));
  std::cout << "y: " << y.rows() << " x " << y.cols() << ", the first " << y(0, 0) << '\n';
} catch (const meo::io::Error& error) {  // names the file and the tensor
  std::cerr << error.what() << '\n';
  return 1;
}

// The smallest user of meo::safetensors, or of io/ in meo::compiled.

#include <cstdio>

#include <meo/io/checkpoint.hpp>
#include <meo/meo.hpp>

#if defined(MEO_COMPILED) && defined(NLOHMANN_JSON_VERSION_MAJOR)
#error "meo::compiled has all that needs nlohmann_json; its users need not parse it"
#endif

int main() {
  meo::MoeLayer<float> layer({.in_features = 8, .out_features = 16, .num_experts = 4, .top_k = 2});
  try {
    meo::io::load(layer, meo::io::SafetensorsReader("no_such_file.safetensors"));
  } catch (const meo::io::Error& error) {
    std::puts(error.what());
    return 0;
  }
  return 1;
}

#include <meo/layers/meo_layer.hpp>

/// Defined in take.cpp.
void take(const meo::MeoLayer<float>& layer);

int main() { take(meo::MeoLayer<float>({.in_features = 1, .out_features = 1, .num_experts = 1})); }

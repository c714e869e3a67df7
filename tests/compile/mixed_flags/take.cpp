#include <meo/layers/meo_layer.hpp>

void take(const meo::MeoLayer<float>& layer);

void take(const meo::MeoLayer<float>&) {}

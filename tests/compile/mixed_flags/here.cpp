#include "run_layer.hpp"

extern "C" [[gnu::visibility("default")]] bool is_right_here() { return layer_is_right(); }

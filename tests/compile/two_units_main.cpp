#include "two_units.hpp"

meo::Matrix<float> run_layer_in_other_unit();

int main() { return run_layer() == run_layer_in_other_unit() ? 0 : 1; }

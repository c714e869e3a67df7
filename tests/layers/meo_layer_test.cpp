#include <meo/layers/meo_layer.hpp>

#include "reference/sweeps.hpp"
#include "support/catch.hpp"

namespace {

using namespace meo;
using namespace meo::reference;

TEMPLATE_TEST_CASE("MeoLayer computes what the reference does, whatever its options", "[meo_layer]",
                   (MeoLayer<float>), (MeoLayer<float, 4>), (MeoLayer<double>), (MeoLayer<double, 4>)) {
  check_all_options<TestType>({1, 2, 6});
}

TEST_CASE("MeoLayer computes what the reference does for a scalar without packets", "[meo_layer]") {
  check_all_options<MeoLayer<long double>>({1, 4});
}

TEMPLATE_TEST_CASE("MeoLayer computes what the reference does for all small shapes", "[meo_layer]",
                   (MeoLayer<float>), (MeoLayer<double, 3>)) {
  check_all_small_shapes<TestType>(Level::sequence);
  check_all_small_shapes<TestType>(Level::token);
}

TEMPLATE_TEST_CASE("MeoLayer computes what the reference does for many experts and features", "[meo_layer]",
                   (MeoLayer<float>), (MeoLayer<double>)) {
  check_large_batch<TestType>(Level::sequence);
  check_large_batch<TestType>(Level::token);
}

}  // namespace

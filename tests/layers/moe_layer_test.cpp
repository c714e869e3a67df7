#include <meo/layers/moe_layer.hpp>

#include "reference/sweeps.hpp"
#include "support/catch.hpp"

namespace {
namespace moe_layer_test {

using namespace meo;
using namespace meo::reference;

TEMPLATE_TEST_CASE("MoeLayer computes what the reference does, whatever its options", "[moe_layer]",
                   (MoeLayer<float>), (MoeLayer<float, 4>), (MoeLayer<double>)) {
  check_all_options<TestType>({1, 2, 6});
}

TEST_CASE("MoeLayer computes what the reference does for a scalar without packets", "[moe_layer]") {
  check_all_options<MoeLayer<long double>>({1, 4});
}

TEMPLATE_TEST_CASE("MoeLayer computes what the reference does for all small shapes", "[moe_layer]",
                   (MoeLayer<float>), (MoeLayer<double, 3>)) {
  check_all_small_shapes<TestType>(Level::token);
}

TEMPLATE_TEST_CASE("MoeLayer computes what the reference does for many experts and features", "[moe_layer]",
                   (MoeLayer<float>), (MoeLayer<double>)) {
  check_large_batch<TestType>(Level::sequence);
  check_large_batch<TestType>(Level::token);
}

TEST_CASE("MoeLayer computes what the reference does for sizes that are multiples of nothing",
          "[moe_layer]") {
  check_odd_sizes<MoeLayer<float>>();
}

}  // namespace moe_layer_test
}  // namespace

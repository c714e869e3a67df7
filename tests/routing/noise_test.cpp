#include <limits>
#include <random>
#include <stdexcept>

#include <meo/routing/noise.hpp>

#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/error_message.hpp"

namespace {
namespace noise_test {

using namespace meo;
using namespace meo::test;

template <class S>
Matrix<S> filled(const Noise<S>& noise, Index rows, Index num_experts) {
  Matrix<S> out = Matrix<S>::Constant(rows, num_experts, std::numeric_limits<S>::quiet_NaN());
  noise.fill(rows, num_experts, out.data());
  return out;
}

TEST_CASE("noise may be absent", "[noise]") {
  const Matrix<float> matrix(0, 3);
  std::mt19937 rng;
  CHECK_FALSE(static_cast<bool>(Noise<float>()));
  CHECK(static_cast<bool>(Noise<float>(matrix)));  // of no rows, yet noise
  CHECK(static_cast<bool>(Noise<float>(rng)));
}

TEMPLATE_TEST_CASE("drawn noise is that of draw_noise, and goes on where the last draw ended", "[noise]",
                   float, double) {
  std::mt19937 rng(5), same(5);
  const Noise<TestType> noise(rng);
  const Matrix<TestType> first = draw_noise<TestType>(3, 4, same);
  CHECK(bit_difference(filled(noise, 3, 4), first) == "");
  CHECK(bit_difference(filled(noise, 3, 4), first) != "");
}

TEST_CASE("drawn noise is standard normal", "[noise]") {
  std::mt19937 rng(7);
  const Matrix<double> noise = draw_noise<double>(100, 100, rng);
  CHECK(std::abs(noise.mean()) < 0.05);
  CHECK(std::abs(noise.squaredNorm() / 1e4 - 1) < 0.05);
  CHECK(noise.maxCoeff() > 3);
}

TEST_CASE("given noise is taken as it is, from any stride", "[noise]") {
  const Matrix<double> around = Matrix<double>::Random(6, 7);
  const auto given = around.block(1, 2, 3, 4);
  CHECK(bit_difference(filled(Noise<double>(given), 3, 4), Matrix<double>(given)) == "");
}

TEST_CASE("given noise of another shape is refused", "[noise]") {
  const Matrix<float> given = Matrix<float>::Zero(3, 4);
  const Noise<float> noise(given);
  CHECK(error_lacks<std::invalid_argument>([&] { filled(noise, 2, 4); }, {"noise", "2 x 4", "got 3 x 4"}) ==
        "");
  CHECK(error_lacks<std::invalid_argument>([&] { filled(noise, 3, 5); }, {"noise", "3 x 5", "got 3 x 4"}) ==
        "");
}

}  // namespace noise_test
}  // namespace

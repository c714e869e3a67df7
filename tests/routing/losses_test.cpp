#include <cmath>
#include <span>
#include <stdexcept>
#include <vector>

#include <meo/routing/correction_bias.hpp>
#include <meo/routing/losses.hpp>
#include <meo/types.hpp>

#include "support/catch.hpp"
#include "support/error_message.hpp"

namespace {
namespace losses_test {

using namespace meo;

double share(const std::vector<Index>& counts, Index rows, const std::vector<double>& sums_of_p) {
  std::vector<double> gradient(counts.size());
  share_loss_gradient<double>(counts, rows, gradient);
  return share_loss<double>(std::span<const double>(gradient), std::span<const double>(sums_of_p));
}

TEST_CASE("the loss of shares is N Σ f P", "[losses]") {
  // Four rows with two experts each: f = 1/2, 1/4, 1/8, 1/8; P = 1/2, 1/4, 1/4, 0.
  CHECK(share({4, 2, 1, 1}, 4, {2, 1, 1, 0}) == 4 * (1 / 4. + 1 / 16. + 1 / 32.));
  CHECK(share({2, 2}, 4, {2, 2}) == 1);  // alike
  CHECK(share({4, 0}, 4, {4, 0}) == 2);  // one for all
  CHECK(share({0, 0}, 0, {0, 0}) == 0);
}

TEST_CASE("the z-loss is the mean square of the rows' log-sums", "[losses]") {
  const auto z = [](const std::vector<double>& sums) {
    return z_loss(z_loss_sum(std::span<const double>(sums)), static_cast<Index>(sums.size()));
  };
  CHECK(z({1, -2, 3, 0}) == 14 / 4.);
  CHECK(z({}) == 0);
}

TEST_CASE("the correction bias grows where few rows select, and shrinks where many do", "[correction_bias]") {
  Vector<float> bias(4);
  bias << 0.5f, 0, -0.5f, 1;
  update_correction_bias(std::vector<double>{3, 5, 9, 3}, 0.25f, bias);  // 5 is the mean
  CHECK(bias == (Vector<float>(4) << 0.75f, 0, -0.75f, 1.25f).finished());
  // A third is no number of a computer; thrice the sum's third is exact.
  Vector<float> thirds = Vector<float>::Zero(3);
  update_correction_bias(std::vector<float>{7, 7, 7}, 0.25f, thirds);
  CHECK(thirds.isZero(0));
  CHECK(test::error_lacks<std::invalid_argument>(
            [&] { update_correction_bias(std::vector<float>{1}, 0.25f, thirds); }, {"3 values", "got 1"}) ==
        "");
}

}  // namespace losses_test
}  // namespace

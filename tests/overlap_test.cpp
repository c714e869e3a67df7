#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include <meo/overlap.hpp>

#include "support/catch.hpp"
#include "support/error_message.hpp"
#include "support/random.hpp"

namespace {
namespace overlap_test {

using namespace meo;
using meo::test::Generator;

/// Whether two views have a value in common, found value by value.
bool have_common_value(const MatrixView<float>& a, const MatrixView<float>& b) {
  std::vector<const float*> values;
  for (Index r = 0; r < a.rows(); ++r) {
    for (Index c = 0; c < a.cols(); ++c) values.push_back(a.row(r) + c);
  }
  for (Index r = 0; r < b.rows(); ++r) {
    for (Index c = 0; c < b.cols(); ++c) {
      if (std::find(values.begin(), values.end(), b.row(r) + c) != values.end()) return true;
    }
  }
  return false;
}

TEST_CASE("matrices overlap where they have a value in common, for any strides", "[overlap]") {
  Generator rng(71);
  const std::vector<float> memory(64);
  const auto draw = [&](Index first, Index last) {
    return first + static_cast<Index>(rng() % static_cast<std::uint64_t>(last - first + 1));
  };
  const auto random_view = [&] {
    const Index rows = draw(0, 4), cols = draw(0, 4), stride = draw(-7, 7);
    return MatrixView<float>(memory.data() + draw(21, 39), rows, cols, stride);
  };
  int overlaps = 0;
  constexpr int tries = 20000;
  for (int i = 0; i < tries; ++i) {
    const MatrixView<float> a = random_view(), b = random_view();
    const bool expected = have_common_value(a, b);
    overlaps += expected;
    INFO("at " << a.data() - memory.data() << ' ' << a.rows() << " x " << a.cols() << " by " << a.row_stride()
               << ", at " << b.data() - memory.data() << ' ' << b.rows() << " x " << b.cols() << " by "
               << b.row_stride());
    REQUIRE(detail::overlap(a, b) == expected);
  }
  CHECK(overlaps > tries / 8);
  CHECK(overlaps < tries - tries / 8);
}

TEST_CASE("blocks of columns of one matrix overlap only where they share columns", "[overlap]") {
  const Matrix<double> matrix = Matrix<double>::Zero(5, 10);
  const MatrixView<double> left = matrix.leftCols(6), right = matrix.rightCols(4), wide = matrix.rightCols(5);
  CHECK_FALSE(detail::overlap(left, right));
  CHECK_FALSE(detail::overlap(right, left));
  CHECK(detail::overlap(left, wide));
  CHECK(detail::overlap(wide, left));
  CHECK_NOTHROW(detail::require_apart(left, "y", right, "x"));
  CHECK(test::error_lacks<std::invalid_argument>(
            [&] { detail::require_apart(left, "y", wide, "x"); },
            {"meo: y: expected memory that does not overlap x, got some that does"}) == "");
}

}  // namespace overlap_test
}  // namespace

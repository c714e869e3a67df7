#include <stdexcept>
#include <utility>
#include <vector>

#include <meo/routing/routing.hpp>

#include "support/catch.hpp"
#include "support/error_message.hpp"

namespace {
namespace routing_test {

using namespace meo;

TEST_CASE("a routing's rows are K pairs each, and dense where wanted", "[routing]") {
  Routing<float> routing;
  routing.rows = 3;
  routing.num_experts = 4;
  routing.top_k = 2;
  routing.experts = {2, 0, 1, 3, 3, 2};
  routing.weights = {0.75f, 0.25f, 1.f, 0.f, 0.5f, 0.5f};
  CHECK(routing.row_experts(1).size() == 2);
  CHECK(routing.row_experts(1)[0] == 1);
  CHECK(routing.row_experts(2)[1] == 2);
  CHECK(routing.row_weights(0)[0] == 0.75f);
  CHECK(routing.row_weights(1)[1] == 0.f);

  Matrix<float> expected(3, 4);
  expected << 0.25f, 0, 0.75f, 0,  //
      0, 1, 0, 0,                  //
      0, 0, 0.5f, 0.5f;
  CHECK(routing.dense() == expected);
}

TEST_CASE("a routing may have no rows", "[routing]") {
  Routing<double> routing;
  CHECK(routing.dense().size() == 0);
  routing.num_experts = 3;
  routing.top_k = 1;
  CHECK(routing.dense().rows() == 0);
  CHECK(routing.dense().cols() == 3);
}

TEST_CASE("a routing without its pairs is not made dense", "[routing]") {
  Routing<float> routing;
  routing.rows = 2;
  routing.num_experts = 3;
  routing.top_k = 1;
  routing.experts = {2, 0};
  routing.weights = {1.f, 1.f};
  const Routing<float> moved = std::move(routing);
  CHECK(moved.dense().sum() == 2);
  CHECK(test::error_lacks<std::invalid_argument>(
            [&] { static_cast<void>(routing.dense()); },
            {"routing: expected 2 pairs, got 0 experts and 0 weights"}) == "");
}

}  // namespace routing_test
}  // namespace

#include <cmath>
#include <sstream>

#include <meo/routing/routing_statistics.hpp>

#include "support/catch.hpp"
#include "support/error_message.hpp"

namespace {
namespace routing_statistics_test {

using namespace meo;

/// Three experts, two rows that select two each.
Routing<float> example() {
  Routing<float> routing;
  routing.rows = 2;
  routing.num_experts = 3;
  routing.top_k = 2;
  routing.experts = {2, 0, 2, 1};
  routing.weights = {0.75f, 0.25f, 0.5f, 0.5f};
  routing.importance = {0.25f, 0.5f, 1.25f};
  routing.load = {1, 1, 2};
  return routing;
}

TEST_CASE("statistics add up over a window", "[routing_statistics]") {
  RoutingStatistics statistics(3);
  CHECK(statistics.share(0) == 0);
  CHECK(statistics.mean_weight(0) == 0);
  CHECK(statistics.entropy() == 0);
  statistics.add(example());
  statistics.add(example());
  CHECK(statistics.rows() == 4);
  CHECK(statistics.count(0) == 2);
  CHECK(statistics.count(2) == 4);
  CHECK(statistics.share(2) == 0.5);
  CHECK(statistics.importance(2) == 2.5);
  CHECK(statistics.mean_weight(2) == 0.625);
  CHECK(statistics.load(2) == 4);
  CHECK(statistics.entropy() == Approx(1.5 * std::log(2.0)));
  statistics.reset();
  CHECK(statistics.num_experts() == 3);
  CHECK(statistics.rows() == 0);
  CHECK(statistics.count(2) == 0);
}

TEST_CASE("statistics are written as comma-separated lines", "[routing_statistics]") {
  RoutingStatistics statistics(3);
  Routing<float> routing = example();
  routing.experts = {2, 2, 2, 2};  // one expert, so that no digit of the entropy is in doubt
  statistics.add(routing);
  std::ostringstream out;
  RoutingStatistics::write_csv_header(out);
  statistics.write_csv(out, 17);
  CHECK(out.str() ==
        "window,expert,rows,count,share,mean_weight,importance,load,entropy\n"
        "17,0,2,0,0,0,0.25,1,0\n"
        "17,1,2,0,0,0,0.5,1,0\n"
        "17,2,2,4,1,0.3125,1.25,2,0\n");

  // Labels of several columns.
  std::ostringstream labelled;
  RoutingStatistics::write_csv_header(labelled, "step,gate");
  statistics.write_csv(labelled, "17,up");
  CHECK(labelled.str() ==
        "step,gate,expert,rows,count,share,mean_weight,importance,load,entropy\n"
        "17,up,0,2,0,0,0,0.25,1,0\n"
        "17,up,1,2,0,0,0,0.5,1,0\n"
        "17,up,2,2,4,1,0.3125,1.25,2,0\n");
}

TEST_CASE("statistics are of a fixed number of experts", "[routing_statistics]") {
  using test::error_lacks;
  CHECK(error_lacks<std::invalid_argument>([] { RoutingStatistics statistics(0); },
                                           {"at least 1", "got 0"}) == "");
  RoutingStatistics statistics(4);
  CHECK(error_lacks<std::invalid_argument>([&] { statistics.add(example()); },
                                           {"num_experts = 4", "got 3"}) == "");
  CHECK(error_lacks<std::invalid_argument>([&] { statistics.count(4); }, {"expert", "0 to 3", "got 4"}) ==
        "");
}

TEST_CASE("statistics add nothing of a routing that does not hold together", "[routing_statistics]") {
  RoutingStatistics statistics(3);
  const auto lacks = [&](auto change, std::initializer_list<std::string> parts) {
    Routing<float> routing = example();
    change(routing);
    const std::string error =
        test::error_lacks<std::invalid_argument>([&] { statistics.add(routing); }, parts);
    if (error != "") return error;
    const bool is_empty = statistics.rows() == 0 && statistics.count(2) == 0 && statistics.load(2) == 0;
    return std::string(is_empty ? "" : "something was added");
  };
  CHECK(lacks([](auto& r) { r.importance.pop_back(); }, {"3 experts", "got 2 and 3 values"}) == "");
  CHECK(lacks([](auto& r) { r.load.clear(); }, {"3 experts", "got 3 and 0 values"}) == "");
  CHECK(lacks([](auto& r) { r.experts.back() = 3; }, {"expert", "0 to 2", "got 3"}) == "");
  CHECK(lacks([](auto& r) { r.experts.back() = -1; }, {"expert", "0 to 2", "got -1"}) == "");
}

}  // namespace routing_statistics_test
}  // namespace

#include <stdexcept>
#include <string>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>
#include <meo/errors.hpp>
#include <meo/types.hpp>

#include "distributed/world.hpp"
#include "support/catch.hpp"

TEST_CASE("what one rank throws, all throw") {
  const int last = world().size() - 1;
  const auto fail_last = [&](const auto& error) {
    return [&world = world(), last, error] {
      meo::mpi::agree(world, [&] {
        if (world.rank() == last) throw error;
      });
    };
  };
  CHECK_NOTHROW(meo::mpi::agree(world(), [] {}));
  const std::string where = " (on rank " + std::to_string(last) + ")";
  CHECK_THROWS_WITH(fail_last(std::invalid_argument("x: expected 3"))(), "x: expected 3" + where);
  CHECK_THROWS_AS(fail_last(std::invalid_argument(""))(), std::invalid_argument);
  CHECK_THROWS_AS(fail_last(std::domain_error(""))(), std::domain_error);
  CHECK_THROWS_AS(fail_last(std::logic_error(""))(), std::logic_error);
  CHECK_THROWS_AS(fail_last(std::runtime_error(""))(), meo::mpi::Error);
  CHECK_THROWS_WITH(fail_last(42)(), Catch::Contains("no std::exception") && Catch::Contains(where));
}

TEST_CASE("of several ranks that fail, all throw what the first throws") {
  const int first = (world().size() - 1) / 2;
  const auto fail_several = [&] {
    meo::mpi::agree(
        world(), [&] { meo::detail::require(world().rank() < first, "rank ", world().rank(), " of some"); });
  };
  const std::string rank = std::to_string(first);
  CHECK_THROWS_WITH(fail_several(), "meo: rank " + rank + " of some (on rank " + rank + ")");
}

TEST_CASE("what work returns is to be the same on all ranks") {
  const int last = world().size() - 1;
  const auto differ_on_last = [&] {
    meo::mpi::agree_on(world(), "checksum", [&] { return world().rank() == last ? 2u : 1u; });
  };
  CHECK_NOTHROW(meo::mpi::agree_on(world(), "checksum", [] { return 3u; }));
  if (last == 0) return;
  CHECK_THROWS_WITH(differ_on_last(), "meo: checksum: expected the same on all ranks, got another on rank " +
                                          std::to_string(last) + " than on rank 0");
}

TEST_CASE("a value that is to be the same on all ranks") {
  const int last = world().size() - 1;
  CHECK_NOTHROW(meo::mpi::require_same(world(), "rows of x", 5));
  if (last == 0) return;
  CHECK_THROWS_WITH(meo::mpi::require_same(world(), "rows of x", world().rank() == last ? 6 : 5),
                    "meo: rows of x: expected the same on all ranks, got 5 on rank 0 and 6 on rank " +
                        std::to_string(last));
}

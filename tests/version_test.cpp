// The version's macros say one and the same.

#include <string>

#include <meo/version.hpp>

#include "support/catch.hpp"

namespace {
namespace version_test {

TEST_CASE("The version is one number and one text", "[version]") {
  STATIC_REQUIRE(MEO_VERSION / 10000 == MEO_VERSION_MAJOR);
  STATIC_REQUIRE(MEO_VERSION / 100 % 100 == MEO_VERSION_MINOR);
  STATIC_REQUIRE(MEO_VERSION % 100 == MEO_VERSION_PATCH);
  CHECK(MEO_VERSION_STRING == std::to_string(MEO_VERSION_MAJOR) + "." + std::to_string(MEO_VERSION_MINOR) +
                                  "." + std::to_string(MEO_VERSION_PATCH));
}

}  // namespace version_test
}  // namespace

#include "support/error_message.hpp"

#include <stdexcept>

#include "support/catch.hpp"

namespace {
namespace error_message_test {

using meo::test::error_lacks;

TEST_CASE("an error has to be of its type and to say all parts", "[error_message]") {
  const auto f = [] { throw std::invalid_argument("expected 3, got 4"); };
  CHECK(error_lacks<std::invalid_argument>(f, {}) == "");
  CHECK(error_lacks<std::invalid_argument>(f, {"expected 3", "got 4"}) == "");
  CHECK(error_lacks<std::invalid_argument>(f, {"expected 3", "got 5"}) == "no 'got 5' in: expected 3, got 4");
  CHECK(error_lacks<std::domain_error>(f, {}) == "another type of exception: expected 3, got 4");
  CHECK(error_lacks<std::logic_error>(f, {}) != "");
  CHECK(error_lacks<std::invalid_argument>([] {}, {}) == "no exception");
}

}  // namespace error_message_test
}  // namespace

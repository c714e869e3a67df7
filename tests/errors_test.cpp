#include <cstddef>
#include <limits>
#include <string>
#include <string_view>

#include <meo/errors.hpp>

#include "support/catch.hpp"

namespace {
namespace errors_test {

using meo::detail::message;

TEST_CASE("messages print numbers as streams do", "[errors]") {
  CHECK(message(0, " ", -5, " ", (std::numeric_limits<meo::Index>::min)()) ==
        "meo: 0 -5 -9223372036854775808");
  CHECK(message(7U, " ", (std::numeric_limits<std::size_t>::max)()) == "meo: 7 18446744073709551615");
  CHECK(message(0.1, " ", 1e300, " ", -2.5F, " ", 1.0 / 3) == "meo: 0.1 1e+300 -2.5 0.333333");
  CHECK(message(0.25L, " ", Eigen::half(1.5F)) == "meo: 0.25 1.5");
}

TEST_CASE("messages take texts of any kind", "[errors]") {
  const std::string text = "text";
  CHECK(message("a ", text, " ", std::string_view(text).substr(1), " ", text.c_str()) ==
        "meo: a text ext text");
}

}  // namespace errors_test
}  // namespace

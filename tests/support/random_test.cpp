#include "support/random.hpp"

#include "support/catch.hpp"

namespace {
namespace random_test {

using namespace meo;
using namespace meo::test;

TEST_CASE("random data repeats for a seed and fills its range", "[random]") {
  Generator a(3), b(3), c(4);
  const auto first = random_matrix<float>(a, 20, 30);
  CHECK(first == random_matrix<float>(b, 20, 30));
  CHECK(first != random_matrix<float>(c, 20, 30));
  CHECK(first != random_matrix<float>(a, 20, 30));
  CHECK(first.minCoeff() >= -1);
  CHECK(first.minCoeff() < -0.9f);
  CHECK(first.maxCoeff() < 1);
  CHECK(first.maxCoeff() > 0.9f);
}

TEST_CASE("random integers are integers of both signs", "[random]") {
  Generator rng(5);
  const auto matrix = random_integers<double>(rng, 10, 10, 2);
  CHECK((matrix.array() == matrix.array().round()).all());
  CHECK(matrix.minCoeff() == -2);
  CHECK(matrix.maxCoeff() == 2);
}

TEST_CASE("random normal numbers have mean 0 and variance 1", "[random]") {
  Generator rng(6);
  const auto matrix = random_normal<double>(rng, 100, 100);
  CHECK(std::abs(matrix.mean()) < 0.05);
  CHECK(std::abs(matrix.squaredNorm() / 1e4 - 1) < 0.05);
}

TEST_CASE("random lengths lie in their range and reach both ends", "[random]") {
  Generator rng(7);
  const auto lengths = random_lengths(rng, 100, 0, 3);
  CHECK(lengths.size() == 100);
  CHECK(*std::min_element(lengths.begin(), lengths.end()) == 0);
  CHECK(*std::max_element(lengths.begin(), lengths.end()) == 3);
}

}  // namespace random_test
}  // namespace

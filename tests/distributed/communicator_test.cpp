#include <cstdint>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include <meo/distributed/communicator.hpp>
#include <meo/types.hpp>

#include "distributed/world.hpp"
#include "support/catch.hpp"

using meo::Index;

namespace {
namespace communicator_test {

/// A value that says where it is from.
int mark(int from, int to, int place = 0) { return 10000 * from + 100 * to + place; }

/// Values of a rank whose sum depends on the order in which they are added.
std::vector<float> uneven(int rank, std::size_t size) {
  std::vector<float> values(size);
  for (std::size_t i = 0; i < size; ++i)
    values[i] =
        (rank % 2 == 0 ? 1.0F : -1.0F) * (rank == 0 ? 16777216.0F : 3.0F) / static_cast<float>(i + 1) +
        static_cast<float>(rank);
  return values;
}

/// By one rank that has all values, in the order of the ranks.
std::vector<float> sum_in_order(int ranks, std::size_t size) {
  std::vector<float> sum = uneven(0, size);
  for (int rank = 1; rank < ranks; ++rank) {
    const std::vector<float> values = uneven(rank, size);
    for (std::size_t i = 0; i < size; ++i) sum[i] = sum[i] + values[i];
  }
  return sum;
}

TEST_CASE("values go from each rank to each in the order of the ranks") {
  const int ranks = world().size();
  const int rank = world().rank();
  const auto n = static_cast<std::size_t>(ranks);

  for (int root = 0; root < ranks; ++root) {
    std::vector<int> values(3, mark(rank, 0));
    world().broadcast(std::span<int>(values), root);
    CHECK(values == std::vector<int>(3, mark(root, 0)));
  }

  const std::vector<double> two{1.0 * rank, 0.5 * rank};
  std::vector<double> all(2 * n);
  world().all_gather(std::span<const double>(two), std::span<double>(all));
  for (int other = 0; other < ranks; ++other) {
    CHECK(all[2 * static_cast<std::size_t>(other)] == 1.0 * other);
    CHECK(all[2 * static_cast<std::size_t>(other) + 1] == 0.5 * other);
  }

  // Rank r has r values for everyone.
  std::vector<Index> counts;
  std::vector<int> expected;
  for (int other = 0; other < ranks; ++other) {
    counts.push_back(other);
    for (int i = 0; i < other; ++i) expected.push_back(mark(other, 0, i));
  }
  std::vector<int> own;
  for (int i = 0; i < rank; ++i) own.push_back(mark(rank, 0, i));
  std::vector<int> gathered(expected.size());
  world().all_gather_v(std::span<const int>(own), std::span<int>(gathered), counts);
  CHECK(gathered == expected);

  std::vector<int> to_each;
  expected.clear();
  for (int other = 0; other < ranks; ++other) {
    to_each.push_back(mark(rank, other));
    expected.push_back(mark(other, rank));
  }
  std::vector<int> from_each(n);
  world().all_to_all(std::span<const int>(to_each), std::span<int>(from_each));
  CHECK(from_each == expected);

  // From rank r to rank s go r + 2 s values.
  std::vector<Index> to_counts, from_counts;
  to_each.clear();
  expected.clear();
  for (int other = 0; other < ranks; ++other) {
    to_counts.push_back(rank + 2 * other);
    from_counts.push_back(other + 2 * rank);
    for (int i = 0; i < rank + 2 * other; ++i) to_each.push_back(mark(rank, other, i));
    for (int i = 0; i < other + 2 * rank; ++i) expected.push_back(mark(other, rank, i));
  }
  from_each.assign(expected.size(), 0);
  world().all_to_all_v(std::span<const int>(to_each), to_counts, std::span<int>(from_each), from_counts);
  CHECK(from_each == expected);
}

TEST_CASE("sums over ranks are those of their order, to the bit") {
  for (const std::size_t size : {0, 1, 3, 64, 1003}) {
    std::vector<float> values = uneven(world().rank(), size);
    world().all_reduce_sum(std::span<float>(values));
    CHECK(values == sum_in_order(world().size(), size));
  }
}

TEST_CASE("reductions that are under way together do not mix") {
  const std::vector<std::size_t> sizes{1003, 5, 77, 2};
  std::vector<std::vector<float>> values;
  for (const std::size_t size : sizes) values.push_back(uneven(world().rank(), size));
  std::vector<meo::mpi::Reduction<float>> reductions;
  for (auto& bucket : values) reductions.push_back(world().start_all_reduce_sum(std::span<float>(bucket)));
  reductions[2].advance();
  reductions.back().finish();
  CHECK(reductions.back().advance());
  CHECK(values.back() == sum_in_order(world().size(), sizes.back()));
  while (!reductions[1].advance()) {
    for (auto& other : reductions) other.advance();
  }
  reductions[0].finish();
  reductions.clear();  // waits for the rest
  for (std::size_t i = 0; i < sizes.size(); ++i) CHECK(values[i] == sum_in_order(world().size(), sizes[i]));
}

TEST_CASE("ranks may finish reductions in other orders, and by other communicators") {
  const meo::mpi::Communicator second(world().handle());
  std::vector<float> a = uneven(world().rank(), 1003), b = a, c = a;
  auto of_a = world().start_all_reduce_sum(std::span<float>(a));
  auto of_b = second.start_all_reduce_sum(std::span<float>(b));
  auto of_c = world().start_all_reduce_sum(std::span<float>(c));
  if (world().rank() % 2 == 0) {
    of_a.finish();
    of_b.finish();
    of_c.finish();
  } else {
    of_c.finish();
    of_b.finish();
    of_a.finish();
  }
  const std::vector<float> sum = sum_in_order(world().size(), 1003);
  CHECK(a == sum);
  CHECK(b == sum);
  CHECK(c == sum);
}

TEST_CASE("spans that do not fit are refused before anything is sent") {
  const auto ranks = static_cast<std::size_t>(world().size());
  const std::vector<int> values(ranks);
  std::vector<int> out(ranks + 1);
  const std::vector<Index> ones(ranks, 1);
  const std::vector<Index> more(ranks + 1, 1);
  CHECK_THROWS_AS(world().broadcast(std::span<int>(out), world().size()), std::invalid_argument);
  CHECK_THROWS_AS(world().broadcast(std::span<int>(out), -1), std::invalid_argument);
  CHECK_THROWS_AS(world().all_gather(std::span<const int>(values).first(1), std::span<int>(out)),
                  std::invalid_argument);
  CHECK_THROWS_AS(world().all_gather_v(std::span<const int>(values).first(1), std::span<int>(out), ones),
                  std::invalid_argument);
  CHECK_THROWS_AS(world().all_gather_v(std::span<const int>(values).first(1), std::span<int>(out), more),
                  std::invalid_argument);
  CHECK_THROWS_AS(
      world().all_gather_v(std::span<const int>(values).first(0), std::span<int>(out).first(ranks), ones),
      std::invalid_argument);
  CHECK_THROWS_AS(world().all_to_all(std::span<const int>(values), std::span<int>(out)),
                  std::invalid_argument);
  // More than an int counts: refused without a look at the memory.
  const std::span<const std::byte> huge(reinterpret_cast<const std::byte*>(values.data()),
                                        std::size_t{1} << 31);
  std::byte* const room = reinterpret_cast<std::byte*>(out.data());
  CHECK_THROWS_WITH(world().all_gather(huge, std::span<std::byte>(room, huge.size() * ranks)),
                    Catch::Contains("2147483647"));
}

TEST_CASE("a rank that is of no part of a split communicator is told so") {
  CHECK_THROWS_WITH(meo::mpi::Communicator(MPI_COMM_NULL), Catch::Contains("got MPI_COMM_NULL"));
}

}  // namespace communicator_test
}  // namespace

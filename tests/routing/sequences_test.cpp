#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include <meo/routing/sequences.hpp>

#include "support/catch.hpp"
#include "support/error_message.hpp"

namespace {
namespace sequences_test {

using namespace meo;
using meo::test::error_lacks;
using Invalid = std::invalid_argument;

std::vector<Index> offsets(const Sequences& sequences) {
  return {sequences.offsets().begin(), sequences.offsets().end()};
}

TEST_CASE("sequences are made from lengths, offsets or one length for all", "[sequences]") {
  const Sequences ragged = Sequences::from_lengths({3, 0, 2});
  CHECK(ragged.size() == 3);
  CHECK(ragged.tokens() == 5);
  CHECK(offsets(ragged) == std::vector<Index>{0, 3, 3, 5});
  CHECK(ragged.begin(0) == 0);
  CHECK(ragged.begin(2) == 3);
  CHECK(ragged.length(0) == 3);
  CHECK(ragged.length(1) == 0);
  CHECK(ragged.length(2) == 2);

  CHECK(offsets(Sequences::from_offsets({0, 3, 3, 5})) == offsets(ragged));
  CHECK(offsets(Sequences::uniform(3, 4)) == std::vector<Index>{0, 4, 8, 12});
  CHECK(offsets(Sequences::from_lengths(std::vector<Index>{7})) == std::vector<Index>{0, 7});
}

TEST_CASE("there may be no sequences, or only empty ones", "[sequences]") {
  for (const Sequences& none :
       {Sequences(), Sequences::from_lengths({}), Sequences::from_offsets({0}), Sequences::uniform(0, 5)}) {
    CHECK(none.size() == 0);
    CHECK(none.tokens() == 0);
    CHECK(offsets(none) == std::vector<Index>{0});
  }
  CHECK(Sequences::uniform(2, 0).size() == 2);
  CHECK(Sequences::uniform(2, 0).tokens() == 0);
}

TEST_CASE("a move leaves no sequences", "[sequences]") {
  Sequences sequences = Sequences::from_lengths({3, 0, 2}), assigned;
  const Sequences moved = std::move(sequences);
  CHECK(offsets(moved) == std::vector<Index>{0, 3, 3, 5});
  CHECK(sequences.size() == 0);
  CHECK(sequences.tokens() == 0);
  CHECK(offsets(sequences) == std::vector<Index>{0});
  CHECK(sequences.begin(0) == 0);
  const Sequences copy = sequences;
  CHECK(copy.size() == 0);

  sequences = moved;
  assigned = std::move(sequences);
  CHECK(offsets(assigned) == offsets(moved));
  CHECK(sequences.size() == 0);
  Sequences& same = assigned;
  assigned = std::move(same);
  CHECK((assigned.size() == 0 || offsets(assigned) == offsets(moved)));
}

TEST_CASE("lengths and offsets that make no sequences are refused", "[sequences]") {
  CHECK(error_lacks<Invalid>(
            [] {
              Sequences::from_lengths({2, -1});
            },
            {"sequence 1", "at least 0", "got -1"}) == "");
  CHECK(error_lacks<Invalid>([] { Sequences::from_offsets({}); }, {"first to be 0", "got none"}) == "");
  CHECK(error_lacks<Invalid>([] { Sequences::from_offsets({1, 2}); }, {"first to be 0", "got 1"}) == "");
  CHECK(error_lacks<Invalid>(
            [] {
              Sequences::from_offsets({0, 4, 3});
            },
            {"ascending", "got 3 after 4"}) == "");
  CHECK(error_lacks<Invalid>(
            [] {
              Sequences::from_offsets({0, -1});
            },
            {"ascending", "got -1 after 0"}) == "");
  CHECK(error_lacks<Invalid>(
            [] {
              Sequences::from_offsets({0, -3, 5});
            },
            {"ascending", "got -3 after 0"}) == "");
  CHECK(error_lacks<Invalid>([] { Sequences::uniform(-1, 3); }, {"count", "at least 0", "got -1"}) == "");
  for (const Index count : {0, 2}) {
    CHECK(error_lacks<Invalid>([&] { Sequences::uniform(count, -3); }, {"length", "at least 0", "got -3"}) ==
          "");
  }
}

TEST_CASE("no more tokens are taken than an Index counts", "[sequences]") {
  constexpr Index quarter = Index{1} << 61, most = std::numeric_limits<Index>::max();
  const Sequences full = Sequences::from_lengths({2 * quarter, quarter, quarter - 1});
  CHECK(full.tokens() == most);
  CHECK(Sequences::uniform(3, quarter).tokens() == 3 * quarter);
  CHECK(error_lacks<Invalid>(
            [] {
              Sequences::from_lengths({2 * quarter, quarter, quarter});
            },
            {"sequence 2", "at most 9223372036854775807 tokens", "got 2305843009213693952 after 6917529"}) ==
        "");
  CHECK(error_lacks<Invalid>([] { Sequences::uniform(3, 2 * quarter); },
                             {"at most 9223372036854775807 tokens", "got 3 sequences of 46116860"}) == "");
  CHECK(error_lacks<Invalid>([] { Sequences::uniform(most, 2); }, {"tokens", "sequences of 2"}) == "");
}

}  // namespace sequences_test
}  // namespace

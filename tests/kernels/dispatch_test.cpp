#include <set>
#include <vector>

#include <meo/kernels/dispatch.hpp>

#include "kernels/random_experts.hpp"
#include "support/catch.hpp"

namespace {
namespace dispatch_test {

using namespace meo;
using namespace meo::detail;
using namespace meo::test;

/// Holds a dispatch against a search through all tokens for every expert.
template <class S>
void check_dispatch(const Dispatch<S>& dispatch, const Selections<S>& selections, Index num_experts,
                    const std::vector<Index>& offsets, const std::vector<unsigned char>& left_out) {
  std::vector<Index> begins, tokens;
  std::vector<S> weights;
  std::vector<unsigned char> is_first;
  std::set<Index> served;
  for (Index expert = 0; expert < num_experts; ++expert) {
    begins.push_back(Index(tokens.size()));
    for (std::size_t r = 0; r + 1 < offsets.size(); ++r) {
      if (left_out[r] != 0) continue;
      for (const auto& [selected, weight] : selections.ascending(Index(r))) {
        if (selected != expert) continue;
        for (Index token = offsets[r]; token < offsets[r + 1]; ++token) {
          tokens.push_back(token);
          weights.push_back(weight);
          is_first.push_back(served.insert(token).second);
        }
      }
    }
  }
  begins.push_back(Index(tokens.size()));
  CHECK(dispatch.begins == begins);
  CHECK(dispatch.tokens == tokens);
  CHECK(dispatch.weights == weights);
  CHECK(dispatch.is_first == is_first);
}

TEMPLATE_TEST_CASE("every expert gets its tokens in ascending order with their weights", "[dispatch]", float,
                   double, long double) {
  using S = TestType;
  constexpr Index num_experts = 7;
  Generator rng(21);
  Dispatch<S> dispatch;  // one for all, so that nothing of a larger batch may be left in a smaller one
  for (const auto& lengths : std::vector<std::vector<Index>>{
           {1, 1, 1, 1, 1, 1, 1, 1, 1}, {3, 0, 4}, {0, 0}, {5}, {}, {2, 1, 6, 1, 1}}) {
    const std::vector<Index> offsets = offsets_of(lengths);
    std::vector<unsigned char> left_out(lengths.size(), 0);
    const auto check = [&](const Selections<S>& selections) {
      dispatch_tokens<S>(selections.pairs(), num_experts, offsets, dispatch);
      check_dispatch(dispatch, selections, num_experts, offsets,
                     std::vector<unsigned char>(lengths.size(), 0));
      for (const Index most_tokens : {0, 1, 3, 5, 6}) {
        for (std::size_t r = 0; r < lengths.size(); ++r) left_out[r] = lengths[r] > most_tokens ? 1 : 0;
        dispatch_tokens<S>(selections.pairs(), num_experts, offsets, dispatch, left_out.data());
        check_dispatch(dispatch, selections, num_experts, offsets, left_out);
      }
    };
    for (Index top_k = 1; top_k <= num_experts; ++top_k) {
      INFO(lengths.size() << " rows, K " << top_k);
      check(random_selections<S>(rng, Index(lengths.size()), num_experts, top_k));
    }
    INFO(lengths.size() << " rows, 0 to 3 pairs each");
    check(random_ragged_selections<S>(rng, Index(lengths.size()), num_experts,
                                      [&](Index) { return Index(rng() % 4); }));
  }
}

TEST_CASE("a dispatch has room for as many tokens in rows of other lengths", "[dispatch]") {
  Dispatch<double> dispatch;
  const Selections<double> selections{2, {0, 1, 0, 1, 0, 1}, {.5, .5, .5, .5, .5, .5}};
  const std::vector<unsigned char> long_one{1, 0, 0};
  dispatch_tokens<double>(selections.pairs(), 2, offsets_of({9, 1, 0}), dispatch, long_one.data());
  CHECK(dispatch.tokens.size() == 2);
  const auto* const tokens = dispatch.tokens.data();
  const auto* const weights = dispatch.weights.data();
  const auto* const is_first = dispatch.is_first.data();
  dispatch_tokens<double>(selections.pairs(), 2, offsets_of({2, 2, 2}), dispatch);
  CHECK(dispatch.tokens.size() == 12);
  CHECK(dispatch.tokens.data() == tokens);
  CHECK(dispatch.weights.data() == weights);
  CHECK(dispatch.is_first.data() == is_first);
}

TEST_CASE("experts that nobody selects have no tokens", "[dispatch]") {
  Dispatch<double> dispatch;
  const Selections<double> selections{2, {3, 1, 1, 3}, {.25, .75, .5, .5}};
  dispatch_tokens<double>(selections.pairs(), 5, offsets_of({2, 1}), dispatch);
  CHECK(dispatch.begins == std::vector<Index>{0, 0, 3, 3, 6, 6});
  CHECK(dispatch.tokens == std::vector<Index>{0, 1, 2, 0, 1, 2});
  CHECK(dispatch.weights == std::vector<double>{.75, .75, .5, .25, .25, .5});
  CHECK(dispatch.is_first == std::vector<unsigned char>{1, 1, 1, 0, 0, 0});
}

}  // namespace dispatch_test
}  // namespace

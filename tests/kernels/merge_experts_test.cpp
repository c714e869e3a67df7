// An expert merged whole, to the bit.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include <meo/experts/expert_bank.hpp>
#include <meo/kernels/blocks.hpp>
#include <meo/kernels/merge_experts.hpp>
#include <meo/kernels/panel.hpp>
#include <meo/parallel.hpp>
#include <meo/types.hpp>

#include "kernels/chain.hpp"
#include "kernels/random_experts.hpp"
#include "kernels/threads.hpp"
#include "support/bounds.hpp"
#include "support/catch.hpp"
#include "support/random.hpp"

namespace {
namespace merge_experts_test {

using namespace meo;
using namespace meo::detail;
using namespace meo::test;

/// Room for four rows of a panel, the fewest that are merged at a time.
constexpr Blocks smallest_strips{.l1_bytes = 1};

/// Checks merge_experts with `top_k` of the experts: the weight and bias, and that padding stays zero.
template <class S, class Storage>
void check_merge(const RandomExperts<S, Storage>& experts, Index top_k, Generator& rng,
                 const Blocks& limits = machine_blocks()) {
  const auto bank = experts.bank.panels();
  INFO("K " << top_k << ", D " << bank.in_features << ", F " << bank.out_features << ", bias "
            << bank.has_bias);
  const Selections<S> selections = random_selections<S>(rng, 1, bank.num_experts, top_k);
  std::vector<Index> selected;
  std::vector<S> gates;
  std::vector<Matrix<S>> weights;
  std::vector<Vector<S>> biases;
  for (const auto& [expert, gate] : selections.ascending(0)) {
    selected.push_back(expert);
    gates.push_back(gate);
    weights.push_back(experts.weights[std::size_t(expert)]);
    biases.push_back(experts.biases[std::size_t(expert)]);
  }
  ExpertBank<S> merged(1, bank.in_features, bank.out_features, bank.has_bias);
  merged.set_weight(0, Matrix<S>::Constant(bank.out_features, bank.in_features, S(7)));
  merge_experts<S>(bank, {selected.data(), gates.data(), top_k}, merged.mutable_panels(),
                   {nullptr, max_threads()}, limits);
  const Matrix<S> none = Matrix<S>::Zero(bank.out_features, bank.in_features);
  CHECK(bit_difference(merged.weight(0), top_k == 0 ? none : chain_merge(weights, gates)) == "");
  if (bank.has_bias) {
    const Vector<S> expected = top_k == 0 ? Vector<S>::Zero(bank.out_features) : chain_merge(biases, gates);
    CHECK(bit_difference(merged.bias(0), expected) == "");
  }
  // What is left without the parameters.
  merged.set_weight(0, none);
  if (bank.has_bias) merged.set_bias(0, Vector<S>::Zero(bank.out_features));
  CHECK(std::ranges::all_of(merged.values(), [](S value) { return value == S(0); }));
}

TEMPLATE_TEST_CASE("merge_experts has the bits of the plain chains", "[merge_experts]", float, double,
                   long double) {
  using S = TestType;
  constexpr Index columns = Tile<S>::columns;
  Generator rng(51);
  for (const bool has_bias : {false, true}) {
    for (const Index out_features : {Index{1}, columns - 1, columns, 2 * columns + 3}) {
      for (const Index in_features : {1, 2, 9, 33}) {
        const RandomExperts<S> experts(rng, 21, in_features, out_features, has_bias);
        for (const Index top_k : {0, 1, 2, 7, 8, 9, 16, 17, 21}) {
          check_merge(experts, top_k, rng);
          check_merge(experts, top_k, rng, smallest_strips);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("merge_experts has the bits of the plain chains of stored experts, in strips too",
                   "[merge_experts]", Eigen::bfloat16, std::int8_t) {
  Generator rng(53);
  for (const bool has_bias : {false, true}) {
    const RandomExperts<float, TestType> experts(rng, 21, 33, 2 * Tile<float>::columns + 3, has_bias);
    for (const Index top_k : {0, 1, 8, 9, 17}) {
      check_merge(experts, top_k, rng);
      check_merge(experts, top_k, rng, smallest_strips);
    }
  }
}

TEST_CASE("merge_experts has the same bits with any number of threads", "[merge_experts]") {
  with_threads([](Index threads) {
    INFO(threads << " threads");
    Generator rng(52);
    const RandomExperts<float> experts(rng, 9, 33, 5 * Tile<float>::columns + 3, true);
    check_merge(experts, 9, rng);
  });
}

TEST_CASE("a single expert of weight 1 is copied, with the signs of its zeros", "[merge_experts]") {
  ExpertBank<float> experts(2, 3, 2, true), merged(1, 3, 2, true);
  experts.set_weight(1, Matrix<float>::Constant(2, 3, -0.0f));
  experts.set_bias(1, Vector<float>::Constant(2, -0.0f));
  const Index expert = 1;
  const float one = 1;
  merge_experts<float>(experts.panels(), {&expert, &one, 1}, merged.mutable_panels(),
                       {nullptr, max_threads()});
  CHECK(bit_difference(merged.weight(0), experts.weight(1)) == "");
  CHECK(bit_difference(merged.bias(0), experts.bias(1)) == "");
}

}  // namespace merge_experts_test
}  // namespace

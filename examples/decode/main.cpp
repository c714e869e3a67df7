/// Generating token by token: one learns how the decision of a prompt's gate is kept, and what a token takes
/// then: with experts merged once and kept, merged anew for every token, not merged at all, and with a dense
/// block; each with weights stored in 32, 16 and 8 bits.
///
/// A feed-forward block of GPT-2's size is fed its own outputs, normalised, instead of a model around it.

#include <cstdint>
#include <iomanip>
#include <iostream>
#include <random>

#include <meo/meo.hpp>

#include "timed_generation.hpp"

namespace {

template <class Storage = float>
using Meo = meo::FeedForward<meo::MeoLayer<float, Eigen::Dynamic, Storage>>;
template <class Storage = float>
using Moe = meo::FeedForward<meo::MoeLayer<float, Eigen::Dynamic, Storage>>;

constexpr meo::Index features = 768, hidden = 3072, experts = 8, prompt_tokens = 64, tokens = 25;

/// One gate for a block.
meo::FeedForwardOptions options(meo::Index top_k) {
  return {.features = features,
          .hidden_features = hidden,
          .num_experts = experts,
          .top_k = top_k,
          .shared_gate = true,
          .merge_order = meo::MergeOrder::merge_first};
}

/// A block of the same parameters whose gate selects another number of experts.
template <class Block>
Block with_top_k(const Meo<>& from, meo::Index top_k) {
  Block block(options(top_k));
  block.up().experts() = from.up().experts();
  block.down().experts() = from.down().experts();
  block.up().gate().set_weight(from.up().gate().weight());
  return block;
}

/// Prints a line for blocks of these parameters.
template <class Storage>
void generate(const Meo<>& merged_floats, const Moe<>& vanilla_floats, const meo::Matrix<float>& prompt,
              const char* name) {
  const Meo<Storage> merged(merged_floats);
  const Moe<Storage> vanilla(vanilla_floats);
  meo::Matrix<float> y(prompt_tokens, features), hidden_row(1, hidden);
  meo::FeedForwardWorkspace<float> decided, workspace;
  merged.forward(prompt, {}, y, decided);
  meo::MergedFeedForward<float, meo::Gelu, Storage> kept(merged, decided);
  meo::Linear<float, Storage> up(features, hidden), down(hidden, features);
  up.set_weight(merged.up().weight(0));
  down.set_weight(merged.down().weight(0));

  const meo::Matrix<float> x = y.bottomRows(1);
  TimedGeneration ways[] = {{[&](auto& in, auto& out) { kept.forward(in, {}, out, workspace); }, x},
                            {[&](auto& in, auto& out) { merged.forward(in, {}, out, workspace); }, x},
                            {[&](auto& in, auto& out) { vanilla.forward(in, {}, out, workspace); }, x},
                            {[&](auto& in, auto& out) {
                               up.apply(in, hidden_row.data(), hidden);
                               meo::activate<float>(meo::Gelu(), hidden_row, hidden_row);
                               down.apply(hidden_row, out.data(), features);
                             },
                             x},
                            {[&](auto&, auto&) { kept.merge(merged, decided); }, x}};
  for (meo::Index token = 0; token < tokens; ++token)
    for (TimedGeneration& way : ways) way.next();
  std::cout << std::setw(3) << merged.options().top_k << std::setw(10) << name << std::fixed
            << std::setprecision(3) << std::setw(26) << ways[0].median() << std::setw(13) << ways[1].median()
            << std::setw(12) << ways[2].median() << std::setw(8) << ways[3].median() << std::setw(17)
            << ways[4].median() << '\n';
}

}  // namespace

int main() {
  std::mt19937_64 rng(42);
  Meo<> parameters(options(1));
  parameters.initialize(rng);
  const meo::Matrix<float> prompt = meo::Matrix<float>::Random(prompt_tokens, features);

  std::cout
      << "768 -> 3072 -> 768 features, 8 experts, a prompt of " << prompt_tokens << " tokens; medians of "
      << tokens << " generated tokens\n\n"
      << "  K  weights   milliseconds a token: kept  merged anew  not merged   dense    once: merging\n";
  for (const meo::Index top_k : {1, 2, 4, 8}) {
    const auto merged = with_top_k<Meo<>>(parameters, top_k);
    const auto vanilla = with_top_k<Moe<>>(parameters, top_k);
    generate<float>(merged, vanilla, prompt, "float");
    generate<Eigen::bfloat16>(merged, vanilla, prompt, "bfloat16");
    generate<std::int8_t>(merged, vanilla, prompt, "int8");
  }
}

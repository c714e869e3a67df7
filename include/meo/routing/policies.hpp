#pragma once

/// A decision on a batch of logits by the policies of RoutingOptions: scores, selection, capacity, weights
/// and losses, one after another, and the gradient of all that. Where the options are the default ones and
/// the call has no mask, the gate goes a shorter way to the same.
///
/// Letters: R rows, N num_experts, K top_k.

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/routing/losses.hpp>
#include <meo/routing/routing.hpp>
#include <meo/routing/routing_options.hpp>
#include <meo/routing/scores.hpp>
#include <meo/routing/selection.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Whether rows have their K largest logits, whatever is made of these: what load estimates are for.
constexpr bool selects_largest_logits(const SelectionOptions& options) {
  return options.method == SelectionMethod::top_k && options.top_groups == options.groups &&
         !options.correction_bias;
}

/// Whether all policies are the default ones. A bias of the logits is none of them.
constexpr bool are_default(const RoutingOptions& options) {
  return options.scores == ScoreOptions{.bias = options.scores.bias} && options.losses == LossOptions{} &&
         selects_largest_logits(options.selection) && !may_leave_out_pairs(options.selection);
}

/// What is decided on. A view.
template <class Scalar>
struct PolicyCall {
  const RoutingOptions& options;
  Index rows;
  Index num_experts;
  Index top_k;
  const Scalar* logits;          ///< R × N, with noise where there is some
  AllowedExperts experts;        ///< one at least
  std::span<const Index> parts;  ///< capacity holds for the rows parts[i] … parts[i + 1] − 1 by themselves

  const Scalar* row(Index r) const { return logits + r * num_experts; }
};

/// What a decision leaves; vectors grow where they must and are kept.
template <class Scalar>
struct PolicyMemory {
  using S = Sum<Scalar>;

  std::vector<unsigned char> allowed;  ///< N: see AllowedExperts; or none
  std::vector<S> correction;           ///< N: the correction bias; or none
  std::vector<S> scores;               ///< R × N; see score_row
  std::vector<S> log_sums;             ///< R: log Σ exp ℓ; with a z-loss
  /// What the losses beside cv² are made of: Σ_r p_r, N, with a loss of shares; Σ_r (log Σ exp ℓ_r)² with a
  /// z-loss.
  std::vector<S> loss_sums;
  /// The selected, be there room for them or not, row by row: R + 1 begins, and of each its expert, its
  /// weight before the scale, and which pair of the routing it is: −1 where it is none.
  std::vector<Index> begins;
  std::vector<Index> selected;
  std::vector<S> weights;
  std::vector<Index> pairs;
  std::vector<unsigned char> flags;  ///< what follows is for each function to use
  std::vector<Index> order;
  std::vector<S> scratch;

  AllowedExperts experts() const { return {allowed.empty() ? nullptr : allowed.data()}; }
  std::span<const Index> row_experts(Index row) const {
    const auto r = static_cast<std::size_t>(row);
    return std::span<const Index>(selected).subspan(static_cast<std::size_t>(begins[r]),
                                                    static_cast<std::size_t>(begins[r + 1] - begins[r]));
  }
  const S* row_scores(Index row, Index num_experts) const {
    return scores.empty() ? nullptr : scores.data() + row * num_experts;
  }
};

/// Gradients of what they are named after.
template <class Scalar>
struct PolicyGradientMemory {
  using S = Sum<Scalar>;

  std::vector<S> scores;         ///< N of a row
  std::vector<S> weights;        ///< of a row's selected
  std::vector<S> probabilities;  ///< N, the same for each row: of the loss of shares
  Index rows = 0;                ///< that the losses are means over
};

/// The vector has `count` values then.
template <class Value>
Value* resized(std::vector<Value>& values, Index count) {
  values.resize(static_cast<std::size_t>(count));
  return values.data();
}

/// The scores that a row, or with expert choice an expert, selects by, without those that are not allowed,
/// are the logits, where they have the order of the scores.
template <class Scalar>
bool selects_by_logits(const PolicyCall<Scalar>& call) {
  const SelectionOptions& selection = call.options.selection;
  if (selection.correction_bias) return false;
  if (selection.method == SelectionMethod::expert_choice)
    return scores_are_logits(call.options.scores.function);
  return selection.top_groups == selection.groups || selection.group_score == GroupScore::largest ||
         scores_are_logits(call.options.scores.function);
}

template <class Scalar>
void compute_scores(const PolicyCall<Scalar>& call, PolicyMemory<Scalar>& memory) {
  const LossOptions& losses = call.options.losses;
  const Index experts = call.num_experts;
  const bool has_scores = !scores_are_logits(call.options.scores.function) || losses.share_coefficient > 0;
  Sum<Scalar>* const scores = resized(memory.scores, has_scores ? call.rows * experts : 0);
  for (Index row = 0; has_scores && row < call.rows; ++row)
    score_row(call.options.scores, call.row(row), experts, call.experts, scores + row * experts);
  const bool has_log_sums = losses.z_coefficient > 0;
  Sum<Scalar>* const log_sums = resized(memory.log_sums, has_log_sums ? call.rows : 0);
  Sum<Scalar>* const p = resized(memory.scratch, experts);
  for (Index row = 0; has_log_sums && row < call.rows; ++row)
    log_sums[row] = softmax_row(call.row(row), experts, call.experts, 1, p);
}

/// The candidates' best by `scores`, N. group_scores: G of memory. Returns how many there are.
template <class Scalar>
Index select_row(const PolicyCall<Scalar>& call, const Sum<Scalar>* scores, Sum<Scalar>* group_scores,
                 PolicyMemory<Scalar>& memory, Index* selected) {
  const SelectionOptions& selection = call.options.selection;
  const unsigned char* candidates = call.experts.allowed;
  if (selection.top_groups < selection.groups) {
    unsigned char* const of_row = memory.flags.data();
    for (Index j = 0; j < call.num_experts; ++j) of_row[j] = call.experts.has(j) ? 1 : 0;
    keep_best_groups(selection, scores, call.num_experts, group_scores, memory.order.data(),
                     of_row + call.num_experts, of_row);
    candidates = of_row;
  }
  return rank_allowed(scores, candidates, call.num_experts, call.top_k, selected);
}

template <class Scalar>
void select_by_rows(const PolicyCall<Scalar>& call, PolicyMemory<Scalar>& memory) {
  using S = Sum<Scalar>;
  const Index experts = call.num_experts, groups = call.options.selection.groups;
  Index* const begins = resized(memory.begins, call.rows + 1);
  Index* const selected = resized(memory.selected, call.rows * call.top_k);
  resized(memory.flags, experts + groups);
  resized(memory.order, groups);
  S* const by = resized(memory.scratch, experts + groups);
  const auto temperature = static_cast<S>(call.options.scores.temperature);
  const bool are_logits = scores_are_logits(call.options.scores.function);
  const bool by_logits = selects_by_logits(call);
  begins[0] = 0;
  for (Index row = 0; row < call.rows; ++row) {
    const Scalar* const logits = call.row(row);
    for (Index j = 0; j < experts; ++j) {
      if (by_logits || are_logits) by[j] = static_cast<S>(logits[j]);
      else by[j] = memory.scores[static_cast<std::size_t>(row * experts + j)];
    }
    if (!memory.correction.empty()) {
      for (Index j = 0; j < experts; ++j) {
        if (are_logits) by[j] = by[j] / temperature;
        by[j] += memory.correction[static_cast<std::size_t>(j)];
      }
    }
    begins[row + 1] = begins[row] + select_row(call, by, by + experts, memory, selected + begins[row]);
  }
  resized(memory.selected, begins[call.rows]);
}

template <class Scalar>
void select_by_experts(const PolicyCall<Scalar>& call, PolicyMemory<Scalar>& memory) {
  using S = Sum<Scalar>;
  const Index experts = call.num_experts;
  const bool by_logits = selects_by_logits(call);
  unsigned char* const taken = resized(memory.flags, call.rows * experts);
  std::fill_n(taken, call.rows * experts, static_cast<unsigned char>(0));
  S* const scores = resized(memory.scratch, call.rows);
  Index* const order = resized(memory.order, call.rows);
  for (std::size_t part = 0; part + 1 < call.parts.size(); ++part) {
    const Index begin = call.parts[part], rows = call.parts[part + 1] - begin;
    const Index capacity = (std::min)(rows, capacity_of(call.options.selection, rows, experts, call.top_k));
    for (Index j = 0; j < experts; ++j) {
      if (!call.experts.has(j)) continue;
      for (Index r = 0; r < rows; ++r) {
        const Index at = (begin + r) * experts + j;
        scores[r] = by_logits ? static_cast<S>(call.logits[at]) : memory.scores[static_cast<std::size_t>(at)];
      }
      take_best_rows<S>({scores, static_cast<std::size_t>(rows)}, capacity, order,
                        taken + begin * experts + j, experts);
    }
  }
  Index* const begins = resized(memory.begins, call.rows + 1);
  Index* selected =
      resized(memory.selected, static_cast<Index>(std::count(taken, taken + call.rows * experts, 1)));
  begins[0] = 0;
  for (Index row = 0; row < call.rows; ++row) {
    begins[row + 1] = begins[row];
    for (Index j = 0; j < experts; ++j) {
      if (taken[row * experts + j] == 0) continue;
      *selected++ = j;
      ++begins[row + 1];
    }
  }
}

/// Of the selected, what an expert has no room for is no pair. Leaves the numbers of the pairs; returns how
/// many there are.
template <class Scalar>
Index limit_to_capacity(const PolicyCall<Scalar>& call, PolicyMemory<Scalar>& memory) {
  Index* const taken = resized(memory.order, call.num_experts);
  Index* const pairs = resized(memory.pairs, static_cast<Index>(memory.selected.size()));
  Index pair = 0;
  for (std::size_t part = 0; part + 1 < call.parts.size(); ++part) {
    const Index begin = call.parts[part], end = call.parts[part + 1];
    const Index capacity = capacity_of(call.options.selection, end - begin, call.num_experts, call.top_k);
    std::fill_n(taken, call.num_experts, Index{0});
    const Index last = memory.begins[static_cast<std::size_t>(end)];
    for (Index i = memory.begins[static_cast<std::size_t>(begin)]; i < last; ++i) {
      Index& rows = taken[memory.selected[static_cast<std::size_t>(i)]];
      pairs[i] = rows < capacity ? pair++ : -1;
      if (pairs[i] >= 0) ++rows;
    }
  }
  return pair;
}

/// The `count` pairs that there are, with importance.
template <class Scalar>
void write_pairs(const PolicyCall<Scalar>& call, Index count, PolicyMemory<Scalar>& memory,
                 Routing<Scalar>& routing) {
  using S = Sum<Scalar>;
  const auto scale = static_cast<S>(call.options.scores.scale);
  const Index experts = call.num_experts;
  Index* const begins = resized(routing.begins, call.rows + 1);
  Index* const pair_experts = resized(routing.experts, count);
  Scalar* const weights = resized(routing.weights, count);
  S* const sums = resized(memory.scratch, (1 + pairwise_depth(num_parts(call.rows))) * experts);
  std::fill_n(sums, experts, S(0));
  PairwiseSum<S> parts(experts, sums, sums + experts);
  Index pair = 0;
  begins[0] = 0;
  for (Index first = 0; first < call.rows; first += serial_terms) {
    S* const importance = parts.part();
    std::fill_n(importance, experts, S(0));
    for (Index row = first; row < (std::min)(first + serial_terms, call.rows); ++row) {
      const auto last = static_cast<std::size_t>(memory.begins[static_cast<std::size_t>(row) + 1]);
      for (auto i = static_cast<std::size_t>(memory.begins[static_cast<std::size_t>(row)]); i < last; ++i) {
        if (!memory.pairs.empty() && memory.pairs[i] < 0) continue;
        pair_experts[pair] = memory.selected[i];
        weights[pair] = static_cast<Scalar>(S(memory.weights[i] * scale));
        importance[pair_experts[pair]] += static_cast<S>(weights[pair]);
        ++pair;
      }
      begins[row + 1] = pair;
    }
    parts.next();
  }
  parts.finish();
  std::copy_n(sums, experts, resized(routing.importance, experts));
}

/// From begins to the number of rows. Rows of as many pairs each need no begins.
template <class Scalar>
void drop_begins_if_uniform(Index top_k, Routing<Scalar>& routing) {
  const std::vector<Index>& begins = routing.begins;
  routing.rows = static_cast<Index>(begins.size()) - 1;
  routing.top_k = top_k;
  const Index pairs = routing.rows > 0 ? begins[1] : top_k;
  if (pairs == 0) return;
  for (std::size_t row = 0; row < begins.size(); ++row) {
    if (begins[row] != static_cast<Index>(row) * pairs) return;
  }
  routing.top_k = pairs;
  routing.begins.clear();
}

/// Fills `routing`, but for load and loss, and `counts`, N: rows that select each expert, be there room for
/// them or not. memory: with `allowed` and `correction` of the call.
template <class Scalar>
void decide(const PolicyCall<Scalar>& call, PolicyMemory<Scalar>& memory, Routing<Scalar>& routing,
            std::vector<Index>& counts) {
  const SelectionOptions& selection = call.options.selection;
  const bool by_experts = selection.method == SelectionMethod::expert_choice;
  compute_scores(call, memory);
  if (by_experts) select_by_experts(call, memory);
  else select_by_rows(call, memory);
  Sum<Scalar>* const weights = resized(memory.weights, static_cast<Index>(memory.selected.size()));
  for (Index row = 0; row < call.rows; ++row) {
    weigh_row(call.options.scores, call.row(row), memory.row_scores(row, call.num_experts),
              memory.row_experts(row), weights + memory.begins[static_cast<std::size_t>(row)]);
  }
  counts.assign(static_cast<std::size_t>(call.num_experts), 0);
  for (const Index expert : memory.selected) ++counts[static_cast<std::size_t>(expert)];
  memory.pairs.clear();
  auto pairs = static_cast<Index>(memory.selected.size());
  if (!by_experts && may_leave_out_pairs(selection)) pairs = limit_to_capacity(call, memory);
  routing.num_experts = call.num_experts;
  routing.gradient_groups.clear();
  write_pairs(call, pairs, memory, routing);
  drop_begins_if_uniform(call.top_k, routing);
}

/// Leaves memory.loss_sums of what decide has left.
template <class Scalar>
void sum_for_losses(const PolicyCall<Scalar>& call, PolicyMemory<Scalar>& memory) {
  using S = Sum<Scalar>;
  const LossOptions& losses = call.options.losses;
  memory.loss_sums.clear();
  if (losses.share_coefficient > 0) {
    const Index experts = call.num_experts;
    const bool are_probabilities = call.options.scores.function != ScoreFunction::sigmoid;
    S* const p = resized(memory.scratch, (1 + pairwise_depth(num_parts(call.rows))) * experts);
    const auto p_of_row = [&](Index row) -> const S* {
      const S* const scores = memory.row_scores(row, experts);
      if (are_probabilities) return scores;
      auto all = static_cast<S>(least_score_sum);
      for (Index j = 0; j < experts; ++j) all += scores[j];
      for (Index j = 0; j < experts; ++j) p[j] = scores[j] / all;
      return p;
    };
    sum_rows(Index{0}, call.rows, experts, p_of_row, resized(memory.loss_sums, experts), p + experts);
  }
  if (losses.z_coefficient > 0) memory.loss_sums.push_back(z_loss_sum(std::span<const S>(memory.log_sums)));
}

/// The losses beside cv², each times its coefficient, of so many rows; memory.loss_sums and counts (see
/// decide) are theirs.
template <class Scalar>
Sum<Scalar> further_losses(const LossOptions& losses, std::span<const Index> counts, Index rows,
                           PolicyMemory<Scalar>& memory) {
  using S = Sum<Scalar>;
  S loss(0);
  if (losses.share_coefficient > 0) {
    S* const d_p = resized(memory.scratch, static_cast<Index>(counts.size()));
    share_loss_gradient<S>(counts, rows, {d_p, counts.size()});
    loss += static_cast<S>(losses.share_coefficient) *
            share_loss<S>(std::span<const S>(d_p, counts.size()),
                          std::span<const S>(memory.loss_sums).first(counts.size()));
  }
  if (losses.z_coefficient > 0)
    loss += static_cast<S>(losses.z_coefficient) * z_loss<S>(memory.loss_sums.back(), rows);
  return loss;
}

/// Before the rows of a backward. counts, rows: those of the losses, see further_losses; d_loss: the gradient
/// of the loss.
template <class Scalar>
void begin_gradients(const RoutingOptions& options, std::span<const Index> counts, Index rows,
                     const Sum<Scalar>& d_loss, PolicyGradientMemory<Scalar>& memory) {
  using S = Sum<Scalar>;
  const auto experts = static_cast<Index>(counts.size());
  memory.rows = rows;
  S* const d_p = resized(memory.probabilities, experts);
  share_loss_gradient<S>(counts, rows, {d_p, counts.size()});
  const S coefficient = d_loss * static_cast<S>(options.losses.share_coefficient);
  for (Index j = 0; j < experts; ++j) d_p[j] = coefficient * d_p[j];
}

/// Through σ(ℓ) over the sum of a row's: adds to d_scores what comes from d_p.
template <class Scalar>
void add_share_gradient(const Scalar* scores, const Scalar* d_p, Index num_experts, Scalar* d_scores) {
  auto all = static_cast<Scalar>(least_score_sum);
  Scalar mean(0);
  for (Index j = 0; j < num_experts; ++j) all += scores[j];
  for (Index j = 0; j < num_experts; ++j) mean += scores[j] / all * d_p[j];
  for (Index j = 0; j < num_experts; ++j) d_scores[j] += (d_p[j] - mean) / all;
}

/// Adds to d_logits, N, the gradient of a row's logits, but for that of the load: from those of the routing's
/// weights (of all pairs, in the routing's order), of the importance and of the losses. call, decision: those
/// of decide.
template <class Scalar>
void add_row_gradient(const PolicyCall<Scalar>& call, const PolicyMemory<Scalar>& decision, Index row,
                      std::span<const Scalar> d_weights, std::span<const Sum<Scalar>> d_importance,
                      const Sum<Scalar>& d_loss, PolicyGradientMemory<Scalar>& memory,
                      Sum<Scalar>* d_logits) {
  using S = Sum<Scalar>;
  const RoutingOptions& options = call.options;
  const ScoreFunction function = options.scores.function;
  const bool are_logits = scores_are_logits(function);
  const Index experts = call.num_experts;
  const std::span<const Index> selected = decision.row_experts(row);
  const auto begin = static_cast<std::size_t>(decision.begins[static_cast<std::size_t>(row)]);
  const auto scale = static_cast<S>(options.scores.scale);
  S* const of_weights = resized(memory.weights, static_cast<Index>(selected.size()));
  for (std::size_t i = 0; i < selected.size(); ++i) {
    const Index pair = decision.pairs.empty() ? static_cast<Index>(begin + i) : decision.pairs[begin + i];
    const auto expert = static_cast<std::size_t>(selected[i]);
    of_weights[i] = S(0);
    if (pair >= 0) {
      of_weights[i] =
          scale * (static_cast<S>(d_weights[static_cast<std::size_t>(pair)]) + d_importance[expert]);
    }
  }
  const S* const scores = decision.row_scores(row, experts);
  S* const d_scores = resized(memory.scores, experts);
  std::fill_n(d_scores, experts, S(0));
  weights_to_scores<S>(options.scores, scores, decision.weights.data() + begin, selected, of_weights,
                       are_logits ? d_logits : d_scores);
  if (options.losses.share_coefficient > 0) {
    const S* const d_p = memory.probabilities.data();
    if (function == ScoreFunction::sigmoid) add_share_gradient(scores, d_p, experts, d_scores);
    else add_softmax_gradient(scores, d_p, experts, options.scores.temperature, d_logits);
  }
  if (!are_logits) add_scores_gradient(options.scores, scores, d_scores, experts, d_logits);
  if (options.losses.z_coefficient > 0) {
    S* const p = resized(memory.scores, experts);
    const S log_sum = softmax_row(call.row(row), experts, call.experts, 1, p);
    const S factor = d_loss * static_cast<S>(2 * options.losses.z_coefficient) * log_sum /
                     static_cast<S>(static_cast<double>(memory.rows));
    for (Index j = 0; j < experts; ++j) d_logits[j] += factor * p[j];
  }
}

#define MEO_INSTANCES(instance, Scalar)                                                                     \
  instance void decide(const PolicyCall<Scalar>&, PolicyMemory<Scalar>&, Routing<Scalar>&,                  \
                       std::vector<Index>&);                                                                \
  instance void sum_for_losses(const PolicyCall<Scalar>&, PolicyMemory<Scalar>&);                           \
  instance Sum<Scalar> further_losses(const LossOptions&, std::span<const Index>, Index,                    \
                                      PolicyMemory<Scalar>&);                                               \
  instance void begin_gradients(const RoutingOptions&, std::span<const Index>, Index, const Sum<Scalar>&,   \
                                PolicyGradientMemory<Scalar>&);                                             \
  instance void add_row_gradient(const PolicyCall<Scalar>&, const PolicyMemory<Scalar>&, Index,             \
                                 std::span<const Scalar>, std::span<const Sum<Scalar>>, const Sum<Scalar>&, \
                                 PolicyGradientMemory<Scalar>&, Sum<Scalar>*);
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

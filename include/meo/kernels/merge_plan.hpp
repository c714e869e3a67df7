#pragma once

/// Which merges a batch needs: rows with the same selection and the same weights share one.

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/kernels/pairs.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Plain data; rows stand in an order that puts equal and similar selections side by side.
template <class Scalar>
struct MergePlan {
  std::vector<Index> begins;     ///< rows + 1: where a row's pairs begin
  std::vector<Index> experts;    ///< of each pair, ascending within a row
  std::vector<Scalar> weights;   ///< of each pair
  std::vector<Index> sequences;  ///< the rows that are merged, grouped by merge
  /// Merge m serves sequences[merge_begins[m]] … sequences[merge_begins[m + 1] − 1].
  std::vector<Index> merge_begins;
  std::vector<Index> product_begins;  ///< merges + 1: where the products of a merge's terms begin

  /// Of a batch of `rows` rows, each of which may turn out to have a merge of its own.
  void clear_merges(Index rows) {
    sequences.clear();
    merge_begins.clear();
    product_begins.clear();
    sequences.reserve(static_cast<std::size_t>(rows));
    merge_begins.reserve(static_cast<std::size_t>(rows) + 1);
    product_begins.reserve(static_cast<std::size_t>(rows) + 1);
  }

  /// The next merge begins at this position of `sequences`.
  void begin_merge(Index position) {
    merge_begins.push_back(position);
    const Index terms = terms_of(sequence(position)).count;
    if (product_begins.empty()) product_begins.push_back(0);
    product_begins.push_back(product_begins.back() + terms);
  }
  void finish_merges() {
    merge_begins.push_back(static_cast<Index>(sequences.size()));
    if (product_begins.empty()) product_begins.push_back(0);
  }

  Index num_merges() const { return static_cast<Index>(merge_begins.size()) - 1; }
  Index begin(Index merge) const { return merge_begins[static_cast<std::size_t>(merge)]; }
  Index sequence(Index position) const { return sequences[static_cast<std::size_t>(position)]; }
  /// Terms of all merges before this one; of num_merges() of all.
  Index products_begin(Index merge) const { return product_begins[static_cast<std::size_t>(merge)]; }
  MergeTerms<Scalar> terms(Index merge) const { return terms_of(sequence(begin(merge))); }
  bool have_same_experts(Index merge, Index other) const {
    const MergeTerms<Scalar> a = terms(merge), b = terms(other);
    return a.count == b.count && std::equal(a.experts, a.experts + a.count, b.experts);
  }
  /// Negative, 0 or positive as one row comes before, shares a merge with or comes after another: by experts
  /// and then by weights.
  int compare(Index row, Index other) const {
    const MergeTerms<Scalar> a = terms_of(row), b = terms_of(other);
    for (Index i = 0; i < (std::min)(a.count, b.count); ++i) {
      if (a.experts[i] != b.experts[i]) return a.experts[i] < b.experts[i] ? -1 : 1;
    }
    if (a.count != b.count) return a.count < b.count ? -1 : 1;
    for (Index i = 0; i < a.count; ++i) {
      if (a.weights[i] < b.weights[i]) return -1;
      if (b.weights[i] < a.weights[i]) return 1;
    }
    return 0;
  }
  MergeTerms<Scalar> terms_of(Index row) const {
    const auto r = static_cast<std::size_t>(row);
    return {experts.data() + begins[r], weights.data() + begins[r], begins[r + 1] - begins[r]};
  }
};

/// Sorts the rows that are merged as MergePlan::compare says, those that share a merge ascending. Heapsort:
/// rows are few beside what is done for each, and std::sort takes five times as long to compile.
template <class Scalar>
void sort_rows(MergePlan<Scalar>& plan) {
  Index* const rows = plan.sequences.data();
  const auto is_before = [&](Index a, Index b) {
    const int order = plan.compare(a, b);
    return order != 0 ? order < 0 : a < b;
  };
  // The heap is rows[0] … rows[end − 1], of which those from `first` on are in order.
  auto end = static_cast<Index>(plan.sequences.size());
  for (Index first = end / 2; end > 1;) {
    if (first > 0) --first;
    else std::swap(rows[0], rows[--end]);
    for (Index parent = first, child; (child = 2 * parent + 1) < end; parent = child) {
      if (child + 1 < end && is_before(rows[child], rows[child + 1])) ++child;
      if (!is_before(rows[parent], rows[child])) break;
      std::swap(rows[parent], rows[child]);
    }
  }
}

/// Plans the merges of a batch. offsets: row r has the tokens offsets[r] … offsets[r + 1] − 1. Rows without
/// tokens or without pairs have no place in the plan, nor have those that left_out, where it is given, is not
/// 0 of. Allocates only where the plan has to grow, never for as many rows and pairs of other lengths or
/// selections.
template <class Scalar>
void plan_merges(const Pairs<Scalar>& pairs, std::span<const Index> offsets, MergePlan<Scalar>& plan,
                 const unsigned char* left_out = nullptr) {
  plan.experts.assign(pairs.experts, pairs.experts + pairs.size());
  plan.weights.assign(pairs.weights, pairs.weights + pairs.size());
  plan.begins.clear();
  for (Index row = 0; row <= pairs.rows; ++row) plan.begins.push_back(pairs.begin(row));
  plan.clear_merges(pairs.rows);
  for (Index row = 0; row < pairs.rows; ++row) {
    const auto r = static_cast<std::size_t>(row);
    const bool is_left_out = left_out != nullptr && left_out[r] != 0;
    if (!is_left_out && offsets[r + 1] > offsets[r] && pairs.count(row) > 0) plan.sequences.push_back(row);
    // Insertion sort of the row's pairs: they are few, and routing already gives them in nearly any order.
    Index* const e = plan.experts.data() + pairs.begin(row);
    Scalar* const w = plan.weights.data() + pairs.begin(row);
    for (Index i = 1; i < pairs.count(row); ++i) {
      for (Index j = i; j > 0 && e[j] < e[j - 1]; --j) {
        std::swap(e[j], e[j - 1]);
        std::swap(w[j], w[j - 1]);
      }
    }
  }
  sort_rows(plan);
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    if (i == 0 || plan.compare(plan.sequences[i - 1], plan.sequences[i]) != 0)
      plan.begin_merge(static_cast<Index>(i));
  }
  plan.finish_merges();
}

#define MEO_INSTANCES(instance, Scalar)                                                       \
  instance void plan_merges(const Pairs<Scalar>&, std::span<const Index>, MergePlan<Scalar>&, \
                            const unsigned char*);
MEO_KERNEL_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo::detail

#pragma once

/// How a gate uses its experts, over a window of batches. Shared experts, which every row has, do not count.

#include <cmath>
#include <ostream>
#include <string_view>
#include <vector>

#include <meo/errors.hpp>
#include <meo/routing/routing.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Sums over every routing that was added since the construction or the last reset.
class RoutingStatistics {
 public:
  /// Of a gate over so many experts; throws std::invalid_argument for fewer than one.
  explicit RoutingStatistics(Index num_experts) : experts_(static_cast<std::size_t>(num_experts)) {
    detail::require(num_experts >= 1, "num_experts: expected at least 1, got ", num_experts);
  }

  /// Throws std::invalid_argument for another number of experts, and then adds nothing.
  template <class Scalar>
  void add(const Routing<Scalar>& routing) {
    detail::require(routing.num_experts >= num_experts(), "routing: expected num_experts = ", num_experts(),
                    ", or more with shared experts, got ", routing.num_experts);
    detail::require(routing.importance.size() == experts_.size() && routing.load.size() == experts_.size(),
                    "routing: expected importance and load of ", num_experts(), " experts, got ",
                    routing.importance.size(), " and ", routing.load.size(), " values");
    for (const Index expert : routing.experts) detail::require_expert(expert, routing.num_experts);
    rows_ += routing.rows;
    for (const Index expert : routing.experts) {
      if (expert >= num_experts()) continue;
      ++selections_;
      ++experts_[static_cast<std::size_t>(expert)].count;
    }
    for (std::size_t e = 0; e < experts_.size(); ++e) {
      experts_[e].importance += static_cast<double>(routing.importance[e]);
      experts_[e].load += static_cast<double>(routing.load[e]);
    }
  }

  /// Begins a new window.
  void reset() { *this = RoutingStatistics(num_experts()); }

  /// Experts that it was made for.
  Index num_experts() const { return static_cast<Index>(experts_.size()); }
  /// Gated rows of the window.
  Index rows() const { return rows_; }
  /// Rows that selected the expert.
  Index count(Index expert) const { return of(expert).count; }
  /// Of all selections, the part that fell on the expert; 0 in an empty window.
  double share(Index expert) const {
    return selections_ == 0 ? 0 : static_cast<double>(count(expert)) / static_cast<double>(selections_);
  }
  /// Mean weight of the expert where it was selected; 0 where it never was.
  double mean_weight(Index expert) const {
    return count(expert) == 0 ? 0 : importance(expert) / static_cast<double>(count(expert));
  }
  double importance(Index expert) const { return of(expert).importance; }
  double load(Index expert) const { return of(expert).load; }

  /// −Σ p ln p of the shares, in nats: ln N when all experts are used alike, 0 when only one is.
  double entropy() const {
    double sum = 0;
    for (Index e = 0; e < num_experts(); ++e) {
      if (share(e) > 0) sum -= share(e) * std::log(share(e));
    }
    return sum;
  }

  /// Comma-separated: one line for each expert, each beginning with `label`. A label of several columns, as
  /// "100,up", has a header as "step,gate".
  static void write_csv_header(std::ostream& out, std::string_view label = "window") {
    out << label << ",expert,rows,count,share,mean_weight,importance,load,entropy\n";
  }
  template <class Label>
  void write_csv(std::ostream& out, const Label& label) const {
    for (Index e = 0; e < num_experts(); ++e) {
      out << label << ',' << e << ',' << rows() << ',' << count(e) << ',' << share(e) << ',' << mean_weight(e)
          << ',' << importance(e) << ',' << load(e) << ',' << entropy() << '\n';
    }
  }

 private:
  struct Expert {
    Index count = 0;
    double importance = 0;
    double load = 0;
  };

  const Expert& of(Index expert) const {
    detail::require_expert(expert, num_experts());
    return experts_[static_cast<std::size_t>(expert)];
  }

  std::vector<Expert> experts_;
  Index rows_ = 0;
  Index selections_ = 0;
};

}  // namespace meo

#pragma once

/// How every gate of a model uses its experts.

#include <algorithm>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <meo/routing/routing.hpp>
#include <meo/routing/routing_statistics.hpp>
#include <meo/types.hpp>

namespace train_text {

using meo::Index;

/// Statistics of each gate since the construction or the last reset; gates are in the order in which they
/// first came.
class GateStatistics {
 public:
  void add(const std::string& gate, const meo::Routing<float>& routing) {
    auto at = std::find_if(gates_.begin(), gates_.end(), [&](const Gate& g) { return g.first == gate; });
    const auto routed = static_cast<Index>(routing.importance.size());  // without shared experts
    if (at == gates_.end()) at = gates_.emplace(at, gate, meo::RoutingStatistics(routed));
    at->second.add(routing);
  }
  void reset() { gates_.clear(); }

  /// Of the gate that came first.
  const meo::RoutingStatistics& first() const { return gates_.front().second; }

  /// Comma-separated: one line for each expert of each gate.
  static void write_csv_header(std::ostream& out) {
    meo::RoutingStatistics::write_csv_header(out, "step,gate");
  }
  void write_csv(std::ostream& out, Index step) const {
    for (const auto& [gate, statistics] : gates_)
      statistics.write_csv(out, std::to_string(step) + "," + gate);
  }

 private:
  using Gate = std::pair<std::string, meo::RoutingStatistics>;
  std::vector<Gate> gates_;
};

}  // namespace train_text

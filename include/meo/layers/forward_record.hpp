#pragma once

/// Which forward has left what is in a workspace, so that no backward takes it for another's.

#include <algorithm>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include <meo/errors.hpp>
#include <meo/layers/layer_options.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// The layer that a forward was of.
struct LayerIdentity {
  /// Of the experts' weights: a move takes it along, a copy has another, and so has every other layer that
  /// lives at the same time. An update of the weights in place does not change it.
  const void* address = nullptr;
  std::string_view kind;  ///< as "MEO"
  LayerOptions options;
};

/// Throws unless `got` are the offsets `expected`. name: of what they divide the batch into.
inline void require_same_offsets(std::span<const Index> expected, std::span<const Index> got,
                                 std::string_view name) {
  require(expected.size() == got.size(), "context: expected a forward of ", expected.size() - 1, " ", name,
          "s, got one of ", got.size() - 1);
  const auto differ = static_cast<std::size_t>(
      std::mismatch(expected.begin(), expected.end(), got.begin()).first - expected.begin());
  if (differ == expected.size()) return;
  throw std::invalid_argument(message("context: expected a forward with ",
                                      expected[differ] - expected[differ - 1], " tokens in ", name, " ",
                                      differ - 1, ", got one with ", got[differ] - got[differ - 1]));
}

/// Empty from the moment a forward begins until it finishes, and after a move.
class ForwardRecord {
 public:
  void clear() { offsets_.clear(); }

  /// A forward has finished. has_gate: whether the layer's gate decided, instead of a routing from elsewhere.
  /// descriptions: offsets of those that the gate has seen, of which task_of(b) is that of sequence b; none
  /// unless it sees some.
  template <class TaskOf>
  void set(const LayerIdentity& layer, bool has_gate, std::span<const Index> offsets,
           std::span<const Index> descriptions, const TaskOf& task_of) {
    layer_ = layer;
    has_gate_ = has_gate;
    descriptions_.assign(descriptions.begin(), descriptions.end());
    tasks_.clear();
    if (!descriptions.empty()) {
      for (Index b = 0; b + 1 < static_cast<Index>(offsets.size()); ++b) tasks_.push_back(task_of(b));
    }
    offsets_.assign(offsets.begin(), offsets.end());
  }

  /// Throws std::invalid_argument unless that is what set was last called with. A backward that does not need
  /// the gate takes either forward.
  template <class TaskOf>
  void check(const LayerIdentity& layer, bool needs_gate, std::span<const Index> offsets,
             std::span<const Index> descriptions, const TaskOf& task_of) const {
    require(!offsets_.empty(),
            "context: expected what a forward leaves, got one that no forward has finished with");
    require(layer_.kind == layer.kind, "context: expected an ", layer.kind, " layer's, got an ", layer_.kind,
            " layer's");
    require(layer_.options == layer.options,
            "context: expected this layer's, got that of a layer of other options");
    require(layer_.address == layer.address,
            "context: expected this layer's, got that of another, if only a copy");
    require(has_gate_ || !needs_gate,
            "context: expected what a forward with the layer's gate leaves, got that of one with a routing "
            "from elsewhere");
    require_same_offsets(offsets, offsets_, "sequence");
    if (!needs_gate || descriptions.empty()) return;
    require_same_offsets(descriptions, descriptions_, "description");
    for (std::size_t b = 0; b < tasks_.size(); ++b) {
      const Index task = task_of(static_cast<Index>(b));
      require(tasks_[b] == task, "context: expected a forward with description ", task, " for sequence ", b,
              ", got one with ", tasks_[b]);
    }
  }

 private:
  LayerIdentity layer_;
  bool has_gate_ = false;
  std::vector<Index> offsets_;
  std::vector<Index> descriptions_;
  std::vector<Index> tasks_;
};

}  // namespace meo::detail

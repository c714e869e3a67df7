#pragma once

/// Where the sequences of a batch begin, also of one that was given without any.

#include <array>
#include <span>

#include <meo/routing/sequences.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// A view of `sequences`, or 0 and `rows` if there are none.
class Offsets {
 public:
  Offsets(const Sequences* sequences, Index rows) : sequences_(sequences), single_{0, rows} {}

  operator std::span<const Index>() const& {  // NOLINT: meant to convert
    if (sequences_ != nullptr) return sequences_->offsets();
    return single_;
  }
  operator std::span<const Index>() const&& = delete;

  Index num_sequences() const { return sequences_ != nullptr ? sequences_->size() : 1; }

 private:
  const Sequences* sequences_;
  std::array<Index, 2> single_;
};

}  // namespace meo::detail

#pragma once

/// Where the rows of one batch lie with several processes: how what a gate knows of its own rows becomes what
/// all know of all rows.

#include <concepts>
#include <span>

#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// None, or a function that adds up sums and counts over the processes, in place and to the same values for
/// each. Every gate calls it once a forward, a process without rows as well. Losses are then those of the
/// whole batch, the same for each process, and backward gives their gradient through the process's own rows:
/// parameters' gradients, added up over the processes, are those that one process with all rows would have
/// found. Keeps no copy: the function must outlive the forward pass that it is passed to.
///
///     const auto add_up = [&](std::span<float> sums, std::span<meo::Index> counts) { … };
///     inputs.reduction = meo::StatisticsReduction<float>(add_up);
template <class Scalar>
class StatisticsReduction {
 public:
  /// What sums are formed in: Scalar, or float for one of 16 bits.
  using Sum = detail::Sum<Scalar>;

  StatisticsReduction() = default;

  /// add_up: called as add_up(std::span<Sum>, std::span<Index>).
  template <std::invocable<std::span<detail::Sum<Scalar>>, std::span<Index>> Function>
  explicit StatisticsReduction(Function& add_up) : function_(&add_up), call_(&call<Function>) {}

  /// Whether there are other processes.
  explicit operator bool() const { return call_ != nullptr; }

  /// Adds up; there must be other processes.
  void operator()(std::span<Sum> sums, std::span<Index> counts) const { call_(function_, sums, counts); }

 private:
  template <class Function>
  static void call(const void* function, std::span<Sum> sums, std::span<Index> counts) {
    (*const_cast<Function*>(static_cast<const Function*>(function)))(sums, counts);
  }

  const void* function_ = nullptr;
  void (*call_)(const void*, std::span<Sum>, std::span<Index>) = nullptr;
};

}  // namespace meo

#pragma once

/// Errors of one rank that are known to all: an exception that only one rank throws would leave the others
/// waiting for it.
///
///     int main(int argc, char** argv) {
///       const meo::mpi::Environment environment(argc, argv);
///       const meo::mpi::Communicator world;
///       return meo::mpi::run(world, [&] { … });
///     }

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <meo/distributed/communicator.hpp>
#include <meo/errors.hpp>
#include <meo/routing/inputs.hpp>
#include <meo/routing/statistics_reduction.hpp>
#include <meo/sums.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

namespace detail {

/// Where a checksum, FNV-1a, begins, and what it is with another word or byte behind.
inline constexpr std::uint64_t empty_checksum = 0xcbf29ce484222325;
constexpr std::uint64_t checksum_with(std::uint64_t sum, std::uint64_t word) {
  return (sum ^ word) * 0x100000001b3;
}

/// The types of exceptions that are the same on all ranks; others become an Error.
enum class Failure : int { none, invalid_argument, domain_error, logic_error, other };

/// What went wrong on this rank.
struct Outcome {
  Failure failure = Failure::none;
  std::string message;
};

/// Calls work() and catches what it throws.
template <class Work>
Outcome outcome_of(const Work& work) {
  try {
    work();
    return {};
  } catch (const std::invalid_argument& error) {
    return {Failure::invalid_argument, error.what()};
  } catch (const std::domain_error& error) {
    return {Failure::domain_error, error.what()};
  } catch (const std::logic_error& error) {
    return {Failure::logic_error, error.what()};
  } catch (const std::exception& error) {
    return {Failure::other, error.what()};
  } catch (...) {
    return {Failure::other, "something that is no std::exception was thrown"};
  }
}

[[noreturn]] inline void rethrow(Failure failure, const std::string& message) {
  if (failure == Failure::invalid_argument) throw std::invalid_argument(message);
  if (failure == Failure::domain_error) throw std::domain_error(message);
  if (failure == Failure::logic_error) throw std::logic_error(message);
  throw Error(message);
}

/// Throws on all ranks what has failed on one.
inline void throw_from(const Communicator& communicator, int rank, const Outcome& outcome) {
  std::array<Index, 2> size{static_cast<Index>(outcome.failure), static_cast<Index>(outcome.message.size())};
  communicator.broadcast(std::span<Index>(size), rank);
  std::string message = communicator.rank() == rank ? outcome.message : std::string();
  message.resize(static_cast<std::size_t>(size[1]));
  communicator.broadcast(std::span<char>(message), rank);
  rethrow(static_cast<Failure>(size[0]), message + " (on rank " + std::to_string(rank) + ")");
}

/// A number of each rank, on all; throws on all what the first rank has failed with, if one has.
inline std::vector<std::uint64_t> values_of_all(const Communicator& communicator, const Outcome& outcome,
                                                std::uint64_t value) {
  const auto ranks = static_cast<std::size_t>(communicator.size());
  const std::array<std::uint64_t, 2> own{outcome.failure == Failure::none ? 0u : 1u, value};
  std::vector<std::uint64_t> all(2 * ranks);
  communicator.all_gather(std::span<const std::uint64_t>(own), std::span<std::uint64_t>(all));
  std::vector<std::uint64_t> values;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    if (all[2 * rank] != 0) throw_from(communicator, static_cast<int>(rank), outcome);
    values.push_back(all[2 * rank + 1]);
  }
  return values;
}

}  // namespace detail

/// Calls work() on every rank; if it throws on any, all throw the same: what the first of those ranks has
/// thrown, with the rank behind its message. std::invalid_argument, std::domain_error and std::logic_error
/// stay of their type, all else becomes an Error. `work` is each rank's own affair: nothing in it may wait
/// for another. Collective; sends two numbers.
template <class Work>
void agree(const Communicator& communicator, const Work& work) {
  detail::values_of_all(communicator, detail::outcome_of(work), 0);
}

/// The same where work() returns a number of 64 bits, as a checksum, that has to be the same on all ranks;
/// where it is not, all throw std::invalid_argument. what: that it is of.
template <class Work>
void agree_on(const Communicator& communicator, std::string_view what, const Work& work) {
  std::uint64_t value = 0;
  const detail::Outcome outcome = detail::outcome_of([&] { value = work(); });
  const auto values = detail::values_of_all(communicator, outcome, value);
  for (std::size_t rank = 1; rank < values.size(); ++rank) {
    meo::detail::require(values[rank] == values[0], what,
                         ": expected the same on all ranks, got another on rank ", rank, " than on rank 0");
  }
}

/// What make() returns, if it throws on no rank; see agree.
template <class Make>
auto agreed(const Communicator& communicator, const Make& make) {
  std::optional<decltype(make())> made;
  agree(communicator, [&] { made.emplace(make()); });
  return *std::move(made);
}

/// As agree, of work(inputs) that may wait for the others in inputs.reduction: it is given one that they all
/// come to, or none. The reduction is over these ranks; where it is over others as well, these wait for what
/// is thrown here.
template <class Scalar, class Work>
void agree_reducing(const Communicator& communicator, const Inputs<Scalar>& inputs, const Work& work) {
  if (!inputs.reduction) return agree(communicator, [&] { work(inputs); });
  std::exception_ptr thrown;  // what all have thrown instead of reducing
  const auto reduce = [&](std::span<meo::detail::Sum<Scalar>> sums, std::span<Index> counts) {
    try {
      agree(communicator, [] {});
    } catch (...) {
      thrown = std::current_exception();
      throw;
    }
    inputs.reduction(sums, counts);
  };
  Inputs<Scalar> told = inputs;
  told.reduction = StatisticsReduction<Scalar>(reduce);
  const detail::Outcome outcome = detail::outcome_of([&] { work(std::as_const(told)); });
  if (thrown) std::rethrow_exception(thrown);
  detail::values_of_all(communicator, outcome, 0);
}

/// Throws std::invalid_argument on all ranks unless `value` is the same on all. Collective.
inline void require_same(const Communicator& communicator, std::string_view what, Index value) {
  std::vector<Index> values(static_cast<std::size_t>(communicator.size()));
  communicator.all_gather(std::span<const Index>(&value, 1), std::span<Index>(values));
  for (std::size_t rank = 1; rank < values.size(); ++rank) {
    meo::detail::require(values[rank] == values[0], what, ": expected the same on all ranks, got ", values[0],
                         " on rank 0 and ", values[rank], " on rank ", rank);
  }
}

namespace detail {

/// How long a rank that fails looks for others that have failed as well.
inline constexpr std::chrono::milliseconds failure_window{300};

/// Whether a lower rank fails within the window, too. Then it is that one's message that is printed.
inline bool lower_rank_fails(const Communicator& failures) {
  constexpr int tag = 1;
  static constexpr char note = 0;  // lives as long as what is sent may
  for (int rank = failures.rank() + 1; rank < failures.size(); ++rank) {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Isend(&note, 1, MPI_CHAR, rank, tag, failures.handle(), &request), "MPI_Isend");
    check(MPI_Request_free(&request), "MPI_Request_free");
  }
  if (failures.rank() == 0) return false;
  const auto end = std::chrono::steady_clock::now() + failure_window;
  while (std::chrono::steady_clock::now() < end) {
    int is_there = 0;
    check(MPI_Iprobe(MPI_ANY_SOURCE, tag, failures.handle(), &is_there, MPI_STATUS_IGNORE), "MPI_Iprobe");
    if (is_there != 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

/// Ends all ranks, with one message of the first rank that has failed. Does not return.
inline void end_all(const Communicator& failures, std::string_view message) {
  bool is_first = true;
  try {
    is_first = !lower_rank_fails(failures);
  } catch (const Error&) {  // NOLINT: MPI itself may be what has failed; two messages are better than none
  }
  if (is_first) {
    std::fprintf(stderr, "rank %d of %d: %.*s\n", failures.rank(), failures.size(),
                 static_cast<int>(message.size()), message.data());
    std::fflush(stderr);
  } else {
    std::this_thread::sleep_for(10 * failure_window);  // the one that prints ends this one
  }
  MPI_Abort(failures.handle(), 1);
}

}  // namespace detail

/// Calls function(), and returns 0. If it throws on any rank, that rank prints what and ends all ranks, with
/// status 1: whether they wait for it or not, none goes on by itself. If several ranks throw at about the
/// same time, as where all were given the same bad input, one of them prints. For main; collective.
template <class Function>
int run(const Communicator& communicator, const Function& function) {
  const Communicator failures(communicator.handle());
  const detail::Outcome outcome = detail::outcome_of(function);
  if (outcome.failure != detail::Failure::none) detail::end_all(failures, outcome.message);
  return 0;
}

}  // namespace meo::mpi

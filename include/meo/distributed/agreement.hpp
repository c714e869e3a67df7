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
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <meo/distributed/communicator.hpp>
#include <meo/errors.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

namespace detail {

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

/// Throws on all ranks what has failed on the first of those where something has. failures: of each rank.
inline void throw_first(const Communicator& communicator, const Outcome& outcome,
                        std::span<const Failure> failures) {
  for (int rank = 0; rank < communicator.size(); ++rank) {
    const Failure failure = failures[static_cast<std::size_t>(rank)];
    if (failure == Failure::none) continue;
    std::array<Index, 1> size{static_cast<Index>(outcome.message.size())};
    communicator.broadcast(std::span<Index>(size), rank);
    std::string message = communicator.rank() == rank ? outcome.message : std::string();
    message.resize(static_cast<std::size_t>(size[0]));
    communicator.broadcast(std::span<char>(message), rank);
    rethrow(failure, message + " (on rank " + std::to_string(rank) + ")");
  }
}

}  // namespace detail

/// Calls work() on every rank; if it throws on any, all throw the same: what the first of those ranks has
/// thrown, with the rank behind its message. std::invalid_argument, std::domain_error and std::logic_error
/// stay of their type, all else becomes an Error. `work` is each rank's own affair: nothing in it may wait
/// for another. Collective; sends one number.
template <class Work>
void agree(const Communicator& communicator, const Work& work) {
  const detail::Outcome outcome = detail::outcome_of(work);
  std::vector<detail::Failure> failures(static_cast<std::size_t>(communicator.size()));
  communicator.all_gather(std::span<const detail::Failure>(&outcome.failure, 1),
                          std::span<detail::Failure>(failures));
  detail::throw_first(communicator, outcome, failures);
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

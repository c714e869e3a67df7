#pragma once

/// Processes that work together, by MPI: which of them this is, and what they do in common.
///
/// Every call but rank(), size() and handle() is for all ranks: each has to make it, in the same order. One
/// thread of a process makes them, as MPI_THREAD_FUNNELED has it. Values are sent as they lie in memory, so
/// the machines have to be of one kind, and a program of one build.

#include <algorithm>
#include <array>
#include <cstddef>
#include <exception>
#include <limits>
#include <list>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// MPI's C interface: some libraries would have their old one of C++ linked as well.
#if !defined(OMPI_SKIP_MPICXX)
#define OMPI_SKIP_MPICXX 1
#endif
#if !defined(MPICH_SKIP_MPICXX)
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <meo/errors.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::mpi {

/// What MPI could not do, or what went wrong on another rank.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What can be sent: values that are copied byte by byte.
template <class T>
concept Sendable = std::is_trivially_copyable_v<T> &&
    (sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || std::is_same_v<T, long double>);

/// Which of many things, numbered from 0, are a rank's: begin … end − 1.
struct RankRange {
  Index begin;  ///< the first
  Index end;    ///< the one after the last

  /// How many.
  Index size() const { return end - begin; }
  bool operator==(const RankRange&) const = default;
};

/// `count` things split over the ranks in their order, as evenly as can be: the first ranks have one more
/// where they cannot all have as many.
constexpr RankRange range_of(Index count, int ranks, int rank) {
  const Index each = count / ranks, longer = count % ranks;
  const Index begin = rank * each + (std::min<Index>)(rank, longer);
  return {begin, begin + each + (rank < longer ? 1 : 0)};
}

namespace detail {

/// Throws Error for what an MPI function returns if it has failed.
inline void check(int code, std::string_view function) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int size = 0;
  MPI_Error_string(code, text.data(), &size);
  throw Error(meo::detail::message(function, ": ", std::string(text.data(), static_cast<std::size_t>(size))));
}

/// Nothing is summed by MPI, so that only the size counts.
template <Sendable T>
MPI_Datatype datatype() {
  if constexpr (std::is_same_v<T, long double>) return MPI_LONG_DOUBLE;
  else if constexpr (std::is_same_v<T, double>) return MPI_DOUBLE;
  else if constexpr (std::is_same_v<T, float>) return MPI_FLOAT;
  else if constexpr (sizeof(T) == 8) return MPI_UINT64_T;
  else if constexpr (sizeof(T) == 4) return MPI_UINT32_T;
  else if constexpr (sizeof(T) == 2) return MPI_UINT16_T;
  else return MPI_BYTE;
}

/// Throws std::invalid_argument for more values than MPI counts.
inline int checked_count(std::size_t values, std::string_view what) {
  constexpr auto limit = static_cast<std::size_t>((std::numeric_limits<int>::max)());
  meo::detail::require(values <= limit, what, ": expected at most ", limit,
                       " values at a time, as many as MPI counts, got ", values);
  return static_cast<int>(values);
}

/// A communicator that is freed with its last owner.
class OwnedCommunicator {
 public:
  explicit OwnedCommunicator(MPI_Comm of) {
    meo::detail::require(of != MPI_COMM_NULL,
                         "communicator: expected one that this rank is of, got MPI_COMM_NULL");
    check(MPI_Comm_dup(of, &handle_), "MPI_Comm_dup");
    check(MPI_Comm_set_errhandler(handle_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }
  OwnedCommunicator(const OwnedCommunicator&) = delete;
  OwnedCommunicator& operator=(const OwnedCommunicator&) = delete;
  ~OwnedCommunicator() {
    int is_finalized = 0;
    MPI_Finalized(&is_finalized);
    if (is_finalized == 0) MPI_Comm_free(&handle_);
  }

  MPI_Comm handle() const { return handle_; }

  /// The tag of the next exchange; tags[0] and tags[1] are those of its two halves. Exchanges begin in the
  /// same order on all ranks, so that they agree on it.
  int next_tag() {
    constexpr int tags = 32766;  // MPI promises tags up to 32767
    tag_ = (tag_ + 2) % tags;
    return tag_;
  }

  /// Bytes handed to MPI for other ranks.
  std::size_t bytes_sent() const { return bytes_sent_; }
  void add_bytes_sent(std::size_t bytes) { bytes_sent_ += bytes; }

 private:
  MPI_Comm handle_ = MPI_COMM_NULL;
  int tag_ = 0;
  std::size_t bytes_sent_ = 0;
};

}  // namespace detail

/// MPI from here to the end of the object's life; one in a program, at the top of main. Ends all ranks if it
/// is left by an exception, which others may be waiting for.
class Environment {
 public:
  /// Throws Error where MPI cannot start.
  Environment(int& argc, char**& argv) : exceptions_(std::uncaught_exceptions()) {
    int provided = MPI_THREAD_SINGLE;
    detail::check(MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  ~Environment() {
    if (std::uncaught_exceptions() > exceptions_) MPI_Abort(MPI_COMM_WORLD, 1);
    MPI_Finalize();
  }

 private:
  int exceptions_;
};

template <class Scalar>
class Reduction;

/// The ranks that work together. Copies are the same communicator. What is sent through it meets nothing that
/// is sent through another, or by the user's own calls of MPI.
///
/// Throws Error for what MPI cannot do, std::invalid_argument for spans that do not fit one another; on all
/// ranks if they have the same sizes, else see agree.
class Communicator {
 public:
  /// The ranks of `of`, of which it makes a communicator of its own. Throws std::invalid_argument for
  /// MPI_COMM_NULL, which MPI_Comm_split gives to ranks of no color. Collective.
  explicit Communicator(MPI_Comm of = MPI_COMM_WORLD)
      : owned_(std::make_shared<detail::OwnedCommunicator>(of)) {
    detail::check(MPI_Comm_rank(handle(), &rank_), "MPI_Comm_rank");
    detail::check(MPI_Comm_size(handle(), &size_), "MPI_Comm_size");
  }

  /// Which of the ranks 0 … size() − 1 this process is.
  int rank() const { return rank_; }
  int size() const { return size_; }
  /// For calls of MPI. Its errors are returned, not fatal.
  MPI_Comm handle() const { return owned_->handle(); }

  /// Bytes that this rank has handed to MPI for other ranks, by this communicator and its copies: what goes
  /// to several is counted for each, and what stays here is not. How MPI forwards them is its own affair.
  std::size_t bytes_sent() const { return owned_->bytes_sent(); }

  /// Returns when all ranks have come here.
  void barrier() const { detail::check(MPI_Barrier(handle()), "MPI_Barrier"); }

  /// The root's values on all ranks.
  template <Sendable T>
  void broadcast(std::span<T> values, int root = 0) const {
    require_rank(root, "broadcast: root");
    if (rank_ == root) count_sent<T>(values.size() * others());
    detail::check(MPI_Bcast(values.data(), detail::checked_count(values.size(), "broadcast"),
                            detail::datatype<T>(), root, handle()),
                  "MPI_Bcast");
  }

  /// values: n of each rank; all: n · size(), those of rank 0, then those of rank 1, …
  template <Sendable T>
  void all_gather(std::span<const T> values, std::span<T> all) const {
    meo::detail::require(all.size() == values.size() * static_cast<std::size_t>(size_),
                         "all_gather: expected room for ", values.size(), " values of each of ", size_,
                         " ranks, got ", all.size());
    detail::checked_count(all.size(), "all_gather");
    const int count = detail::checked_count(values.size(), "all_gather");
    detail::check(MPI_Allgather(values.data(), count, detail::datatype<T>(), all.data(), count,
                                detail::datatype<T>(), handle()),
                  "MPI_Allgather");
    count_sent<T>(values.size() * others());
  }

  /// The same of other numbers of values from each rank: counts[r] from rank r, one after the other in `all`.
  template <Sendable T>
  void all_gather_v(std::span<const T> values, std::span<T> all, std::span<const Index> counts) const {
    const Ranges ranges = ranges_of(counts, all.size(), "all_gather_v");
    meo::detail::require(std::cmp_equal(values.size(), counts[static_cast<std::size_t>(rank_)]),
                         "all_gather_v: expected ", counts[static_cast<std::size_t>(rank_)],
                         " values of rank ", rank_, ", got ", values.size());
    detail::check(
        MPI_Allgatherv(values.data(), static_cast<int>(values.size()), detail::datatype<T>(), all.data(),
                       ranges.counts.data(), ranges.begins.data(), detail::datatype<T>(), handle()),
        "MPI_Allgatherv");
    count_sent<T>(values.size() * others());
  }

  /// values: n for each rank, those for rank 0 first; received: n of each rank, those of rank 0 first.
  template <Sendable T>
  void all_to_all(std::span<const T> values, std::span<T> received) const {
    meo::detail::require(
        received.size() == values.size() && values.size() % static_cast<std::size_t>(size_) == 0,
        "all_to_all: expected as many values for each of ", size_, " ranks and room for as many, got ",
        values.size(), " and ", received.size());
    const int count = detail::checked_count(values.size(), "all_to_all") / size_;
    detail::check(MPI_Alltoall(values.data(), count, detail::datatype<T>(), received.data(), count,
                               detail::datatype<T>(), handle()),
                  "MPI_Alltoall");
    count_sent<T>(static_cast<std::size_t>(count) * others());
  }

  /// The same of other numbers of values: counts[r] for rank r, and received_counts[r] from it.
  template <Sendable T>
  void all_to_all_v(std::span<const T> values, std::span<const Index> counts, std::span<T> received,
                    std::span<const Index> received_counts) const {
    const Ranges to = ranges_of(counts, values.size(), "all_to_all_v");
    const Ranges from = ranges_of(received_counts, received.size(), "all_to_all_v");
    detail::check(MPI_Alltoallv(values.data(), to.counts.data(), to.begins.data(), detail::datatype<T>(),
                                received.data(), from.counts.data(), from.begins.data(),
                                detail::datatype<T>(), handle()),
                  "MPI_Alltoallv");
    count_sent<T>(values.size() - static_cast<std::size_t>(counts[static_cast<std::size_t>(rank_)]));
  }

  /// Each value becomes the sum over the ranks, ((v₀ + v₁) + v₂) + …, in their order: the same bits on all
  /// ranks and in every run, fixed by the number of ranks and by nothing else. Each rank adds its part of the
  /// values for all, and sends 2 (P − 1) / P of them, as little as a ring does.
  template <Sendable Scalar>
  void all_reduce_sum(std::span<Scalar> values) const {
    start_all_reduce_sum(values).finish();
  }

  /// The same while other work goes on: see Reduction. Reductions are started in the same order on all ranks,
  /// and finished in any, but between the same calls. `values` are left alone until it is finished.
  template <Sendable Scalar>
  [[nodiscard]] Reduction<Scalar> start_all_reduce_sum(std::span<Scalar> values) const;

 private:
  template <class Scalar>
  friend class Reduction;

  /// As MPI has them.
  struct Ranges {
    std::vector<int> counts;
    std::vector<int> begins;
  };

  /// Throws std::invalid_argument unless there is a count for each rank and they add up.
  Ranges ranges_of(std::span<const Index> counts, std::size_t values, std::string_view what) const {
    meo::detail::require(std::cmp_equal(counts.size(), size_), what, ": expected counts for ", size_,
                         " ranks, got ", counts.size());
    detail::checked_count(values, what);
    Ranges ranges;
    Index begin = 0;
    for (const Index count : counts) {
      meo::detail::require(count >= 0 && std::cmp_less_equal(count, values), what,
                           ": expected counts from 0 to ", values, ", got ", count);
      ranges.counts.push_back(static_cast<int>(count));
      ranges.begins.push_back(static_cast<int>((std::min<Index>)(begin, static_cast<Index>(values))));
      begin += count;
    }
    meo::detail::require(std::cmp_equal(begin, values), what, ": expected counts that sum to ", values,
                         ", got ", begin);
    return ranges;
  }

  std::size_t others() const { return static_cast<std::size_t>(size_ - 1); }

  template <class T>
  void count_sent(std::size_t values) const {
    owned_->add_bytes_sent(values * sizeof(T));
  }

  void require_rank(int rank, std::string_view what) const {
    meo::detail::require(rank >= 0 && rank < size_, what, ": expected 0 to ", size_ - 1, ", got ", rank);
  }

  std::shared_ptr<detail::OwnedCommunicator> owned_;
  int rank_ = 0;
  int size_ = 1;
};

namespace detail {

/// What this process has under way, by whatever communicators: who waits for one keeps the others going, for
/// another rank may be waiting for these first.
class UnderWay {
 public:
  UnderWay& operator=(const UnderWay&) = delete;

 protected:
  UnderWay() { all().push_back(this); }
  UnderWay(const UnderWay&) : UnderWay() {}
  ~UnderWay() { all().remove(this); }

  static void progress_all() {
    for (UnderWay* const one : all()) one->progress();
  }

 private:
  virtual void progress() = 0;

  static std::list<UnderWay*>& all() {
    static std::list<UnderWay*> all;
    return all;
  }
};

}  // namespace detail

/// A sum over the ranks that is under way: see Communicator::all_reduce_sum. The values are cut into one part
/// for each rank; a rank is sent its part by all others, adds, and sends the sums to all others.
template <class ScalarType>
class Reduction final : detail::UnderWay {
 public:
  /// What is summed.
  using Scalar = ScalarType;

  /// What was moved from has nothing left to do.
  Reduction(Reduction&& other) noexcept
      : UnderWay(other),
        communicator_(other.communicator_),
        values_(other.values_),
        received_(std::move(other.received_)),
        requests_(std::move(other.requests_)),
        statuses_(std::move(other.statuses_)),
        tag_(other.tag_),
        stage_(std::exchange(other.stage_, Stage::finished)),
        failure_(std::move(other.failure_)) {}
  Reduction& operator=(Reduction&&) = delete;
  /// Waits as finish does; where an exception is under way, which the others may not know of, gives up.
  ~Reduction() {
    if (std::uncaught_exceptions() > 0) give_up();
    try {
      finish();
    } catch (...) {  // NOLINT: a destructor has nobody to tell; who wants to know calls finish
    }
  }

  /// Does what can be done without waiting: to be called now and then during other work. Returns whether the
  /// sums are there.
  bool advance() {
    progress();
    if (failure_) std::rethrow_exception(failure_);
    return stage_ == Stage::finished;
  }

  /// Returns when the sums are there.
  void finish() {
    while (!advance()) progress_all();
  }

 private:
  friend class Communicator;
  enum class Stage { parts, sums, finished };

  Reduction(const Communicator& communicator, std::span<Scalar> values)
      : communicator_(communicator), values_(values), tag_(communicator.owned_->next_tag()) {
    if (ranks() == 1 || values.empty()) return;
    const std::span<Scalar> own = part(communicator_.rank());
    detail::checked_count(part(0).size(), "all_reduce_sum");
    received_.resize(own.size() * ranks());
    for_others([&](int other) {
      receive(std::span(received_).subspan(static_cast<std::size_t>(other) * own.size(), own.size()), other);
    });
    for_others([&](int other) { send(part(other), other); });
    stage_ = Stage::parts;
  }

  std::size_t ranks() const { return static_cast<std::size_t>(communicator_.size()); }

  std::span<Scalar> part(int rank) const {
    const RankRange range = range_of(static_cast<Index>(values_.size()), communicator_.size(), rank);
    return values_.subspan(static_cast<std::size_t>(range.begin), static_cast<std::size_t>(range.size()));
  }

  /// Every rank begins with the one after it, so that not all wait for the same.
  template <class Visit>
  void for_others(const Visit& visit) const {
    for (int step = 1; step < communicator_.size(); ++step)
      visit((communicator_.rank() + step) % communicator_.size());
  }

  void receive(std::span<Scalar> values, int from) {
    detail::check(MPI_Irecv(values.data(), static_cast<int>(values.size()), detail::datatype<Scalar>(), from,
                            tag_, communicator_.handle(), &requests_.emplace_back()),
                  "MPI_Irecv");
  }
  void send(std::span<const Scalar> values, int to) {
    detail::check(MPI_Isend(values.data(), static_cast<int>(values.size()), detail::datatype<Scalar>(), to,
                            tag_, communicator_.handle(), &requests_.emplace_back()),
                  "MPI_Isend");
    communicator_.template count_sent<Scalar>(values.size());
  }

  bool arrived() {
    int all = 0;
    statuses_.resize(requests_.size());
    const int code =
        MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &all, statuses_.data());
    if (code == MPI_SUCCESS && all == 0) return false;
    if (code == MPI_ERR_IN_STATUS || code == MPI_SUCCESS) check_counts(code);
    detail::check(code, "MPI_Testall");
    requests_.clear();
    return true;
  }

  /// What fails is kept for advance and finish: it may be another sum that is waited for.
  void progress() override {
    try {
      if (stage_ == Stage::parts && arrived()) send_sums();
      if (stage_ == Stage::sums && arrived()) stage_ = Stage::finished;
    } catch (...) {
      failure_ = std::current_exception();
      give_up();
    }
  }

  /// Throws where a rank has sent more or fewer values than are summed here.
  void check_counts(int code) const {
    std::size_t i = 0;  // receives come first
    for_others([&](int other) {
      const MPI_Status& status = statuses_[i++];
      const std::size_t expected = part(stage_ == Stage::parts ? communicator_.rank() : other).size();
      int error = MPI_SUCCESS, count = 0;
      if (code == MPI_ERR_IN_STATUS) MPI_Error_class(status.MPI_ERROR, &error);
      if (error == MPI_SUCCESS) MPI_Get_count(&status, detail::datatype<Scalar>(), &count);
      meo::detail::require(
          error != MPI_ERR_TRUNCATE && (error != MPI_SUCCESS || std::cmp_equal(count, expected)),
          "all_reduce_sum: expected as many values on all ranks, got ", values_.size(), " on rank ",
          communicator_.rank(), " and ", error == MPI_SUCCESS ? "fewer" : "more", " on rank ", other);
    });
  }

  void send_sums() {
    const int rank = communicator_.rank();
    const std::span<Scalar> own = part(rank);
    std::copy(own.begin(), own.end(), received_.begin() + rank * static_cast<std::ptrdiff_t>(own.size()));
    for (std::size_t i = 0; i < own.size(); ++i) {
      Scalar sum = received_[i];
      for (std::size_t other = 1; other < ranks(); ++other) sum = sum + received_[other * own.size() + i];
      own[i] = sum;
    }
    ++tag_;
    for_others([&](int other) { receive(part(other), other); });
    for_others([&](int other) { send(own, other); });
    stage_ = Stage::sums;
  }

  /// Nothing is written to memory any more that is about to be freed. Who gives up has said why.
  void give_up() {
    stage_ = Stage::finished;
    const std::size_t receives = requests_.size() / 2;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] == MPI_REQUEST_NULL) continue;
      if (i < receives) {
        MPI_Cancel(&requests_[i]);
        MPI_Wait(&requests_[i], MPI_STATUS_IGNORE);
      } else {
        MPI_Request_free(&requests_[i]);
      }
    }
  }

  Communicator communicator_;
  std::span<Scalar> values_;
  std::vector<Scalar> received_;  ///< this rank's part, of every rank
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  int tag_;
  Stage stage_ = Stage::finished;
  std::exception_ptr failure_;
};

template <Sendable Scalar>
Reduction<Scalar> Communicator::start_all_reduce_sum(std::span<Scalar> values) const {
  return Reduction<Scalar>(*this, values);
}

}  // namespace meo::mpi

#pragma once

/// Bringing the weights that come next into cache while the tile computes.
///
/// A merge reads K times the bytes that its product does. Fetched only when they are needed, they would cost
/// more time than the merge's arithmetic; so every few steps of the tile ask for lines of the next merge's
/// experts, at the rate at which all have arrived when the last tile is done. The rate is a template
/// parameter of the tile: a condition inside its loop costs registers, and with them more than prefetching
/// wins.

#include <algorithm>
#include <array>

#include <meo/kernels/panel.hpp>
#include <meo/kernels/parts/packet.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI::detail {

/// Steps of depth in which a tile asks for as many lines as its rate says: where a core multiplies and adds
/// 64 bytes a cycle, 96 cycles of a tile of any size. Time is what memory delivers by, so a larger tile has
/// shorter intervals.
template <class Scalar>
inline constexpr Index prefetch_interval = (std::max<Index>)(6144 /
                                                                 (Tile<Scalar>::rows * Tile<Scalar>::columns *
                                                                  static_cast<Index>(sizeof(Scalar))),
                                                             1);

/// Rows after that which is packed that are asked for: no hardware foresees them where they are far apart.
inline constexpr Index pack_ahead = 16;

/// Asks for `size` values from `row` on.
template <class Scalar>
void prefetch_row(const Scalar* row, Index size) {
  for (Index at = 0; at < size; at += line_size<Scalar>) prefetch(row + at);
}

/// What comes next, as stretches of memory that are asked for one after another.
class PrefetchQueue {
 public:
  static constexpr Index line_bytes = 64;
  static constexpr Index max_lines = 8;  ///< in an interval; more than memory delivers meanwhile

  /// Adds `bytes` bytes at `begin`, unless they are in the queue or the queue is full: prefetching is no
  /// duty.
  void add(const void* begin, Index bytes) {
    const char* const first = static_cast<const char*>(begin);
    for (Index i = 0; i < count_; ++i) {
      Stretch& stretch = stretches_[static_cast<std::size_t>(i)];
      if (stretch.at <= first && first + bytes <= stretch.end) return;
      if (stretch.end == first) {
        stretch.end += bytes;
        bytes_ += bytes;
        return;
      }
    }
    if (count_ == static_cast<Index>(stretches_.size())) return;
    stretches_[static_cast<std::size_t>(count_++)] = {first, first + bytes};
    bytes_ += bytes;
  }

  /// Sets the rate so that `intervals` intervals suffice for all: the lowest that does, as a core can wait
  /// for few lines at a time, and those of the tile itself are among them. Few rates are enough, as each is a
  /// tile to compile.
  void spread_all(Index intervals) { set_rate(intervals, 4); }

  /// The same, but 4 lines, which do not suffice, for what would need up to 8: where a merge reads first what
  /// comes, 128 tokens of a single merge of 8 experts take 10 to 15 % less (Xeon of 15 GB/s from memory).
  void spread(Index intervals) { set_rate(intervals, max_lines); }

  /// The same; but where no rate suffices, because tiles are short, in `bursts` bursts between the tiles.
  void spread(Index intervals, Index bursts) {
    const Index lines = bytes_ / line_bytes;
    if (lines <= max_lines * intervals) return spread(intervals);
    burst_ = (lines + bursts) / (std::max<Index>)(bursts, 1);
  }

  /// Lines that the next tile asks for in an interval: 0, 1, 2, 4 or 8.
  Index lines() const { return current_ < count_ ? lines_ : 0; }

  /// Where the next tile starts to ask, and where it stops.
  const char* at() const { return stretches_[static_cast<std::size_t>(current_)].at; }
  const char* end() const { return stretches_[static_cast<std::size_t>(current_)].end; }

  /// Asks for the lines of a burst, if there are any.
  void burst() {
    for (Index line = 0; line < burst_ && current_ < count_; ++line) {
      prefetch(at());
      advance(at() + line_bytes);
    }
  }

  /// A tile has asked up to `at`.
  void advance(const char* at) {
    stretches_[static_cast<std::size_t>(current_)].at = at;
    if (at >= end()) ++current_;
  }

 private:
  void set_rate(Index intervals, Index most_at_four) {
    const Index bytes_a_line = line_bytes * (std::max<Index>)(intervals, 1);
    const Index lines = (bytes_ + bytes_a_line - 1) / bytes_a_line;
    lines_ = bytes_ == 0 ? 0 : lines <= 2 ? lines : lines <= most_at_four ? 4 : max_lines;
  }

  struct Stretch {
    const char* at = nullptr;
    const char* end = nullptr;
  };
  std::array<Stretch, 64> stretches_;
  Index count_ = 0;
  Index current_ = 0;
  Index bytes_ = 0;
  Index lines_ = 0;
  Index burst_ = 0;
};

/// Runs a tile at the queue's rate: tile, called as tile.operator()<Lines>(at, end), asks for Lines lines
/// from `at` on at every prefetch interval, as far as `end`, and returns how far it came.
template <class Tile>
void run_ahead(PrefetchQueue& ahead, const Tile& tile) {
  const auto run = [&]<int Lines>() {
    ahead.advance(tile.template operator()<Lines>(ahead.at(), ahead.end()));
  };
  switch (ahead.lines()) {
    case 0:
      tile.template operator()<0>(nullptr, nullptr);
      break;
    case 1:
    case 2:
      run.template operator()<2>();
      break;
    case 4:
      run.template operator()<4>();
      break;
    default:
      run.template operator()<PrefetchQueue::max_lines>();
  }
}

}  // namespace meo::detail

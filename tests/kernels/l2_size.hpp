#pragma once

/// The size of L2 that Eigen reports, and so the blocks of a merge, changed for a while.

#include <Eigen/Core>

#include <meo/types.hpp>

namespace meo::test {

class L2Size {
 public:
  explicit L2Size(Index bytes) : before_(Eigen::l2CacheSize()) { set(bytes); }
  ~L2Size() { set(before_); }
  L2Size(const L2Size&) = delete;
  L2Size& operator=(const L2Size&) = delete;

 private:
  static void set(Index bytes) { Eigen::setCpuCacheSizes(Eigen::l1CacheSize(), bytes, Eigen::l3CacheSize()); }

  Index before_;
};

}  // namespace meo::test

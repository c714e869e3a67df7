#pragma once

/// Ways to spread a block over ranks, and the bytes that they send on paper.

#include <array>
#include <string>
#include <vector>

#include <meo/distributed/traffic.hpp>
#include <meo/types.hpp>

namespace bench::traffic {

using meo::Index;
using meo::mpi::Parallelism;
using meo::mpi::Traffic;
using meo::mpi::TrafficShape;

/// What is drawn. K counts where tokens go to experts.
struct Way {
  Parallelism by;
  Index top_k;
  const char* name;
};
inline constexpr std::array<Way, 6> ways{{{Parallelism::data, 2, "data parallel, MEO"},
                                          {Parallelism::tensor, 2, "tensor parallel, MEO"},
                                          {Parallelism::expert, 2, "expert parallel, K = 2"},
                                          {Parallelism::expert, 8, "expert parallel, K = 8"},
                                          {Parallelism::padded, 2, "padded all-to-all, K = 2"},
                                          {Parallelism::padded, 8, "padded all-to-all, K = 8"}}};

/// A block, and how many of the batch's tokens a rank has, or with tensor parallelism would have. N H over
/// these tokens is the same for both shapes, so that values sent for each feature of a token can be compared.
struct Problem {
  TrafficShape shape;  ///< of one rank and expert
  Index tokens;
};
inline constexpr Problem on_paper{{.features = 768, .hidden_features = 3072, .num_experts = 32}, 16384};
inline constexpr Problem to_count{{.features = 48, .hidden_features = 192, .num_experts = 32}, 1024};

/// One way on so many ranks: bytes of all ranks.
struct Point {
  Way way;
  TrafficShape shape;
  Index tokens;  ///< of all ranks
  Traffic traffic;

  /// Values for a token over D: a forward alone, and a step of training.
  double forward_rows() const { return traffic.forward / row_bytes(); }
  double training_rows() const {
    return (traffic.forward + traffic.backward + traffic.step / static_cast<double>(tokens)) / row_bytes();
  }
  double row_bytes() const { return static_cast<double>(shape.features * shape.value_bytes); }
};

inline Point point_of(const Way& way, const Problem& problem, Index ranks) {
  TrafficShape shape = problem.shape;
  shape.ranks = ranks;
  shape.top_k = way.top_k;
  return {way, shape, problem.tokens * ranks, meo::mpi::traffic(way.by, shape)};
}

/// For 1, 2, 4, … 1024 ranks.
inline std::vector<Point> points_on_paper() {
  std::vector<Point> points;
  for (const Way& way : ways) {
    for (Index ranks = 1; ranks <= 1024; ranks *= 2) points.push_back(point_of(way, on_paper, ranks));
  }
  return points;
}

}  // namespace bench::traffic

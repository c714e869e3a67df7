#pragma once

/// The points of the paper's figure, or of a model of the user's own, counted by meo/flops.hpp.

#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

#include <meo/flops.hpp>
#include <meo/types.hpp>

#include "flops/arguments.hpp"

namespace bench::flops {

using meo::Convention;
using meo::Method;

/// A model of the paper's figure and its two curves in GFLOPs at K = 1, 2, 4, 8, 16, 32, read off the picture
/// to about 0.7 %.
struct PaperModel {
  std::string_view name;
  ModelShape shape;
  std::array<double, 6> moe, meo;
};
inline constexpr std::array<Index, 6> paper_top_k{1, 2, 4, 8, 16, 32};
inline constexpr std::array<PaperModel, 3> paper_models{{
    {"Small",
     meo::bert_small,
     {7.38, 9.54, 13.83, 22.45, 39.65, 74.10},
     {7.38, 7.44, 7.45, 7.47, 7.54, 7.69}},
    {"Base",
     meo::bert_base,
     {28.53, 42.85, 71.7, 129.05, 244.03, 473.53},
     {28.4, 28.6, 28.8, 29.1, 29.5, 30.4}},
    {"Large",
     meo::bert_large,
     {87.15, 138.48, 241.75, 448.6, 860.3, 1685.2},
     {87.15, 87.77, 88.18, 89.02, 90.71, 93.74}},
}};
inline constexpr double tolerance_percent = 1;

/// One point: a model, a method and a number of selected experts.
struct Point {
  std::string_view model;
  Method method;
  Level level;
  Index top_k;
  double gflops_paper_convention, gflops_exact, gflops_dense;
  std::optional<double> paper_gflops;

  double deviation_percent() const { return (gflops_paper_convention / *paper_gflops - 1) * 100; }
  bool agrees_with_paper() const {
    return paper_gflops && std::abs(deviation_percent()) <= tolerance_percent;
  }
};

inline Point count_point(std::string_view model, const ModelShape& shape, Method method, Level level,
                         Index top_k, std::optional<double> paper_gflops) {
  const auto gflops = [&](Method counted, Convention convention) {
    return static_cast<double>(meo::flops(counted, shape, top_k, convention).total()) * 1e-9;
  };
  return {.model = model,
          .method = method,
          .level = level,
          .top_k = top_k,
          .gflops_paper_convention = gflops(method, Convention::paper),
          .gflops_exact = gflops(method, Convention::exact),
          .gflops_dense = gflops(Method::dense, Convention::exact),
          .paper_gflops = paper_gflops};
}

inline std::vector<Point> count_points(const Arguments& arguments) {
  std::vector<Point> points;
  if (arguments.own_model) {
    for (const Method method : {Method::moe, Method::meo})
      for (const Index top_k : arguments.top_k)
        points.push_back(count_point("own", arguments.model, method, arguments.level, top_k, std::nullopt));
    return points;
  }
  for (const PaperModel& model : paper_models)
    for (const Method method : {Method::moe, Method::meo})
      for (std::size_t i = 0; i < paper_top_k.size(); ++i)
        points.push_back(count_point(model.name, model.shape, method, arguments.level, paper_top_k[i],
                                     (method == Method::moe ? model.moe : model.meo)[i]));
  return points;
}

}  // namespace bench::flops

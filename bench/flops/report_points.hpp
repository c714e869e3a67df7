#pragma once

/// The points as CSV and as a table.

#include <iostream>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <meo/flops.hpp>
#include <meo/types.hpp>

#include "flops/arguments.hpp"
#include "flops/method_name.hpp"
#include "flops/points.hpp"
#include "flops/table.hpp"

namespace bench::flops {

inline void write_csv(std::ostream& out, const std::vector<Point>& points) {
  out << "model,method,level,top_k,gflops_paper_convention,gflops_exact,paper_gflops,deviation_percent\n";
  for (const Point& point : points) {
    out << point.model << ',' << name(point.method) << ',' << to_string(point.level) << ',' << point.top_k
        << ',' << fixed(point.gflops_paper_convention, 9) << ',' << fixed(point.gflops_exact, 9) << ',';
    if (point.paper_gflops) out << *point.paper_gflops;
    out << ',';
    if (point.paper_gflops) out << fixed(point.deviation_percent(), 3);
    out << '\n';
  }
}

inline void print_points(const Arguments& arguments, const std::vector<Point>& points) {
  const ModelShape& model = arguments.model;
  std::cout << "GFLOPs of a BERT-like model, one sequence of " << model.tokens
            << " tokens, K experts selected";
  if (arguments.own_model)
    std::cout << "\nlayers " << model.layers << ", features " << model.features << ", hidden features "
              << model.hidden_features << ", vocabulary " << model.vocabulary;
  std::cout
      << "\nGFLOPs: the paper's convention, a merge is 1 per parameter and selected expert; exact: 2\n\n";

  std::vector<std::string> heading{"model", "method", "K", "GFLOPs", "exact", "x dense"};
  if (!arguments.own_model) heading.insert(heading.end(), {"paper", "deviation"});
  Table table(heading, 2);
  std::string_view model_above = points.front().model;
  for (const Point& point : points) {
    if (point.model != std::exchange(model_above, point.model)) table.add({});
    std::vector<std::string> cells{
        std::string(point.model),     std::string(name(point.method)),
        std::to_string(point.top_k),  fixed(point.gflops_paper_convention, 2),
        fixed(point.gflops_exact, 2), fixed(point.gflops_exact / point.gflops_dense, 3)};
    if (point.paper_gflops)
      cells.insert(cells.end(), {fixed(*point.paper_gflops, 2), fixed(point.deviation_percent(), 2) + " %"});
    table.add(std::move(cells));
  }
  std::cout << table << '\n';
}

}  // namespace bench::flops

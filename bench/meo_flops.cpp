/// The paper's figure "GFLOPs against the number of selected experts" as a table, computed by meo/flops.hpp,
/// and one feed-forward projection run for real, so that counted operations and time stand side by side.
/// `--help` says more.

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "flops/arguments.hpp"
#include "flops/help.hpp"
#include "flops/points.hpp"
#include "flops/report_layer.hpp"
#include "flops/report_points.hpp"
#include "flops/run_layer.hpp"
#include "program.hpp"

namespace {

using namespace bench::flops;

constexpr int check_failed = 1;

int run(const Arguments& arguments) {
  if (arguments.help) {
    std::cout << help_text;
    return 0;
  }

  const std::vector<Point> points = count_points(arguments);
  const auto agreeing =
      std::count_if(points.begin(), points.end(), [](const Point& p) { return p.agrees_with_paper(); });
  const bool reproduced = arguments.own_model || agreeing == std::ssize(points);

  if (arguments.csv) {
    std::ofstream file;
    if (*arguments.csv != "-") file.open(*arguments.csv);
    std::ostream& out = *arguments.csv == "-" ? std::cout : file;
    write_csv(out, points);
    out.flush();
    if (!out) throw std::runtime_error("cannot write '" + *arguments.csv + "'");
    return reproduced ? 0 : check_failed;
  }

  print_points(arguments, points);
  if (!arguments.own_model)
    std::cout << agreeing << " of " << points.size() << " points are within 1 % of the paper's figure.\n\n";
  print_items(arguments);
  const bool agreed = !arguments.run || run_layer(arguments);
  return reproduced && agreed ? 0 : check_failed;
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run_program("meo_flops", [&] { return run(parse({argv + 1, argv + argc})); });
}

/// Bytes that ways to spread a mixture over ranks send, on paper for 1 to 1024 ranks, or, where several ranks
/// run it, counted of what is handed to MPI. `--help` says more.

#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>

#include "flops/table.hpp"
#include "program.hpp"
#include "traffic/count.hpp"
#include "traffic/overlap.hpp"
#include "traffic/point.hpp"

namespace {

using namespace bench::traffic;
using bench::flops::fixed;

constexpr std::string_view help_text = R"(usage: meo_traffic [--csv]
       mpirun -n P meo_traffic [--csv|--overlap]

Bytes that all ranks together send for one feed-forward block D -> H -> D with
one router, N experts, K selected, float, and each rank's part of the batch:
data: gradients and statistics are summed over ranks; tensor: hidden features
are split, outputs summed; expert: tokens go to their experts, as many as there
are; padded: the same with a capacity for each expert, of factor 1.

One rank prints what traffic.hpp has on paper for 1 to 1024 ranks, several what
they have handed to MPI in a step of a smaller block. Columns: bytes for a token
in forward and in backward, bytes once a step; "rows": values for a token over
D, of a forward and of a step of training. N H over the tokens of a rank is the
same for both blocks, and so are rows on paper, to 1/D; the last column is rows
counted over rows on paper.

--overlap times what data parallelism sends instead: backward of six blocks, the
same with the sums of gradients after it and during it, and the share of them
that is hidden so.
)";

void write_csv(const std::vector<Point>& points, bool are_counted) {
  std::cout << "source,way,ranks,features,hidden_features,num_experts,tokens,forward_bytes,backward_bytes,"
               "step_bytes,forward_rows,training_rows\n";
  for (const Point& point : points) {
    const TrafficShape& shape = point.shape;
    std::cout << (are_counted ? "counted" : "paper") << ",\"" << point.way.name << "\"," << shape.ranks << ','
              << shape.features << ',' << shape.hidden_features << ',' << shape.num_experts << ','
              << point.tokens << ',' << fixed(point.traffic.forward, 3) << ','
              << fixed(point.traffic.backward, 3) << ',' << fixed(point.traffic.step, 0) << ','
              << fixed(point.forward_rows(), 5) << ',' << fixed(point.training_rows(), 5) << '\n';
  }
}

void print_table(const std::vector<Point>& points, bool are_counted) {
  std::vector<std::string> heading{"way",  "ranks",        "forward",      "backward",
                                   "step", "forward rows", "training rows"};
  if (are_counted) heading.push_back("over paper");
  bench::flops::Table table(heading, 1);
  for (const Point& point : points) {
    std::vector<std::string> cells{point.way.name,
                                   std::to_string(point.shape.ranks),
                                   fixed(point.traffic.forward, 0),
                                   fixed(point.traffic.backward, 0),
                                   fixed(point.traffic.step, 0),
                                   fixed(point.forward_rows(), 2),
                                   fixed(point.training_rows(), 2)};
    if (are_counted) {
      const double paper = point_of(point.way, to_count, point.shape.ranks).training_rows();
      cells.push_back(fixed(point.training_rows() / paper, 3));
    }
    table.add(cells);
  }
  std::cout << table;
}

void print_overlap(const meo::mpi::Communicator& world) {
  if (world.size() == 1) throw bench::UsageError("--overlap: expected several ranks, got one");
  const Overlap overlap = OverlapRun(world).measure(15);
  if (world.rank() != 0) return;
  bench::flops::Table table({"", "ms"}, 1);
  table.add({"backward", fixed(1e3 * overlap.backward, 1)});
  table.add({"backward, then sums", fixed(1e3 * overlap.after, 1)});
  table.add({"sums during backward", fixed(1e3 * overlap.during, 1)});
  std::cout << table << "hidden: " << fixed(100 * overlap.hidden(), 0) << " %\n";
}

void run(const meo::mpi::Communicator& world, const std::vector<std::string>& arguments) {
  bool is_csv = false;
  for (const std::string& argument : arguments) {
    if (argument == "--help") {
      if (world.rank() == 0) std::cout << help_text;
      return;
    }
    if (argument == "--overlap") return print_overlap(world);
    if (argument != "--csv")
      throw bench::UsageError("expected --csv, --overlap or nothing, got '" + argument + "'");
    is_csv = true;
  }
  const bool are_counted = world.size() > 1;
  const std::vector<Point> points = are_counted ? counted_points(world) : points_on_paper();
  if (world.rank() != 0) return;
  if (is_csv) write_csv(points, are_counted);
  else print_table(points, are_counted);
}

}  // namespace

int main(int argc, char** argv) {
  const meo::mpi::Environment environment(argc, argv);
  const meo::mpi::Communicator world;
  return meo::mpi::run(world, [&] { run(world, {argv + 1, argv + argc}); });
}

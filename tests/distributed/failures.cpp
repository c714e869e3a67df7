// failures <case>: what goes wrong on one rank alone, or on all, and has to end all ranks.

#include <filesystem>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>
#include <meo/types.hpp>

namespace {

void work(const meo::mpi::Communicator& world, std::string_view what) {
  const bool is_last = world.rank() + 1 == world.size();
  std::vector<double> values(1003, 1.0);
  if (what == "one_throws" && is_last) throw std::runtime_error("user code has failed");
  if (what == "all_throw") throw std::runtime_error("user code has failed");
  if (what == "no_exception" && is_last) throw 42;
  if (what == "missing_file" && is_last) static_cast<void>(std::filesystem::file_size("no such file"));
  if (what == "under_way") {
    const auto reduction = world.start_all_reduce_sum(std::span<double>(values));
    if (is_last) throw std::runtime_error("user code has failed");
  }
  if (what == "other_size" && is_last) values.pop_back();
  if (what == "bad_argument") world.broadcast(std::span<double>(values), is_last ? -1 : 0);
  if (what == "agreed") {
    meo::mpi::agree(world, [&] {
      if (is_last) throw std::runtime_error("user code has failed");
    });
  }
  world.all_reduce_sum(std::span<double>(values));  // where the others wait
}

}  // namespace

int main(int argc, char** argv) {
  const meo::mpi::Environment environment(argc, argv);
  const meo::mpi::Communicator world;
  const std::string_view what = argc == 2 ? argv[1] : "";
  return meo::mpi::run(world, [&] { work(world, what); });
}

// The smallest user of several processes.

#include <span>
#include <vector>

#include <meo/distributed/agreement.hpp>
#include <meo/distributed/communicator.hpp>

int main(int argc, char** argv) {
  const meo::mpi::Environment environment(argc, argv);
  const meo::mpi::Communicator world;
  std::vector<double> values(3, 1.0);
  const int result = meo::mpi::run(world, [&] { world.all_reduce_sum(std::span<double>(values)); });
  return result != 0 || values != std::vector<double>(3, world.size());
}

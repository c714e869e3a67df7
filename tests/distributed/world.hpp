#pragma once

/// The ranks that run the tests. Each runs every test; where a check fails on one rank and others wait for
/// it, the test ends by its time.

#include <meo/distributed/communicator.hpp>

inline const meo::mpi::Communicator& world() {
  static int argc = 0;
  static char** argv = nullptr;
  static const meo::mpi::Environment environment(argc, argv);
  static const meo::mpi::Communicator world;
  return world;
}

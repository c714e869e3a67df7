#pragma once

/// The machine and the build that times are of.

#include <fstream>
#include <string>

#include <Eigen/Core>

#include <meo/kernels/parts/packet.hpp>
#include <meo/types.hpp>

#include "instruction_sets.hpp"

namespace bench {

#if defined(__clang__)
inline constexpr const char* compiler = "Clang " __clang_version__;
#elif defined(__GNUC__)
inline constexpr const char* compiler = "GCC " __VERSION__;
#else
inline constexpr const char* compiler = "unknown";
#endif

/// The value of the first line of a file of /proc that begins with `key`; empty where there is none.
inline std::string proc_value(const std::string& file, const std::string& key) {
  std::ifstream lines("/proc/" + file);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(key)) return line.substr(line.find_first_not_of(" \t:", key.size()));
  }
  return "";
}

/// Bytes that can be had without swapping; where the system does not say, 4 GiB.
inline double available_bytes() {
  const std::string kilobytes = proc_value("meminfo", "MemAvailable");
  return kilobytes.empty() ? 0x1p32 : 1024 * std::stod(kilobytes);
}

/// Processor, caches and packets, as the blocks of products see them.
inline std::string describe_machine() {
  const std::string processor = proc_value("cpuinfo", "model name");
  const auto kibibytes = [](std::ptrdiff_t bytes) { return std::to_string(bytes / 1024) + " KiB"; };
  return (processor.empty() ? "unknown processor" : processor) + ", L1 " + kibibytes(Eigen::l1CacheSize()) +
         ", L2 " + kibibytes(Eigen::l2CacheSize()) + ", packets of " +
         std::to_string(sizeof(meo::detail::Packet<float>)) + " bytes in " +
         std::to_string(meo::detail::num_registers) + " registers";
}

}  // namespace bench

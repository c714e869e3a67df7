#pragma once

/// Where the golden files (tests/goldens/README.md, tests/goldens_models/README.md) are.

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

namespace meo::test {

/// The paths of all golden files whose name contains `part`, in the order of their numbers.
inline std::vector<std::filesystem::path> golden_files(const std::string& part = "",
                                                       const std::string& folder = "goldens") {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(MEO_TEST_DATA_DIR "/" + folder)) {
    if (entry.path().extension() == ".safetensors" &&
        entry.path().filename().string().find(part) != std::string::npos) {
      paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace meo::test

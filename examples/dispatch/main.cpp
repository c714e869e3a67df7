/// One program for all x86-64 machines: one learns how a layer is compiled once for each instruction set, as
/// shared objects with hidden symbols that may stand side by side, and how the best is chosen at run time.
/// The CMakeLists.txt has the flags. Without arguments it takes the best; or the name of one of them:
/// baseline, avx2 or avx512.

#include <algorithm>
#include <dlfcn.h>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "layer.hpp"

namespace {

struct Variant {
  std::string name;
  bool runs_here;
};

/// The best comes first.
std::vector<Variant> variants() {
  return {{"avx512", __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")},
          {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
          {"baseline", true}};
}

/// From the program's own folder.
RunLayer* load(const std::string& name) {
  const auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  void* const library = dlopen((folder / ("libdispatch_" + name + ".so")).c_str(), RTLD_NOW | RTLD_LOCAL);
  return library == nullptr ? nullptr : reinterpret_cast<RunLayer*>(dlsym(library, "run_layer"));
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<Variant> all = variants();
  const auto chosen = std::find_if(all.begin(), all.end(), [&](const Variant& variant) {
    return variant.runs_here && (argc < 2 || variant.name == argv[1]);
  });
  if (chosen == all.end()) {
    std::cerr << "dispatch: expected baseline, avx2 or avx512, one that this machine has, got " << argv[1]
              << '\n';
    return 2;
  }
  RunLayer* const run = load(chosen->name);
  if (run == nullptr) {
    std::cerr << "dispatch: " << dlerror() << '\n';
    return 1;
  }
  const std::size_t tokens = 128;
  const std::vector<float> x(tokens * 768, 0.5f);
  std::vector<float> y(tokens * 3072);
  if (run(x.data(), tokens, 42, y.data()) != 0) return 1;
  std::cout << chosen->name << ": the first of y is " << y[0] << '\n';
}

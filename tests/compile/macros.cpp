/// The headers where macros are named min and max, as those of windows.h are unless it is told not to have
/// them.

// What the library includes comes before the macros: it cannot do with them.
// clang-format off
#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <clocale>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <limits>
#include <locale>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numbers>
#include <numeric>
#include <optional>
#include <ostream>
#include <random>
#include <ranges>
#include <set>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#include <Eigen/Core>
#include <nlohmann/json.hpp>
#if __has_include(<mpi.h>)
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#endif
// clang-format on

#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))

#if __has_include(<mpi.h>)
#include <meo/distributed/checkpoint.hpp>
#include <meo/distributed/expert_parallel.hpp>
#include <meo/distributed/gradient_norm.hpp>
#include <meo/distributed/gradient_reducer.hpp>
#include <meo/distributed/statistics_sum.hpp>
#include <meo/distributed/tensor_parallel_projections.hpp>
#include <meo/distributed/traffic.hpp>
#endif
#include <meo/io/checkpoint.hpp>
#include <meo/io/family_block.hpp>
#include <meo/io/safetensors.hpp>
#include <meo/meo.hpp>

template class meo::MixtureLayer<float, Eigen::Dynamic, meo::Moe>;
template class meo::MixtureLayer<float, Eigen::Dynamic, meo::Meo>;

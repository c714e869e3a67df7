# Where the dependencies come from: the target if a parent project has it already, else the machine's own package,
# else, with MEO_FETCH_DEPENDENCIES, a pinned archive. The pinned versions are the ones of Debian 12.

include(FetchContent)

# SOURCE_SUBDIR names no folder: of the first two only the headers are wanted, not their own build, whose targets would
# have to be exported along with ours.
FetchContent_Declare(Eigen3 SYSTEM SOURCE_SUBDIR headers-only
  URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz
  URL_HASH SHA256=8586084f71f9bde545ee7fa6d00288b264a2b7ac3607b974e54d13e7162c1c72
  DOWNLOAD_EXTRACT_TIMESTAMP ON)
FetchContent_Declare(nlohmann_json SYSTEM SOURCE_SUBDIR headers-only
  URL https://github.com/nlohmann/json/releases/download/v3.11.2/json.tar.xz
  URL_HASH SHA256=8c4b26bf4b422252e13f332bc5e388ec0ab5c3443d24399acb675e68278d341f
  DOWNLOAD_EXTRACT_TIMESTAMP ON)
FetchContent_Declare(Catch2 SYSTEM
  URL https://github.com/catchorg/Catch2/archive/refs/tags/v2.13.10.tar.gz
  URL_HASH SHA256=d54a712b7b1d7708bc7a819a8e6e47b2fde9536f487b89ccbca295072a7d9943
  DOWNLOAD_EXTRACT_TIMESTAMP ON)
FetchContent_Declare(benchmark SYSTEM
  URL https://github.com/google/benchmark/archive/refs/tags/v1.7.1.tar.gz
  URL_HASH SHA256=6430e4092653380d9dc4ccb45a1e2dc9259d581f4866dc0759713126056bc1d7
  DOWNLOAD_EXTRACT_TIMESTAMP ON)

function(meo_missing package debian_package)
  message(FATAL_ERROR "meo: ${package} was not found. Install it, on Debian by\n"
                      "  apt-get install ${debian_package}\n"
                      "or download it by configuring with\n"
                      "  -D MEO_FETCH_DEPENDENCIES=ON")
endfunction()

# meo_part(<name> <default>): a cache variable MEO_BUILD_<NAME>. ON: the part is wanted, and a dependency of it that is
# missing is an error; AUTO: what of it this machine has the dependencies for; OFF: not at all.
function(meo_part name default)
  string(TOUPPER MEO_BUILD_${name} variable)
  set(${variable} ${default} CACHE STRING "Build the ${name}: ON, OFF, or AUTO, as far as its dependencies are found")
  set_property(CACHE ${variable} PROPERTY STRINGS AUTO ON OFF)
endfunction()

# meo_leave_out(<part> <what> <package> <debian package>): what of a part cannot be built for want of the package.
function(meo_leave_out part what package debian_package)
  string(TOUPPER MEO_BUILD_${part} variable)
  if(NOT ${variable} STREQUAL AUTO)
    meo_missing(${package} ${debian_package})
  endif()
  message(STATUS "meo: no ${package} (Debian: ${debian_package}), so ${what} left out")
endfunction()

# Global, because a parent project that links meo::meo must see what meo::meo links.
function(meo_add_headers target include_dir)
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} INTERFACE ${include_dir})
endfunction()

macro(meo_require_eigen)
  if(NOT TARGET Eigen3::Eigen)
    # The version is compared here, since Eigen's own version file lets 3.4 ask for no later major version.
    find_package(Eigen3 QUIET GLOBAL)
    if(Eigen3_FOUND AND Eigen3_VERSION VERSION_LESS 3.4)
      message(FATAL_ERROR "meo: Eigen 3.4 or newer is needed; ${Eigen3_DIR} holds ${Eigen3_VERSION}.")
    elseif(NOT Eigen3_FOUND AND MEO_FETCH_DEPENDENCIES)
      FetchContent_MakeAvailable(Eigen3)
      meo_add_headers(Eigen3::Eigen ${eigen3_SOURCE_DIR})
    elseif(NOT Eigen3_FOUND)
      meo_missing(Eigen libeigen3-dev)
    endif()
  endif()
endmacro()

# Optional: only meo::safetensors needs it.
macro(meo_find_json)
  if(NOT TARGET nlohmann_json::nlohmann_json)
    find_package(nlohmann_json 3 QUIET GLOBAL)
    if(NOT nlohmann_json_FOUND AND MEO_FETCH_DEPENDENCIES)
      FetchContent_MakeAvailable(nlohmann_json)
      meo_add_headers(nlohmann_json::nlohmann_json ${nlohmann_json_SOURCE_DIR}/include)
    endif()
  endif()
endmacro()

# Optional: only meo::mpi needs it. Not where programs are for another system, whose MPI the compiler's wrappers of this
# one do not know. Sets meo_has_mpi: CMake makes MPI::MPI_CXX also of an MPI that does not work.
macro(meo_find_mpi)
  set(meo_has_mpi OFF)
  if(TARGET MPI::MPI_CXX)
    set(meo_has_mpi ON)
  elseif(NOT MEO_MPI STREQUAL OFF)
    if(NOT CMAKE_CROSSCOMPILING OR NOT MEO_MPI STREQUAL AUTO)
      set(MPI_CXX_SKIP_MPICXX ON)
      find_package(MPI QUIET COMPONENTS CXX)
      set(meo_has_mpi ${MPI_CXX_FOUND})
    endif()
    if(NOT meo_has_mpi AND NOT MEO_MPI STREQUAL AUTO)
      message(FATAL_ERROR "meo: MPI was not found. Install it, on Debian by\n"
                          "  apt-get install libopenmpi-dev openmpi-bin")
    elseif(NOT meo_has_mpi)
      message(STATUS "meo: no MPI (Debian: libopenmpi-dev openmpi-bin), so meo::mpi and its tests are left out")
    endif()
  endif()
endmacro()

# Optional: without it the tests are left out.
macro(meo_find_catch)
  if(NOT TARGET Catch2::Catch2)
    find_package(Catch2 QUIET)
    if(NOT Catch2_FOUND AND MEO_FETCH_DEPENDENCIES)
      FetchContent_MakeAvailable(Catch2)
      list(APPEND CMAKE_MODULE_PATH ${catch2_SOURCE_DIR}/contrib)
    endif()
  endif()
endmacro()

# Optional: without it meo_bench is left out.
macro(meo_find_benchmark)
  if(NOT TARGET benchmark::benchmark)
    find_package(benchmark QUIET)
    if(NOT benchmark_FOUND AND MEO_FETCH_DEPENDENCIES)
      set(BENCHMARK_ENABLE_TESTING OFF)
      FetchContent_MakeAvailable(benchmark)
    endif()
  endif()
endmacro()

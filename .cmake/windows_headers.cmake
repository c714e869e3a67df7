# Eigen3::Eigen, nlohmann_json::nlohmann_json and Catch2::Catch2 of this machine's headers, for another system; see
# windows.cmake.

foreach(package IN ITEMS Eigen3::Eigen=eigen3 nlohmann_json::nlohmann_json=nlohmann Catch2::Catch2=catch2)
  string(REGEX REPLACE "=.*" "" target ${package})
  string(REGEX REPLACE ".*=" "" folder ${package})
  set(headers ${CMAKE_BINARY_DIR}/headers/${folder})
  if(EXISTS /usr/include/${folder} AND NOT TARGET ${target})
    file(MAKE_DIRECTORY ${headers})
    file(CREATE_LINK /usr/include/${folder} ${headers}/${folder} SYMBOLIC)
    add_library(${target} INTERFACE IMPORTED GLOBAL)
    target_include_directories(${target} INTERFACE ${headers})
  endif()
endforeach()
target_include_directories(Eigen3::Eigen INTERFACE ${CMAKE_BINARY_DIR}/headers/eigen3/eigen3)
list(APPEND CMAKE_MODULE_PATH /usr/lib/cmake/Catch2)  # catch_discover_tests

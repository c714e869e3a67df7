include(CMakeFindDependencyMacro)
find_dependency(meo)
include("${CMAKE_CURRENT_LIST_DIR}/exporterTargets.cmake")

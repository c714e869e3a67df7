include(CMakeFindDependencyMacro)
find_dependency(meo COMPONENTS safetensors)
include("${CMAKE_CURRENT_LIST_DIR}/exporterTargets.cmake")

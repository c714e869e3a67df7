# meo_add_compiled(<folder>): meo::compiled, the float and double instances of the headers in the folder, compiled with the
# flags of the project that calls it, whose files then compile fast. What io/ needs is among them where nlohmann_json is
# found. Here and, from an installed copy, in the user's project.
function(meo_add_compiled folder)
  set(sources ${folder}/meo/compiled)
  add_library(meo_compiled STATIC EXCLUDE_FROM_ALL
              ${sources}/double_kernels.cpp ${sources}/double_layers.cpp
              ${sources}/float_kernels.cpp ${sources}/float_layers.cpp)
  add_library(meo::compiled ALIAS meo_compiled)
  set_target_properties(meo_compiled PROPERTIES POSITION_INDEPENDENT_CODE ON)  # for shared objects, too
  target_link_libraries(meo_compiled PUBLIC meo::meo)
  target_compile_definitions(meo_compiled PUBLIC MEO_COMPILED)
  if(TARGET nlohmann_json::nlohmann_json)
    target_sources(meo_compiled PRIVATE ${sources}/io.cpp)
    target_link_libraries(meo_compiled PRIVATE nlohmann_json::nlohmann_json)
  endif()
endfunction()

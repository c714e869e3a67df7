# cmake -D COMPILER=… -D NM=… -D SOURCE=… -D INCLUDES=… -D WORK=… -P instances.cmake
#
# Passes if a user of meo::compiled, SOURCE, leaves to the library what takes long to compile: none of these functions is
# in its object file. The library's own scalar of files that have sizes alone, SizeOnly, is the user's to compile.

list(TRANSFORM INCLUDES PREPEND -I)
file(MAKE_DIRECTORY ${WORK})
execute_process(COMMAND ${COMPILER} -std=c++20 -O1 -DMEO_COMPILED ${INCLUDES} -c ${SOURCE} -o ${WORK}/instances.o
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${NM} -C --defined-only ${WORK}/instances.o OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
if(NOT symbols MATCHES "train_all")
  message(FATAL_ERROR "${NM} does not show what ${SOURCE} defines:\n${symbols}")
endif()
string(REGEX REPLACE "[][;]" "_" symbols "${symbols}")  # which would make other lists of it
foreach(function IN ITEMS "::forward\\(" "::backward\\(" "::route\\(" "::step\\(" "::check\\(" "::dense\\("
                          "::set_options\\(" "Context\\(" "Layer\\(" "FeedForward\\(meo" "AdamW\\(" "Sgd\\("
                          "_product<" "_gradient<" "plan_merges" "detail::merge_experts<" "clip_gradient_norm"
                          "load_parts" "save_parts")
  string(REGEX MATCHALL "[^\n]*${function}[^\n]*" found "${symbols}")
  list(FILTER found EXCLUDE REGEX "SizeOnly|~")
  if(found)
    list(JOIN found "\n" found)
    message(SEND_ERROR "users of meo::compiled compile ${function}:\n${found}")
  endif()
endforeach()

# cmake -D PROGRAM=… -D TABLE=… -P traffic.cmake
#
# Passes if the table that bench/figures/traffic.svg is drawn from begins with what meo_traffic has on paper.

execute_process(COMMAND ${PROGRAM} --csv OUTPUT_VARIABLE paper COMMAND_ERROR_IS_FATAL ANY)
file(READ ${TABLE} table)
string(FIND "${table}" "${paper}" place)
if(NOT paper MATCHES "^source,way,ranks," OR NOT place EQUAL 0)
  message(FATAL_ERROR "expected ${TABLE} to begin with\n${paper}")
endif()

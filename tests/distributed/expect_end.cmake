# cmake -D MPIEXEC=… -D FLAG=… -D RANKS=… -D PROGRAM=… -D CASE=… -D MESSAGE=… -P expect_end.cmake
#
# Passes if so many ranks of the program, given the case, fail after a line like MESSAGE, a regular expression, and no
# other line of a rank.

execute_process(COMMAND ${MPIEXEC} ${FLAG} ${RANKS} ${PROGRAM} ${CASE}
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
string(REGEX MATCHALL "rank [0-9]+ of [0-9]+: [^\n]*" messages "${output}")
list(LENGTH messages count)
if(result EQUAL 0 OR NOT count EQUAL 1 OR NOT messages MATCHES "${MESSAGE}")
  message(FATAL_ERROR "expected one message like '${MESSAGE}' and a failure, got ${count}, result ${result}:\n${output}")
endif()

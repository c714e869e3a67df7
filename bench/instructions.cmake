# cmake -D VALGRIND=… -D PROGRAM=… -D COUNTS=… -D RECORD=… -P instructions.cmake
#
# Counts the instructions of a forward of each of PROGRAM's cases. They are the same in every run and on every machine
# with the instructions that PROGRAM was compiled for. RECORD: writes them to the file COUNTS. Otherwise fails for a case
# that takes 3 % more of them than COUNTS says, or that COUNTS lacks.

execute_process(COMMAND ${PROGRAM} OUTPUT_VARIABLE cases OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE "\n" ";" cases "${cases}")
if(NOT RECORD)
  file(READ ${COUNTS} recorded)
endif()

set(lines "")
foreach(case IN LISTS cases)
  execute_process(COMMAND ${VALGRIND} --tool=callgrind --callgrind-out-file=/dev/null "--toggle-collect=*counted_forward*"
                          ${PROGRAM} ${case}
                  ERROR_VARIABLE log RESULT_VARIABLE result)
  if(NOT result EQUAL 0 OR NOT log MATCHES "Collected : ([1-9][0-9]*)")
    message(FATAL_ERROR "callgrind did not count ${case}:\n${log}")
  endif()
  set(count ${CMAKE_MATCH_1})
  string(APPEND lines "${case} ${count}\n")
  if(RECORD)
    message(STATUS "${case}: ${count}")
  elseif(NOT recorded MATCHES "${case} ([0-9]+)\n")
    message(SEND_ERROR "${case}: ${count}, and ${COUNTS} does not say how many there should be")
  else()
    set(before ${CMAKE_MATCH_1})
    math(EXPR limit "${before} * 103 / 100")
    message(STATUS "${case}: ${count} instructions, recorded ${before}")
    if(count GREATER limit)
      message(SEND_ERROR "${case} takes over 3 % more instructions than recorded")
    endif()
  endif()
endforeach()

if(RECORD)
  file(WRITE ${COUNTS} "${lines}")
endif()

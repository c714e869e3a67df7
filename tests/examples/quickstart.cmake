# cmake -D PROGRAM=… -D README=… -P quickstart.cmake: passes if PROGRAM prints what README says.

execute_process(COMMAND ${PROGRAM} OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
file(READ ${README} readme)
string(FIND "${readme}" "\nprints\n\n```\n${output}```\n" position)
if(position EQUAL -1)
  message(FATAL_ERROR "${README} does not say that the first snippet prints\n${output}")
endif()

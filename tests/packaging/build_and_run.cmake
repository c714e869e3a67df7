# cmake -D PROJECT=… -D COPY=… -D WORK=… -D OPTIONS=… -D PREFIX=… -D RUN=… -D ARGUMENTS=… -P build_and_run.cmake
#
# Configures the project (if COPY, a copy of it) with the options in the folder WORK, anew, builds it, installs it into
# PREFIX, if there is one, which then holds nothing else, and runs its programs RUN in WORK, each with the arguments.

file(REMOVE_RECURSE ${WORK})
if(COPY)
  file(COPY ${PROJECT}/ DESTINATION ${WORK}/source)
  set(PROJECT ${WORK}/source)
endif()

execute_process(COMMAND ${CMAKE_COMMAND} -S ${PROJECT} -B ${WORK}/build ${OPTIONS} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build COMMAND_ERROR_IS_FATAL ANY)
if(PREFIX)
  file(REMOVE_RECURSE ${PREFIX})
  execute_process(COMMAND ${CMAKE_COMMAND} --install ${WORK}/build --prefix ${PREFIX} COMMAND_ERROR_IS_FATAL ANY)
endif()
foreach(program IN LISTS RUN)
  execute_process(COMMAND ${WORK}/build/${program} ${ARGUMENTS} WORKING_DIRECTORY ${WORK} COMMAND_ERROR_IS_FATAL ANY)
endforeach()

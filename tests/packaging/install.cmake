# cmake -D BUILD=… -D PREFIX=… -P install.cmake: installs a build into a prefix that holds nothing else.

file(REMOVE_RECURSE ${PREFIX})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${PREFIX} COMMAND_ERROR_IS_FATAL ANY)

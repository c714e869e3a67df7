# cmake -D PKG_CONFIG=… -D PREFIX=… -D VERSION=… -D COMPILER=… -D SOURCE=… -D WORK=… -P pkg_config.cmake
#
# Compiles and runs SOURCE with what pkg-config says of the library installed in PREFIX, and of a copy of that in WORK.

file(REMOVE_RECURSE ${WORK})
file(COPY ${PREFIX}/ DESTINATION ${WORK}/moved)
foreach(prefix IN ITEMS ${PREFIX} ${WORK}/moved)
  set(ENV{PKG_CONFIG_PATH} ${prefix}/share/pkgconfig)
  execute_process(COMMAND ${PKG_CONFIG} --modversion meo OUTPUT_VARIABLE version OUTPUT_STRIP_TRAILING_WHITESPACE
                  COMMAND_ERROR_IS_FATAL ANY)
  if(NOT version STREQUAL VERSION)
    message(FATAL_ERROR "expected version ${VERSION}, got ${version}")
  endif()
  execute_process(COMMAND ${PKG_CONFIG} --cflags --libs meo OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE
                  COMMAND_ERROR_IS_FATAL ANY)
  set(include none)
  separate_arguments(flags UNIX_COMMAND "${flags}")
  foreach(flag IN LISTS flags)
    if(flag MATCHES "^-I(${prefix}/.*)")
      set(include ${CMAKE_MATCH_1})
    endif()
  endforeach()
  if(NOT EXISTS ${include}/meo/meo.hpp)
    message(FATAL_ERROR "expected meo's headers in ${include}")
  endif()
  execute_process(COMMAND ${COMPILER} -std=c++20 ${SOURCE} ${flags} -o ${WORK}/consumer COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${WORK}/consumer COMMAND_ERROR_IS_FATAL ANY)
endforeach()

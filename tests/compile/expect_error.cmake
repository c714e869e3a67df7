# cmake -D COMPILER=… -D SOURCE=… -D INCLUDES=… -P expect_error.cmake
#
# Passes if SOURCE does not compile and the compiler says the text of SOURCE's first line, `// expect: text`, and if
# SOURCE does compile with -DMEO_CONTROL. The control shows that the error comes from the one thing under test. That may
# be flags: `// flags: …` on the second line names those that SOURCE is compiled with, but not the control.

file(READ ${SOURCE} source)
if(NOT source MATCHES "^// expect: ([^\n]+)\n")
  message(FATAL_ERROR "${SOURCE} does not begin with `// expect: text`")
endif()
set(expected "${CMAKE_MATCH_1}")

list(TRANSFORM INCLUDES PREPEND -I)
set(compile ${COMPILER} -std=c++20 -fsyntax-only ${INCLUDES} ${SOURCE})

execute_process(COMMAND ${compile} -DMEO_CONTROL RESULT_VARIABLE failed ERROR_VARIABLE errors)
if(failed)
  message(FATAL_ERROR "the control does not compile either:\n${errors}")
endif()

set(flags "")
if(source MATCHES "^[^\n]+\n// flags: ([^\n]+)\n")
  separate_arguments(flags UNIX_COMMAND "${CMAKE_MATCH_1}")
endif()
execute_process(COMMAND ${compile} ${flags} RESULT_VARIABLE failed ERROR_VARIABLE errors)
if(NOT failed)
  message(FATAL_ERROR "${SOURCE} compiles")
endif()
string(FIND "${errors}" "${expected}" position)
if(position EQUAL -1)
  message(FATAL_ERROR "the compiler does not say `${expected}` but:\n${errors}")
endif()

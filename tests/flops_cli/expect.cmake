# cmake -D "COMMAND=program;argument;…" -D EXIT_CODE=… [-D OUTPUT_EQUALS=file] [-D WRITES=file] [-D OUTPUT_HAS=text]
#       [-D OUTPUT_MATCHES=regex] [-D ERRORS_HAVE=text] -P expect.cmake
#
# Passes if COMMAND returns EXIT_CODE, its standard output is that of a file, has a text in it or matches, and its standard
# error has a text in it, as far as these are given. With WRITES it has to write that file, which is its output then,
# and nothing to standard output.

if(DEFINED WRITES)
  file(REMOVE ${WRITES})
endif()
execute_process(COMMAND ${COMMAND} RESULT_VARIABLE exit_code OUTPUT_VARIABLE output ERROR_VARIABLE errors)
set(said "standard output:\n${output}\nstandard error:\n${errors}")

if(NOT exit_code STREQUAL EXIT_CODE)
  message(FATAL_ERROR "returned ${exit_code}, not ${EXIT_CODE}\n${said}")
endif()

if(DEFINED WRITES)
  if(output)
    message(FATAL_ERROR "it writes to the standard output as well\n${said}")
  endif()
  file(READ ${WRITES} output)
endif()
if(DEFINED OUTPUT_EQUALS)
  file(READ ${OUTPUT_EQUALS} expected)
  if(NOT output STREQUAL expected)
    message(FATAL_ERROR "the output is not what ${OUTPUT_EQUALS} holds but\n${output}")
  endif()
endif()

function(require_text text where)
  string(FIND "${where}" "${text}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "nowhere says `${text}`\n${said}")
  endif()
endfunction()
if(DEFINED OUTPUT_HAS)
  require_text("${OUTPUT_HAS}" "${output}")
endif()
if(DEFINED OUTPUT_MATCHES AND NOT output MATCHES "${OUTPUT_MATCHES}")
  message(FATAL_ERROR "nothing matches `${OUTPUT_MATCHES}`\n${said}")
endif()
if(DEFINED ERRORS_HAVE)
  require_text("${ERRORS_HAVE}" "${errors}")
endif()

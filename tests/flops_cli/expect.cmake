# cmake -D "COMMAND=program;argument;…" -D EXIT_CODE=… [-D OUTPUT_EQUALS=file] [-D OUTPUT_HAS=text] [-D ERRORS_HAVE=text] -P expect.cmake
#
# Passes if COMMAND returns EXIT_CODE, its standard output is that of a file or has a text in it, and its standard
# error has a text in it, as far as these are given.

execute_process(COMMAND ${COMMAND} RESULT_VARIABLE exit_code OUTPUT_VARIABLE output ERROR_VARIABLE errors)
set(said "standard output:\n${output}\nstandard error:\n${errors}")

if(NOT exit_code STREQUAL EXIT_CODE)
  message(FATAL_ERROR "returned ${exit_code}, not ${EXIT_CODE}\n${said}")
endif()

if(DEFINED OUTPUT_EQUALS)
  file(READ ${OUTPUT_EQUALS} expected)
  if(NOT output STREQUAL expected)
    message(FATAL_ERROR "the standard output is not what ${OUTPUT_EQUALS} holds\n${said}")
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
if(DEFINED ERRORS_HAVE)
  require_text("${ERRORS_HAVE}" "${errors}")
endif()

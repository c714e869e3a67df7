# cmake -D MPIEXEC=… -D FLAG=… -D PROGRAM=… -P same_losses.cmake
#
# Passes if the example distributed prints the same with 1, 2 and 3 ranks: losses to six decimals, which fall. Sums over
# ranks are rounded otherwise than those of one; after these steps that shows in the 14th digit.

foreach(ranks IN ITEMS 1 2 3)
  execute_process(COMMAND ${MPIEXEC} ${FLAG} ${ranks} ${PROGRAM} OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  if(ranks EQUAL 1)
    set(expected "${output}")
  elseif(NOT output STREQUAL expected)
    message(FATAL_ERROR "expected of ${ranks} ranks what one prints,\n${expected}got\n${output}")
  endif()
endforeach()
if(NOT expected MATCHES "^step   0: loss 4\\.[0-9]+, .*\nstep 200: loss 0\\.[0-6][0-9]+, balance loss 0\\.[0-9]+\n$")
  message(FATAL_ERROR "expected a loss that falls from above 4 to below 0.7, got\n${expected}")
endif()

# cmake -D COMPILER=… -D INCLUDES=… -D WORK=… -P mixed_flags.cmake
#
# Two translation units of other vector flags, see abi.hpp: in one program they are refused when it starts, in either
# order of linking; a layer passed between them does not link; two shared objects of theirs work side by side.

set(sources ${CMAKE_CURRENT_LIST_DIR}/mixed_flags)
list(TRANSFORM INCLUDES PREPEND -I)
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
set(ENV{LC_ALL} C)

# compile(<object> <source> <flags>...)
function(compile object source)
  execute_process(COMMAND ${COMPILER} -std=c++20 -O0 -fPIC ${ARGN} ${INCLUDES} -c ${sources}/${source} -o ${object}
                  WORKING_DIRECTORY ${WORK} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# link(<program> <arguments>...)
function(link program)
  execute_process(COMMAND ${COMPILER} ${ARGN} -o ${program} WORKING_DIRECTORY ${WORK} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# expect(<succeeds or fails> <text of the output or errors> <command>...)
function(expect outcome text)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${WORK}
                  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
  if((outcome STREQUAL succeeds) AND NOT (result STREQUAL 0) OR (outcome STREQUAL fails) AND (result STREQUAL 0))
    message(SEND_ERROR "expected that it ${outcome}: ${ARGN}\nresult: ${result}\n${output}${errors}")
  endif()
  if(NOT "${output}${errors}" MATCHES "${text}")
    message(SEND_ERROR "expected '${text}' of: ${ARGN}\n${output}${errors}")
  endif()
endfunction()

set(hidden -fvisibility=hidden)
set(wide -mavx2 -mfma)
compile(here.o here.cpp ${hidden})
compile(there.o there.cpp ${hidden} ${wide})
compile(main.o main.cpp)

# In one program: refused, in whichever order.
set(message "for packet[0-9]+_registers16[_a-z]* and for packet[0-9]+_registers16[_a-z]*")
link(one_program main.o here.o there.o)
expect(fails "${message}" ./one_program)
link(other_order main.o there.o here.o)
expect(fails "${message}" ./other_order)

# A layer passed from one to the other.
compile(pass.o pass.cpp)
compile(take.o take.cpp)
compile(take_wide.o take.cpp ${wide})
link(passed pass.o take.o)
expect(succeeds "" ./passed)
expect(fails "take\\(meo::packet16_registers16::MixtureLayer" ${COMPILER} pass.o take_wide.o -o passed_wide)

# Shared objects: with hidden symbols they work, with others they share what is refused.
link(libhere.so -shared here.o)
link(libthere.so -shared there.o)
link(shared main.o -L. -lhere -lthere -Wl,-rpath,${WORK})
expect(succeeds "here right, there right" ./shared)
compile(main_unit.o unit.cpp -DMAIN)
compile(unit_seen.o unit.cpp ${wide})
link(libunit_seen.so -shared unit_seen.o)
link(shared_seen main_unit.o -Wl,--no-as-needed -L. -lunit_seen -Wl,-rpath,${WORK})
expect(fails "${message}" ./shared_seen)

# The check can be turned off.
compile(unit_unseen.o unit.cpp ${wide} -DMEO_ALLOW_MIXED_FLAGS)
link(allowed main_unit.o unit_unseen.o)
expect(succeeds "started" ./allowed)

# cmake -D PORT=… -D WORK=… -D OPTIONS=… -P vcpkg.cmake: runs a port's portfile with stand-ins for vcpkg's functions, which do
# with CMake alone what those are documented to do, in the folder WORK, and looks at what it installs.

set(CURRENT_PORT_DIR ${PORT})
set(CURRENT_PACKAGES_DIR ${WORK}/package)
set(PORT meo)
file(REMOVE_RECURSE ${WORK})

function(vcpkg_cmake_configure)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "SOURCE_PATH" "OPTIONS")
  execute_process(COMMAND ${CMAKE_COMMAND} -S ${arg_SOURCE_PATH} -B ${WORK}/build ${OPTIONS} ${arg_OPTIONS}
                          -D CMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
function(vcpkg_cmake_install)
  execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build --target install COMMAND_ERROR_IS_FATAL ANY)
endfunction()
# A folder higher than it was, so that what leads to the prefix gets shorter.
function(vcpkg_cmake_config_fixup)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "CONFIG_PATH" "")
  file(RENAME ${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH} ${CURRENT_PACKAGES_DIR}/share/${PORT})
  file(REMOVE_RECURSE ${CURRENT_PACKAGES_DIR}/share/cmake)  # where nothing else may have been
  file(GLOB files ${CURRENT_PACKAGES_DIR}/share/${PORT}/*.cmake)
  foreach(file IN LISTS files)
    file(READ ${file} text)
    string(REPLACE "/../../../\" ABSOLUTE" "/../../\" ABSOLUTE" text "${text}")
    string(REPLACE "get_filename_component(_IMPORT_PREFIX \"\${_IMPORT_PREFIX}\" PATH)\nif("
                   "if(" text "${text}")
    file(WRITE ${file} "${text}")
  endforeach()
endfunction()
function(vcpkg_fixup_pkgconfig)
  file(STRINGS ${CURRENT_PACKAGES_DIR}/share/pkgconfig/meo.pc version REGEX "^Version: ")
  if(NOT version)
    message(FATAL_ERROR "expected a share/pkgconfig/meo.pc with a version")
  endif()
endfunction()
function(vcpkg_install_copyright)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "" "FILE_LIST")
  file(COPY_FILE ${arg_FILE_LIST} ${CURRENT_PACKAGES_DIR}/share/${PORT}/copyright)
endfunction()

include(${CURRENT_PORT_DIR}/portfile.cmake)

# What vcpkg looks at after a build: nothing beside include/, and share/ of this port and pkgconfig.
file(GLOB found RELATIVE ${CURRENT_PACKAGES_DIR} ${CURRENT_PACKAGES_DIR}/* ${CURRENT_PACKAGES_DIR}/share/*)
list(SORT found)
if(NOT found STREQUAL "include;share;share/meo;share/pkgconfig")
  message(FATAL_ERROR "expected include, share/meo and share/pkgconfig in the package, got ${found}")
endif()
file(READ ${CURRENT_PORT_DIR}/vcpkg.json manifest)
string(JSON version GET "${manifest}" version)
file(STRINGS ${CURRENT_PACKAGES_DIR}/share/pkgconfig/meo.pc installed REGEX "^Version: ")
if(NOT installed STREQUAL "Version: ${version}")
  message(FATAL_ERROR "expected the version of vcpkg.json, ${version}, got ${installed}")
endif()

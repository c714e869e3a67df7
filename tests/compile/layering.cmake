# cmake -D INCLUDE=… -P layering.cmake
#
# Passes if the headers in the folder INCLUDE include none of a layer above their own, in the order below; if only
# kernels/parts/packet.hpp names Eigen::internal; if only io/ names nlohmann_json, which the library does without; and if every
# name lies in the inline namespace of abi.hpp.

# Folders of meo/ from the bottom to the top; `.` are the headers in meo/ itself, but for meo.hpp.
set(order . kernels experts routing mixing layers training meo.hpp io)

# meo_layer(<path within meo/> <variable>): its place in the order.
function(meo_layer path variable)
  if(path MATCHES "^([^/]+)/|^(meo\\.hpp)$")
    set(layer ${CMAKE_MATCH_1}${CMAKE_MATCH_2})
  else()
    set(layer .)
  endif()
  list(FIND order ${layer} place)
  if(place EQUAL -1)
    message(SEND_ERROR "${path}: ${layer} has no place in the order ${order}")
  endif()
  set(${variable} ${place} PARENT_SCOPE)
endfunction()

file(GLOB_RECURSE headers RELATIVE ${INCLUDE}/meo ${INCLUDE}/meo/*.hpp)
list(LENGTH headers count)
if(count LESS 50)
  message(FATAL_ERROR "expected the library's headers in ${INCLUDE}/meo, found ${count}")
endif()
foreach(header IN LISTS headers)
  meo_layer(${header} place)
  file(STRINGS ${INCLUDE}/meo/${header} includes REGEX "^ *# *include")
  foreach(line IN LISTS includes)
    if(line MATCHES "\"")
      message(SEND_ERROR "${header}: expected <…> in ${line}")
    elseif(line MATCHES "<meo/(.*)>")
      set(included ${CMAKE_MATCH_1})
      meo_layer(${included} included_place)
      if(included_place GREATER place)
        message(SEND_ERROR "${header} includes ${included}, which is of a layer above it")
      endif()
    endif()
  endforeach()

  file(READ ${INCLUDE}/meo/${header} text)
  if(NOT header STREQUAL "kernels/parts/packet.hpp" AND text MATCHES "Eigen::internal")
    message(SEND_ERROR "${header} names Eigen::internal, which kernels/parts/packet.hpp is to keep to itself")
  endif()
  if(NOT header STREQUAL "abi.hpp")
    if(text MATCHES "\nnamespace meo( *[{]|::[^i]|::i[^n])")
      message(SEND_ERROR "${header}: expected namespace meo::inline MEO_ABI, see abi.hpp")
    endif()
    if(text MATCHES "MEO_ABI" AND NOT text MATCHES "#include <meo/(abi|types)\\.hpp>")
      message(SEND_ERROR "${header} names MEO_ABI and includes neither abi.hpp nor types.hpp, which define it")
    endif()
  endif()
  if(NOT header MATCHES "^io/" AND text MATCHES "nlohmann")
    message(SEND_ERROR "${header} names nlohmann, which only io/ needs")
  endif()
endforeach()

# Toolchain file: Windows programs by Debian's g++-mingw-w64-x86-64-posix, run by its wine64.

set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
find_program(MEO_WINE NAMES wine64 wine PATHS /usr/lib/wine DOC "Runs Windows programs")
if(MEO_WINE)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${MEO_WINE})
endif()

# Windows keeps stacks at 16 bytes, and GCC cannot align them further there (its bug 54412): some versions spill 32-byte
# registers by instructions that need 32. With this the assembler takes the other ones, which are as fast.
set(CMAKE_CXX_FLAGS_INIT "-Wa,-muse-unaligned-vector-move")
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)  # the compiler's libraries go along

# The dependencies are headers, the same for every system, but beside them in /usr/include are those of this one: they are
# found through links to them alone.
set(meo_headers ${CMAKE_CURRENT_LIST_DIR}/windows_headers.cmake)
list(APPEND CMAKE_PROJECT_TOP_LEVEL_INCLUDES ${meo_headers})

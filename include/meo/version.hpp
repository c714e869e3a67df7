#pragma once

/// The library's version; CMakeLists.txt reads it from here.

#define MEO_VERSION_MAJOR 0
#define MEO_VERSION_MINOR 1
#define MEO_VERSION_PATCH 0

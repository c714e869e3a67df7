#pragma once

/// The library's version; CMakeLists.txt reads it from here.

/// The first of its three numbers.
#define MEO_VERSION_MAJOR 0
/// The second.
#define MEO_VERSION_MINOR 2
/// The third.
#define MEO_VERSION_PATCH 0

/// One number, to compare versions by: 200 for 0.2.0, 10203 for 1.2.3.
#define MEO_VERSION (MEO_VERSION_MAJOR * 10000 + MEO_VERSION_MINOR * 100 + MEO_VERSION_PATCH)

#define MEO_VERSION_JOIN_EXPANDED(major, minor, patch) #major "." #minor "." #patch
#define MEO_VERSION_JOIN(major, minor, patch) MEO_VERSION_JOIN_EXPANDED(major, minor, patch)
/// As "0.2.0".
#define MEO_VERSION_STRING MEO_VERSION_JOIN(MEO_VERSION_MAJOR, MEO_VERSION_MINOR, MEO_VERSION_PATCH)

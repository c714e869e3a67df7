// expect: meo reports what it cannot do by exceptions: compile without -fno-exceptions
// flags: -fno-exceptions
#include <meo/meo.hpp>

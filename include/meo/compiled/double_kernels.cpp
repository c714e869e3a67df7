/// The kernels for double; see compiled.hpp.

#define MEO_DOUBLE_KERNELS template

#include <meo/meo.hpp>

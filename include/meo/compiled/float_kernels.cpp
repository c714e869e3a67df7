/// The kernels for float; see compiled.hpp.

#define MEO_FLOAT_KERNELS template

#include <meo/meo.hpp>

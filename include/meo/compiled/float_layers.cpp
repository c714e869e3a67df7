/// The layers for float, and what they are made of; see compiled.hpp.

#define MEO_FLOAT_LAYERS template

#include <meo/meo.hpp>

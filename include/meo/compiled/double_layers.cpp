/// The layers for double, and what they are made of; see compiled.hpp.

#define MEO_DOUBLE_LAYERS template

#include <meo/meo.hpp>

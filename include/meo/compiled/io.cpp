/// What meo/io/ has for float and double, and its functions that are no templates; see compiled.hpp. Users of
/// the target need no nlohmann_json.

#define MEO_IO template
#define MEO_DEFINES_IO

#include <meo/io/checkpoint.hpp>
#include <meo/io/family_block.hpp>
#include <meo/io/safetensors.hpp>

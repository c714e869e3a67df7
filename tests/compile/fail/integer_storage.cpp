// expect: meo: Storage must hold fractions as Scalar does, or be std::int8_t; another integer would cut
// weights off
#include <cstdint>

#include <meo/experts/expert_bank.hpp>

#ifdef MEO_CONTROL
using Storage = std::int8_t;
#else
using Storage = std::int16_t;
#endif

void use() { meo::ExpertBank<float, Storage> bank(4, 2, 2, true); }

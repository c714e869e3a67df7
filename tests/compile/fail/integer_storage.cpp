// expect: meo: Storage must hold fractions as Scalar does; an integer would cut weights off
#include <cstdint>

#include <meo/experts/expert_bank.hpp>

#ifdef MEO_CONTROL
using Storage = float;
#else
using Storage = std::int8_t;
#endif

void use() { meo::ExpertBank<float, Storage> bank(4, 2, 2, true); }

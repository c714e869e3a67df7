#pragma once

/// Experts stored in 16 or 8 bits: bf16, half and int8. See meo::ExpertBank.

#include <array>

#include "storage.hpp"

namespace transformer {

/// All that there are. Compiled with small_storage.cpp alone, as they take long.
const std::array<const Storage*, 3>& small_storages();

}  // namespace transformer

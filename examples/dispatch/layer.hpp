#pragma once

/// What the program and the shared objects have in common: plain types alone, since the library's own follow
/// the instruction set.

#include <cstddef>

/// y: tokens × 3072, of x: tokens × 768, each row-major, by a layer that a seed makes. Returns 0, or 1 for
/// what failed.
using RunLayer = int(const float* x, std::size_t tokens, unsigned seed, float* y);

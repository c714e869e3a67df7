#include "support/kernels.hpp"

namespace meo::inline MEO_ABI::detail {

MEO_KERNELS_OF_TESTS(template, long double)

}  // namespace meo::detail

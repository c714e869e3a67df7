#include "support/kernels.hpp"

namespace meo::inline MEO_ABI::detail {

MEO_GRADIENT_KERNEL_INSTANCES(, float);
MEO_GRADIENT_KERNEL_INSTANCES(, double);

}  // namespace meo::detail

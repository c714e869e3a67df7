#include "support/kernels.hpp"

namespace meo::inline MEO_ABI::detail {

MEO_KERNEL_INSTANCES(, float);
MEO_KERNEL_INSTANCES(, double);
MEO_KERNEL_INSTANCES(, long double);

}  // namespace meo::detail

#include "reference/reference.hpp"

namespace meo::reference {

MEO_REFERENCE_INSTANCES(, float);
MEO_REFERENCE_INSTANCES(, double);
MEO_REFERENCE_INSTANCES(, long double);

}  // namespace meo::reference

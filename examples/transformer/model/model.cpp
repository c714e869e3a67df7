#include "model.hpp"

namespace transformer {

template class Model<float>;
template class Model<double>;

}  // namespace transformer

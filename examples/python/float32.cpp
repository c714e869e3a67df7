#include "layers.hpp"

namespace meo_python {

void bind_float32(py::module_ module) { bind_layers<float>(std::move(module)); }

}  // namespace meo_python

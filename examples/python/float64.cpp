#include "layers.hpp"

namespace meo_python {

void bind_float64(py::module_ module) { bind_layers<double>(std::move(module)); }

}  // namespace meo_python

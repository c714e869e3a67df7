/// The library's layers for NumPy: one learns how its matrices, errors and memory go together with another
/// language's. `help(meo.float32.MeoLayer)` in Python says what there is; README.md shows it.

#include <pybind11/pybind11.h>

#include <meo/version.hpp>

namespace meo_python {

void bind_float32(pybind11::module_ module);
void bind_float64(pybind11::module_ module);

}  // namespace meo_python

PYBIND11_MODULE(meo, module) {
  module.doc() =
      "Mixtures of experts at the cost of one expert, on NumPy arrays; float32 and float64 have the layers";
  module.attr("__version__") = MEO_VERSION_STRING;
  meo_python::bind_float32(module.def_submodule("float32", "Layers of 32-bit floats"));
  meo_python::bind_float64(module.def_submodule("float64", "Layers of 64-bit floats"));
}

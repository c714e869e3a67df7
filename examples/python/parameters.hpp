#pragma once

/// A layer's parameters in Python: by the names of the MEO authors' state_dict, and as the flat ranges that
/// they are packed in.

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <meo/io/checkpoint.hpp>
#include <meo/meo.hpp>

#include "arrays.hpp"

namespace meo_python {

template <class Layer>
meo::io::TensorPart<typename Layer::Scalar> find_tensor(Layer& layer, std::string_view name) {
  std::string known;
  for (const auto& part : meo::io::tensor_parts(layer, "")) {
    if (part.name() == name) return part;
    known += (known.empty() ? "" : ", ") + part.name();
  }
  throw py::key_error("expected one of " + known + ", got " + std::string(name));
}

template <class Layer>
py::array get_parameter(Layer& layer, const std::string& name, const py::object& out) {
  using Scalar = typename Layer::Scalar;
  const auto part = find_tensor(layer, name);
  const py::array array = output_array<Scalar>(out, part.shape(), name);
  check_packed<Scalar>(array, part.shape(), name);
  Scalar* const values = static_cast<Scalar*>(const_cast<void*>(array.data()));
  const py::gil_scoped_release released;
  part.read(0, {values, static_cast<std::size_t>(part.size())});
  return array;
}

template <class Layer>
void set_parameter(Layer& layer, const std::string& name, const py::array& array) {
  using Scalar = typename Layer::Scalar;
  const auto part = find_tensor(layer, name);
  check_packed<Scalar>(array, part.shape(), name);
  const py::gil_scoped_release released;
  part.write(0, {static_cast<const Scalar*>(array.data()), static_cast<std::size_t>(part.size())});
}

/// Each range as a view of the layer's own memory, which keeps the layer.
template <class Layer>
py::dict parameter_ranges(const py::object& self) {
  using Scalar = typename Layer::Scalar;
  py::dict ranges;
  for (const auto& range : meo::parameters(self.cast<Layer&>())) {
    ranges[py::str(range.name)] =
        py::array_t<Scalar>(static_cast<Index>(range.values.size()), range.values.data(), self);
  }
  return ranges;
}

template <class Layer, class Class>
void bind_parameters(Class& layer) {
  layer
      .def(
          "shapes",
          [](Layer& self) {
            py::dict shapes;
            for (const auto& part : meo::io::tensor_parts(self, ""))
              shapes[py::str(part.name())] = py::tuple(py::cast(part.shape()));
            return shapes;
          },
          "The shape of each parameter by its name, that of the MEO authors' state_dict.")
      .def("get", &get_parameter<Layer>, py::arg("name"), py::arg("out") = py::none(),
           "A parameter, copied to `out`, or to a new array. Weights are packed, so that no array can be a "
           "view of "
           "one.")
      .def("set", &set_parameter<Layer>, py::arg("name"), py::arg("array"), "Overwrites a parameter.")
      .def("ranges", &parameter_ranges<Layer>,
           "Views of the packed parameters, one-dimensional, for optimisers: a layer of the same options has "
           "the "
           "same ranges. Values that stand for no parameter are zero, and have to stay so.")
      .def(
          "set_zero", [](Layer& self) { meo::set_zero(meo::parameters(self)); },
          "As a step begins with gradients.")
      .def(
          "zeros_like",
          [](const Layer& self) {
            Layer zeros(self);
            meo::set_zero(meo::parameters(zeros));
            return zeros;
          },
          "A layer of the same options, all parameters zero; what backward adds gradients to.")
      .def(
          "initialize",
          [](Layer& self, std::uint64_t seed) {
            std::mt19937_64 rng(seed);
            self.initialize(rng);
          },
          py::arg("seed"), "Start values as PyTorch's nn.Linear has them.")
      .def(
          "load",
          [](Layer& self, const std::string& path, const std::string& prefix) {
            const py::gil_scoped_release released;
            meo::io::load(self, meo::io::SafetensorsReader(path), prefix);
          },
          py::arg("path"), py::arg("prefix") = "", "Fills the layer from a safetensors file.")
      .def(
          "save",
          [](const Layer& self, const std::string& path, const std::string& prefix) {
            const py::gil_scoped_release released;
            meo::io::SafetensorsWriter writer;
            meo::io::save(self, writer, prefix);
            writer.write(path);
          },
          py::arg("path"), py::arg("prefix") = "", "Writes the parameters to a safetensors file.");
}

}  // namespace meo_python

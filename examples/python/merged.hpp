#pragma once

/// Experts that are merged once and kept, as Python classes.

#include <optional>
#include <utility>
#include <vector>

#include <meo/meo.hpp>

#include "arrays.hpp"
#include "inputs.hpp"

namespace meo_python {

/// Kept: a MergedExpert or MergedFeedForward, Workspace: what its forward works in.
template <class Workspace, class Kept>
py::array forward_kept(const Kept& kept, py::array x, const std::optional<std::vector<Index>>& lengths,
                       const py::object& y, Index out_features) {
  using Scalar = typename Kept::Scalar;
  Batch<Scalar> batch(std::move(x), {.lengths = lengths});
  py::array output = output_array<Scalar>(y, batch.x().shape_with(out_features), "y");
  Rows<Scalar> output_rows(output, "y");
  const py::gil_scoped_release released;
  Workspace workspace;
  kept.forward(batch.x().matrix(), batch.inputs(), output_rows.mutable_matrix(), workspace);
  return output;
}

/// A constructor and `merge` that take what a layer or block of this type has decided: a Routing or a
/// context.
template <class Layer, class Decided, class Kept, class Class>
void bind_merging(Class& kept) {
  kept.def(py::init([](const Layer& layer, const Decided& decided, std::optional<Index> row) {
             const py::gil_scoped_release released;
             return Kept(layer, decided, row);
           }),
           py::arg("layer"), py::arg("decided"), py::kw_only(), py::arg("row") = py::none())
      .def(
          "merge",
          [](Kept& self, const Layer& layer, const Decided& decided, std::optional<Index> row) {
            const py::gil_scoped_release released;
            self.merge(layer, decided, row);
          },
          py::arg("layer"), py::arg("decided"), py::kw_only(), py::arg("row") = py::none(),
          "Merges anew, into the same memory.");
}

template <class Scalar>
void bind_merged(py::module_& module) {
  using Lengths = std::optional<std::vector<Index>>;
  const char* const forward_doc =
      "x: tokens x features, all of the one row that was merged, or sequences x tokens x features or with "
      "lengths:\na sequence for each row. Returns y, of x's shape but for the features; writes to the array "
      "y if there is one.";

  using Expert = meo::MergedExpert<Scalar>;
  py::class_<Expert> expert(module, "MergedExpert",
                            "The experts of a layer merged once for each row of a Routing, or for one of "
                            "them, and kept:\na forward costs what one of a dense layer does.");
  bind_merging<meo::MoeLayer<Scalar>, meo::Routing<Scalar>, Expert>(expert);
  bind_merging<meo::MeoLayer<Scalar>, meo::Routing<Scalar>, Expert>(expert);
  expert.def_property_readonly("rows", &Expert::rows, "How many experts are kept.")
      .def(
          "forward",
          [](const Expert& self, py::array x, Lengths lengths, const py::object& y) {
            return forward_kept<meo::Workspace<Scalar>>(self, std::move(x), lengths, y, self.out_features());
          },
          py::arg("x"), py::kw_only(), py::arg("lengths") = py::none(), py::arg("y") = py::none(),
          forward_doc);

  using Block = meo::MergedFeedForward<Scalar, meo::AnyActivation>;
  py::class_<Block> block(module, "MergedFeedForward",
                          "The projections of a block merged by what its gates decided in the last forward "
                          "with a\nFeedForwardContext, and kept; not of a MoE block with one gate, whose "
                          "experts are whole blocks.");
  bind_merging<meo::FeedForward<meo::MoeLayer<Scalar>, meo::AnyActivation>, meo::FeedForwardContext<Scalar>,
               Block>(block);
  bind_merging<meo::FeedForward<meo::MeoLayer<Scalar>, meo::AnyActivation>, meo::FeedForwardContext<Scalar>,
               Block>(block);
  block.def_property_readonly("rows", &Block::rows, "How many blocks are kept.")
      .def(
          "forward",
          [](const Block& self, py::array x, Lengths lengths, const py::object& y) {
            return forward_kept<meo::FeedForwardWorkspace<Scalar>>(self, std::move(x), lengths, y,
                                                                   self.features());
          },
          py::arg("x"), py::kw_only(), py::arg("lengths") = py::none(), py::arg("y") = py::none(),
          forward_doc);
}

}  // namespace meo_python

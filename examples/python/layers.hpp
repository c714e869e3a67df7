#pragma once

/// The layers and blocks of one scalar, and what they take and give, as Python classes.

#include <string>
#include <utility>
#include <vector>

#include <meo/meo.hpp>

#include "arrays.hpp"
#include "inputs.hpp"
#include "merged.hpp"
#include "options.hpp"
#include "parameters.hpp"

namespace meo_python {

inline meo::AnyActivation activation_from(const std::string& name) {
  if (const auto activation = meo::AnyActivation::from_name(name)) return *activation;
  throw py::value_error("activation: expected relu, gelu, gelu_tanh, silu or identity, got " + name);
}

/// A view of values that `owner` has.
template <class Value>
py::array view_of(const std::vector<Value>& values, std::vector<Index> shape, const py::object& owner) {
  py::array view = py::array_t<Value>(std::move(shape), values.data(), owner);
  view.attr("setflags")(py::arg("write") = false);
  return view;
}

/// Whether all rows have top_k pairs.
template <class Scalar>
bool is_uniform(const meo::Routing<Scalar>& routing) {
  for (Index row = 0; row <= routing.rows; ++row) {
    if (routing.begin(row) != row * routing.top_k) return false;
  }
  return true;
}

template <class Scalar>
void bind_routing(py::module_& module) {
  using Routing = meo::Routing<Scalar>;
  const auto pairs = [](const auto member) {
    return [member](const py::object& self) {
      const auto& routing = self.cast<const Routing&>();
      if (is_uniform(routing)) return view_of(routing.*member, {routing.rows, routing.top_k}, self);
      return view_of(routing.*member, {static_cast<Index>((routing.*member).size())}, self);
    };
  };
  py::class_<Routing>(module, "Routing", "What a gate decided for its rows.")
      .def_property_readonly("experts", pairs(&Routing::experts),
                             "rows x experts of each, by falling logit, shared ones last; one row after "
                             "another where some have\nfewer.")
      .def_property_readonly("weights", pairs(&Routing::weights), "Of the same shape.")
      .def_property_readonly(
          "begins",
          [](const Routing& self) {
            py::array_t<Index> begins(self.rows + 1);
            for (Index row = 0; row <= self.rows; ++row) begins.mutable_at(row) = self.begin(row);
            return begins;
          },
          "rows + 1: where each row's begin, counted one row after another.")
      .def_property_readonly(
          "load",
          [](const py::object& self) {
            const auto& routing = self.cast<const Routing&>();
            return view_of(routing.load, {static_cast<Index>(routing.load.size())}, self);
          },
          "How many rows select each expert, or the smooth estimate of it with noise.")
      .def_property_readonly(
          "importance",
          [](const py::object& self) {
            const auto& routing = self.cast<const Routing&>();
            return view_of(routing.importance, {static_cast<Index>(routing.importance.size())}, self);
          },
          "The sum of each expert's weights.")
      .def_readonly("loss", &Routing::loss, "The balance loss times its coefficient.")
      .def(
          "gates",
          [](const Routing& self) {
            py::array_t<Scalar> gates({self.rows, self.num_experts});
            Eigen::Map<meo::Matrix<Scalar>>(gates.mutable_data(), self.rows, self.num_experts) = self.dense();
            return gates;
          },
          "rows x experts, zero where an expert is not selected.");
}

template <class Scalar>
struct BlockRouting {
  Scalar loss;
  py::dict routings;
};

template <class Scalar>
void bind_block_routing(py::module_& module) {
  py::class_<BlockRouting<Scalar>>(module, "BlockRouting", "What the gates of a block decided.")
      .def_readonly("loss", &BlockRouting<Scalar>::loss, "The sum of their balance losses.")
      .def_readonly("routings", &BlockRouting<Scalar>::routings,
                    "up, gate_up and down, as far as they have a gate.");
}

/// What differs between layers and blocks.
template <class Layer>
struct Traits {
  using Scalar = typename Layer::Scalar;
  using Context = meo::Context<Scalar>;
  static Index out_features(const Layer& layer) { return layer.out_features(); }
  static meo::Routing<Scalar> decision(const Layer&, const Context& context, Scalar) {
    return context.routing;
  }
  static Scalar forward(const Layer& layer, Batch<Scalar>& batch, meo::MatrixRef<Scalar> y,
                        Context& context) {
    return layer.forward(batch.x().matrix(), batch.inputs(), y, context).loss;
  }
};
template <class ItsLayer>
struct Traits<meo::FeedForward<ItsLayer, meo::AnyActivation>> {
  using Layer = meo::FeedForward<ItsLayer, meo::AnyActivation>;
  using Scalar = typename Layer::Scalar;
  using Context = meo::FeedForwardContext<Scalar>;
  static Index out_features(const Layer& layer) { return layer.options().features; }
  static BlockRouting<Scalar> decision(const Layer& layer, const Context& context, Scalar loss) {
    BlockRouting<Scalar> decision{loss, {}};
    layer.visit_routings(context, [&](const char* name, const meo::Routing<Scalar>& routing) {
      decision.routings[name] = routing;
    });
    return decision;
  }
  static Scalar forward(const Layer& layer, Batch<Scalar>& batch, meo::MatrixRef<Scalar> y,
                        Context& context) {
    return layer.forward(batch.x().matrix(), batch.inputs(), y, context);
  }
};

template <class Context>
void bind_context(py::module_& module, const char* name) {
  py::class_<Context>(module, name,
                      "What a forward leaves for its backward; belongs to one of them at a time.")
      .def(py::init<>())
      .def(
          "task_embeddings_gradient",
          [](const Context& self) {
            const auto gradient = self.task_embeddings_gradient();
            return py::array(py::array_t<typename std::remove_cvref_t<decltype(gradient)>::Scalar>(
                {gradient.rows(), gradient.cols()}, gradient.data()));
          },
          "Task level: the gradient of task_embeddings, as the last backward left it; tokens x features, a "
          "copy.");
}

template <class Layer>
py::tuple forward(const Layer& layer, py::array x, InputArguments arguments, const py::object& y,
                  typename Traits<Layer>::Context* context) {
  using Scalar = typename Layer::Scalar;
  Batch<Scalar> batch(std::move(x), arguments);
  py::array output = output_array<Scalar>(y, batch.x().shape_with(Traits<Layer>::out_features(layer)), "y");
  Rows<Scalar> output_rows(output, "y");
  typename Traits<Layer>::Context own;
  auto& memory = context == nullptr ? own : *context;
  Scalar loss;
  {
    const py::gil_scoped_release released;
    loss = Traits<Layer>::forward(layer, batch, output_rows.mutable_matrix(), memory);
  }
  return py::make_tuple(std::move(output), Traits<Layer>::decision(layer, memory, loss));
}

template <class Layer>
py::array backward(const Layer& layer, py::array x, const py::array& dy, Layer& gradients,
                   typename Traits<Layer>::Context& context, InputArguments arguments,
                   typename Layer::Scalar d_loss, const py::object& dx) {
  using Scalar = typename Layer::Scalar;
  Batch<Scalar> batch(std::move(x), arguments);
  const Rows<Scalar> dy_rows(dy, "dy");
  py::array output = output_array<Scalar>(dx, batch.x().shape_with(batch.x().cols()), "dx");
  Rows<Scalar> output_rows(output, "dx");
  const py::gil_scoped_release released;
  layer.backward(batch.x().matrix(), batch.inputs(), context, dy_rows.matrix(), gradients,
                 output_rows.mutable_matrix(), d_loss);
  return output;
}

template <class Layer, class Class>
void bind_passes(Class& layer) {
  using Scalar = typename Layer::Scalar;
  using Context = typename Traits<Layer>::Context;
  using Lengths = std::optional<std::vector<Index>>;
  using Array = std::optional<py::array>;
  layer
      .def(
          "forward",
          [](const Layer& self, py::array x, Lengths lengths, Array embeddings, Lengths description_lengths,
             std::vector<Index> tasks, py::object noise, Index top_k, std::vector<bool> allowed,
             const py::object& y, Context* context) {
            return forward(self, std::move(x),
                           {lengths, embeddings, description_lengths, tasks, noise, top_k, allowed}, y,
                           context);
          },
          py::arg("x"), py::kw_only(), py::arg("lengths") = py::none(),
          py::arg("task_embeddings") = py::none(), py::arg("description_lengths") = py::none(),
          py::arg("task_of_sequence") = std::vector<Index>(), py::arg("noise") = py::none(),
          py::arg("top_k") = 0, py::arg("allowed_experts") = std::vector<bool>(), py::arg("y") = py::none(),
          py::arg("context") = py::none(),
          "x: sequences x tokens x features, or tokens x features: one sequence, or as many as there are "
          "lengths.\n"
          "Returns y, of x's shape but for the features, and what was decided. Writes to the array y if "
          "there is\n"
          "one. With a context for backward, which also saves allocating memory anew. top_k: instead of the "
          "layer's;\n"
          "allowed_experts: a bool for each expert, false where no row may have it.")
      .def(
          "backward",
          [](const Layer& self, py::array x, const py::array& dy, Layer& gradients, Context& context,
             Lengths lengths, Array embeddings, Lengths description_lengths, std::vector<Index> tasks,
             Scalar d_loss, const py::object& dx) {
            return backward(self, std::move(x), dy, gradients, context,
                            {lengths, embeddings, description_lengths, tasks}, d_loss, dx);
          },
          py::arg("x"), py::arg("dy"), py::arg("gradients"), py::arg("context"), py::kw_only(),
          py::arg("lengths") = py::none(), py::arg("task_embeddings") = py::none(),
          py::arg("description_lengths") = py::none(), py::arg("task_of_sequence") = std::vector<Index>(),
          py::arg("d_loss") = Scalar(1), py::arg("dx") = py::none(),
          "After forward(x, …, context=context), with the same x and inputs: adds the parameters' gradients "
          "to\n"
          "`gradients`, a layer of the same options, and returns dx. d_loss: the gradient of the balance "
          "loss.");
}

template <class Layer>
void bind_layer(py::module_& module, const char* name, const char* doc) {
  using Scalar = typename Layer::Scalar;
  py::class_<Layer> layer(module, name, doc);
  layer.def(py::init([](Index in_features, Index out_features, Index num_experts, Index top_k, bool bias,
                        const std::string& level, Index task_features, Index segment_tokens,
                        Index reduce_factor, bool gate_before_attention, double loss_coefficient,
                        double noise_epsilon, const std::string& merge_order, const py::dict& scores,
                        const py::dict& selection, const py::dict& losses, const py::dict& shared_experts) {
              return Layer({.in_features = in_features,
                            .out_features = out_features,
                            .num_experts = num_experts,
                            .top_k = top_k,
                            .shared_experts = shared_experts_from(shared_experts),
                            .bias = bias,
                            .routing = {.level = level_from(level),
                                        .task_features = task_features,
                                        .segment_tokens = segment_tokens,
                                        .reduce_factor = reduce_factor,
                                        .gate_before_attention = gate_before_attention,
                                        .loss_coefficient = loss_coefficient,
                                        .noise_epsilon = noise_epsilon,
                                        .scores = scores_from(scores),
                                        .selection = selection_from(selection),
                                        .losses = losses_from(losses)},
                            .merge_order = merge_order_from(merge_order)});
            }),
            py::kw_only(), py::arg("in_features"), py::arg("out_features"), py::arg("num_experts"),
            py::arg("top_k") = 1, py::arg("bias") = true, py::arg("level") = "sequence",
            py::arg("task_features") = 0, py::arg("segment_tokens") = 0, py::arg("reduce_factor") = 64,
            py::arg("gate_before_attention") = false, py::arg("loss_coefficient") = 1e-2,
            py::arg("noise_epsilon") = 1e-2, py::arg("merge_order") = "automatic",
            py::arg("scores") = py::dict(), py::arg("selection") = py::dict(), py::arg("losses") = py::dict(),
            py::arg("shared_experts") = py::dict());
  bind_parameters<Layer>(layer);
  bind_passes<Layer>(layer);
  layer.def(
      "route",
      [](const Layer& self, py::array x, std::optional<std::vector<Index>> lengths,
         std::optional<py::array> embeddings, std::optional<std::vector<Index>> description_lengths,
         std::vector<Index> tasks) {
        Batch<Scalar> batch(std::move(x), {lengths, embeddings, description_lengths, tasks});
        const py::gil_scoped_release released;
        meo::Workspace<Scalar> workspace;
        return meo::Routing<Scalar>(self.route(batch.x().matrix(), batch.inputs(), workspace));
      },
      py::arg("x"), py::kw_only(), py::arg("lengths") = py::none(), py::arg("task_embeddings") = py::none(),
      py::arg("description_lengths") = py::none(), py::arg("task_of_sequence") = std::vector<Index>(),
      "The gate alone, without noise: what forward would decide.");
}

template <class Block>
void bind_block(py::module_& module, const char* name, const char* doc) {
  py::class_<Block> block(module, name, doc);
  block.def(
      py::init([](Index features, Index hidden_features, Index num_experts, const std::string& activation,
                  Index top_k, bool bias, bool gated, bool shared_gate, const std::string& level,
                  Index task_features, Index segment_tokens, Index reduce_factor, double loss_coefficient,
                  double noise_epsilon, const std::string& merge_order, const py::dict& scores,
                  const py::dict& selection, const py::dict& losses, const py::dict& shared_experts) {
        return Block({.features = features,
                      .hidden_features = hidden_features,
                      .num_experts = num_experts,
                      .top_k = top_k,
                      .shared_experts = shared_experts_from(shared_experts),
                      .bias = bias,
                      .gated = gated,
                      .shared_gate = shared_gate,
                      .routing = {.level = level_from(level),
                                  .task_features = task_features,
                                  .segment_tokens = segment_tokens,
                                  .reduce_factor = reduce_factor,
                                  .loss_coefficient = loss_coefficient,
                                  .noise_epsilon = noise_epsilon,
                                  .scores = scores_from(scores),
                                  .selection = selection_from(selection),
                                  .losses = losses_from(losses)},
                      .merge_order = merge_order_from(merge_order)},
                     activation_from(activation));
      }),
      py::kw_only(), py::arg("features"), py::arg("hidden_features"), py::arg("num_experts"),
      py::arg("activation") = "gelu", py::arg("top_k") = 1, py::arg("bias") = true, py::arg("gated") = false,
      py::arg("shared_gate") = false, py::arg("level") = "sequence", py::arg("task_features") = 0,
      py::arg("segment_tokens") = 0, py::arg("reduce_factor") = 64, py::arg("loss_coefficient") = 1e-2,
      py::arg("noise_epsilon") = 1e-2, py::arg("merge_order") = "automatic", py::arg("scores") = py::dict(),
      py::arg("selection") = py::dict(), py::arg("losses") = py::dict(),
      py::arg("shared_experts") = py::dict());
  bind_parameters<Block>(block);
  bind_passes<Block>(block);
}

template <class Scalar>
void bind_layers(py::module_ module) {
  using Moe = meo::MoeLayer<Scalar>;
  using Meo = meo::MeoLayer<Scalar>;
  bind_routing<Scalar>(module);
  bind_block_routing<Scalar>(module);
  bind_context<meo::Context<Scalar>>(module, "Context");
  bind_context<meo::FeedForwardContext<Scalar>>(module, "FeedForwardContext");
  bind_layer<Moe>(module, "MoeLayer", "y = sum of g_i E_i(x) over the selected experts.");
  bind_layer<Meo>(module, "MeoLayer", "y = E(x), where E is the selected experts' parameters merged.");
  bind_block<meo::FeedForward<Moe, meo::AnyActivation>>(module, "MoeFeedForward",
                                                        "A block of two or three MoeLayers.");
  bind_block<meo::FeedForward<Meo, meo::AnyActivation>>(module, "MeoFeedForward",
                                                        "A block of two or three MeoLayers.");
  bind_merged<Scalar>(module);
}

}  // namespace meo_python

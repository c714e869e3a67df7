#pragma once

/// The layer's operations by item.

#include <cstdint>
#include <iostream>
#include <string>

#include <meo/flops.hpp>
#include <meo/types.hpp>

#include "flops/arguments.hpp"
#include "flops/layer.hpp"
#include "flops/method_name.hpp"
#include "flops/table.hpp"

namespace bench::flops {

using meo::LayerFlops;

inline void print_items(const Arguments& arguments) {
  const ModelShape& model = arguments.model;
  std::cout << "MFLOPs of one layer, " << model.features << " -> " << model.hidden_features << " features, "
            << model.tokens << " tokens, " << arguments.experts << " experts, " << to_string(arguments.level)
            << " level; a multiply-add is 2\n\n";
  Table table({"method", "K", "gate", "token attention", "task projection", "merge", "product", "combine",
               "total", "x dense"},
              1);
  const auto add = [&](Method method, Index top_k) {
    const LayerShape shape = shape_of(up_projection(arguments, top_k, arguments.level), arguments);
    const LayerFlops count = meo::flops(method, shape);
    const auto cell = [](std::int64_t item) { return item == 0 ? std::string("-") : fixed(mflops(item), 3); };
    table.add({std::string(name(method)), method == Method::dense ? "-" : std::to_string(top_k),
               cell(count.gate), cell(count.token_attention), cell(count.task_projection), cell(count.merge),
               cell(count.product), cell(count.combine), cell(count.total()),
               fixed(mflops(count.total()) / mflops(meo::flops(Method::dense, shape).total()), 3)});
  };
  add(Method::dense, 1);
  for (const Method method : {Method::moe, Method::meo})
    for (const Index top_k : arguments.top_k) add(method, top_k);
  std::cout << table << '\n';
}

}  // namespace bench::flops

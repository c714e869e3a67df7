#pragma once

/// Parameters as named flat ranges: what optimisers work on. A layer's gradients are kept in a layer of the
/// same options, so that both have the same ranges in the same order.
///
/// Names are those of the MEO authors' state_dict, but for `experts`, which holds all experts' weights and
/// biases as they are packed, and for projections, whose weight and bias are one range: w_gate, w_noise,
/// experts, tokenatt.down_proj, tokenatt.up_proj, task_proj; in a block under up., gate_up. and down. The
/// packed form has values that stand for no parameter. They and their gradients are zero, and an update that
/// maps zeros to zero, as those of SGD and AdamW do, keeps them so. A gate's correction bias is no parameter.
///
/// Ranges that need other options than the rest, as no weight decay, go to an optimiser of their own. Biases
/// of experts and projections share a range with their weights, so weight decay reaches them too, as
/// PyTorch's does by default.
///
/// How values are packed depends on the instruction set. To keep ranges that are no layer's, as an
/// optimiser's moments, in a checkpoint, copy_values takes them to a layer of the same options, which
/// io/checkpoint.hpp saves, and back.

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <meo/compiled.hpp>
#include <meo/errors.hpp>
#include <meo/experts/linear.hpp>
#include <meo/types.hpp>

namespace meo::inline MEO_ABI {

/// Parameters that lie side by side.
template <class Scalar>
struct ParameterRange {
  std::string name;          ///< see above
  std::span<Scalar> values;  ///< of the layer's own memory
};

/// Valid until the layer is moved from, assigned to or destroyed.
template <class Scalar>
using Parameters = std::vector<ParameterRange<Scalar>>;

/// Of a MoeLayer, a MeoLayer or a block of them; names begin with `prefix`.
template <class Layer>
Parameters<typename Layer::Scalar> parameters(Layer& layer, const std::string& prefix = "") {
  Parameters<typename Layer::Scalar> all;
  layer.visit([&](std::string_view name, auto&& part) {
    if constexpr (!detail::is_buffer<std::remove_cvref_t<decltype(part)>>)
      all.push_back({prefix + std::string(name), part.values()});
  });
  return all;
}

/// Of a projection by itself, whose one range has the name `name`.
template <class Scalar>
Parameters<Scalar> parameters(Linear<Scalar>& linear, const std::string& name) {
  return {{name, linear.values()}};
}

/// As a step begins with gradients.
template <class Scalar>
void set_zero(const Parameters<Scalar>& parameters) {
  for (const auto& range : parameters) std::fill(range.values.begin(), range.values.end(), Scalar(0));
}

namespace detail {

/// Throws std::invalid_argument unless both have ranges of the same names and sizes in the same order.
template <class Scalar>
void require_same_ranges(const Parameters<Scalar>& actual, const Parameters<Scalar>& expected,
                         const char* what) {
  require(actual.size() == expected.size(), what, ": expected ", expected.size(), " ranges, got ",
          actual.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    require(actual[i].name == expected[i].name && actual[i].values.size() == expected[i].values.size(), what,
            ": expected ", expected[i].name, " with ", expected[i].values.size(), " values, got ",
            actual[i].name, " with ", actual[i].values.size());
  }
}

}  // namespace detail

/// Between ranges of the same names and sizes; throws std::invalid_argument for others, and then changes
/// nothing.
template <class Scalar>
void copy_values(const Parameters<Scalar>& from, const Parameters<Scalar>& to) {
  detail::require_same_ranges(from, to, "from");
  for (std::size_t i = 0; i < from.size(); ++i)
    std::copy(from[i].values.begin(), from[i].values.end(), to[i].values.begin());
}

#define MEO_INSTANCES(instance, Scalar)                                        \
  instance Parameters<Scalar> parameters(Linear<Scalar>&, const std::string&); \
  instance void set_zero(const Parameters<Scalar>&);                           \
  instance void copy_values(const Parameters<Scalar>&, const Parameters<Scalar>&);
MEO_LAYER_INSTANCES(MEO_INSTANCES)
#undef MEO_INSTANCES

}  // namespace meo

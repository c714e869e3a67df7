#pragma once

/// What layers and blocks have in common to choose, from the arguments of their constructors in Python.

#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>

#include <meo/meo.hpp>

#include "arrays.hpp"

namespace meo_python {

/// The value of that name. Throws ValueError for another.
template <class Value>
Value choice(const std::string& argument, const std::string& name,
             std::initializer_list<std::pair<const char*, Value>> all) {
  std::string known;
  for (const auto& [its_name, value] : all) {
    if (name == its_name) return value;
    known += (known.empty() ? "" : ", ") + std::string(its_name);
  }
  throw py::value_error(argument + ": expected one of " + known + ", got " + name);
}

inline meo::Level level_from(const std::string& name) {
  using enum meo::Level;
  return choice<meo::Level>("level", name,
                            {{"token", token}, {"sequence", sequence}, {"task", task}, {"segment", segment}});
}

inline meo::MergeOrder merge_order_from(const std::string& name) {
  using enum meo::MergeOrder;
  return choice<meo::MergeOrder>(
      "merge_order", name,
      {{"automatic", automatic}, {"merge_first", merge_first}, {"combine_outputs", combine_outputs}});
}

/// Options that are a dict in Python, with the names of the C++ struct's members as its keys.
class Fields {
 public:
  Fields(const char* argument, const py::dict& fields)
      : argument_(argument), left_(fields.attr("copy")().cast<py::dict>()) {}

  /// Throws TypeError for a value of another type.
  template <class Value>
  Fields& take(const char* name, Value& value) {
    known_ += (known_.empty() ? "" : ", ") + std::string(name);
    if (!left_.contains(name)) return *this;
    const py::object given = left_.attr("pop")(name);
    try {
      value = given.cast<Value>();
    } catch (const py::cast_error&) {
      throw py::type_error(argument_ + "['" + name + "']: expected " + type_name<Value>() + ", got " +
                           py::repr(given).cast<std::string>());
    }
    return *this;
  }

  template <class Value>
  Fields& take(const char* name, Value& value, std::initializer_list<std::pair<const char*, Value>> all) {
    std::string given;
    if (take(name, given); !given.empty()) value = choice<Value>(argument_ + "['" + name + "']", given, all);
    return *this;
  }

  /// Throws ValueError for what was not taken.
  void done() const {
    if (left_.empty()) return;
    throw py::value_error(argument_ + ": expected " + known_ + ", got " +
                          py::str(py::list(left_)).cast<std::string>());
  }

 private:
  template <class Value>
  static std::string type_name() {
    if constexpr (std::is_same_v<Value, bool>) return "a bool";
    else if constexpr (std::is_same_v<Value, std::string>) return "a name";
    else if constexpr (std::is_integral_v<Value>) return "an int";
    else return "a float";
  }

  std::string argument_, known_;
  py::dict left_;
};

inline meo::ScoreOptions scores_from(const py::dict& fields) {
  using enum meo::ScoreFunction;
  meo::ScoreOptions scores;
  Fields("scores", fields)
      .take("function", scores.function,
            {{"softmax_selected", softmax_selected},
             {"softmax", softmax},
             {"sigmoid", sigmoid},
             {"identity", identity}})
      .take("normalize", scores.normalize)
      .take("temperature", scores.temperature)
      .take("scale", scores.scale)
      .take("bias", scores.bias)
      .done();
  return scores;
}

inline meo::SelectionOptions selection_from(const py::dict& fields) {
  using enum meo::SelectionMethod;
  using enum meo::GroupScore;
  meo::SelectionOptions selection;
  Fields("selection", fields)
      .take("method", selection.method, {{"top_k", top_k}, {"expert_choice", expert_choice}})
      .take("groups", selection.groups)
      .take("top_groups", selection.top_groups)
      .take("group_score", selection.group_score, {{"largest", largest}, {"two_largest", two_largest}})
      .take("correction_bias", selection.correction_bias)
      .take("capacity", selection.capacity)
      .take("capacity_factor", selection.capacity_factor)
      .done();
  return selection;
}

inline meo::LossOptions losses_from(const py::dict& fields) {
  meo::LossOptions losses;
  Fields("losses", fields)
      .take("share_coefficient", losses.share_coefficient)
      .take("z_coefficient", losses.z_coefficient)
      .done();
  return losses;
}

inline meo::SharedExpertOptions shared_experts_from(const py::dict& fields) {
  using enum meo::SharedWeight;
  meo::SharedExpertOptions shared_experts;
  Fields("shared_experts", fields)
      .take("count", shared_experts.count)
      .take("weight", shared_experts.weight, {{"one", one}, {"sigmoid", sigmoid}})
      .done();
  return shared_experts;
}

}  // namespace meo_python

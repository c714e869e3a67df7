#pragma once

/// Methods by the names that the paper has for them.

#include <string_view>

#include <meo/flops.hpp>

namespace bench::flops {

using meo::Method;

constexpr std::string_view name(Method method) {
  switch (method) {
    case Method::dense:
      return "dense";
    case Method::moe:
      return "MoE";
    case Method::meo:
      return "MEO";
  }
  return "unknown";
}

}  // namespace bench::flops

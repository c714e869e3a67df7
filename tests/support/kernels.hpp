#pragma once

/// The kernels' products, compiled once for all tests of one program that run layers on them: they are most
/// of what such a test takes to compile.

#include <span>

#include <meo/kernels/dense_product.hpp>
#include <meo/kernels/dispatched_product.hpp>
#include <meo/kernels/input_gradient.hpp>
#include <meo/kernels/merged_input_gradient.hpp>
#include <meo/kernels/merged_product.hpp>
#include <meo/kernels/merged_weight_gradient.hpp>
#include <meo/kernels/weight_gradient.hpp>

#define MEO_KERNEL_INSTANCES(extern_or_none, S)                                                           \
  extern_or_none template void dense_product(const PanelBank<S, const S>&, Index, Rows<const S>, Index,   \
                                             Rows<S>, const Blocks&);                                     \
  extern_or_none template void merged_product(const PanelBank<S, const S>&, const MergePlan<S>&,          \
                                              std::span<const Index>, Rows<const S>, Rows<S>, Scratch<S>, \
                                              const Blocks&);                                             \
  extern_or_none template void dispatched_product(const PanelBank<S, const S>&, const Dispatch<S>&,       \
                                                  Rows<const S>, Rows<S>);                                \
  extern_or_none template void gathered_product(const PanelBank<S, const S>&, Index, const Dispatch<S>&,  \
                                                Rows<const S>, Rows<S>);                                  \
  extern_or_none template void combined_product(const PanelBank<S, const S>&, Index, const Dispatch<S>&,  \
                                                Rows<const S>, Rows<S>)

#define MEO_GRADIENT_KERNEL_INSTANCES(extern_or_none, S)                                                 \
  extern_or_none template void weight_gradient(const PanelBank<S>&, Index, Rows<const S>, Rows<const S>, \
                                               Index, Scratch<S>, const Blocks&);                        \
  extern_or_none template void input_gradient(const PanelBank<S, const S>&, Index, Rows<const S>, Index, \
                                              bool, Rows<S>, Scratch<S>, const Blocks&);                 \
  extern_or_none template void merged_weight_gradient(                                                   \
      const PanelBank<S, const S>&, const PanelBank<S>&, const MergePlan<S>&, std::span<const Index>,    \
      Rows<const S>, Rows<const S>, S*, const MergedWeightGradientMemory<S>&, const Blocks&);            \
  extern_or_none template void merged_input_gradient(const PanelBank<S, const S>&, const MergePlan<S>&,  \
                                                     std::span<const Index>, Rows<const S>, Rows<S>,     \
                                                     Scratch<S>, const Blocks&)

#if defined(MEO_TEST_INSTANCES)
namespace meo::inline MEO_ABI::detail {
MEO_KERNEL_INSTANCES(extern, float);
MEO_KERNEL_INSTANCES(extern, double);
MEO_KERNEL_INSTANCES(extern, long double);
MEO_GRADIENT_KERNEL_INSTANCES(extern, float);
MEO_GRADIENT_KERNEL_INSTANCES(extern, double);
}  // namespace meo::detail
#endif

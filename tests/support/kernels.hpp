#pragma once

/// The kernels' products, compiled once for all tests of one program that run layers on them: they are most
/// of what such a test takes to compile.

#include <span>

#include <meo/kernels/dense_product.hpp>
#include <meo/kernels/dispatched_product.hpp>
#include <meo/kernels/merged_product.hpp>

#define MEO_KERNEL_INSTANCES(extern_or_none, S)                                                           \
  extern_or_none template void dense_product(const PanelBank<S, const S>&, Index, const S*, Index, Index, \
                                             S*, Index, bool);                                            \
  extern_or_none template void merged_product(const PanelBank<S, const S>&, const MergePlan<S>&,          \
                                              std::span<const Index>, const S*, Index, S*, Index, S*,     \
                                              Index);                                                     \
  extern_or_none template void dispatched_product(const PanelBank<S, const S>&, const Dispatch<S>&,       \
                                                  const S*, Index, S*, Index);                            \
  extern_or_none template void gathered_product(const PanelBank<S, const S>&, Index, const Dispatch<S>&,  \
                                                const S*, Index, S*);                                     \
  extern_or_none template void combined_product(const PanelBank<S, const S>&, Index, const Dispatch<S>&,  \
                                                const S*, Index, S*, Index)

#if !defined(MEO_TINY_BLOCKS)  // then the program has kernels of its own
namespace meo::detail {
MEO_KERNEL_INSTANCES(extern, float);
MEO_KERNEL_INSTANCES(extern, double);
MEO_KERNEL_INSTANCES(extern, long double);
}  // namespace meo::detail
#endif

#pragma once

/// The kernels' products for long double, which meo::compiled has not, compiled once for all tests of one
/// program that run layers on them: they are most of what such a test takes to compile.

#include <span>

#include <meo/kernels/dense_product.hpp>
#include <meo/kernels/dispatched_product.hpp>
#include <meo/kernels/merged_product.hpp>

#define MEO_KERNELS_OF_TESTS(instance, S)                                                                    \
  instance void dense_product(const PanelBank<S, const S>&, Index, Rows<const S>, Index, Rows<S>,            \
                              const Blocks&);                                                                \
  instance void merged_product(const PanelBank<S, const S>&, const MergePlan<S>&, std::span<const Index>,    \
                               Rows<const S>, Rows<S>, const MergedProductMemory<S>&, const Blocks&);        \
  instance void dispatched_product(const PanelBank<S, const S>&, const Dispatch<S>&, Rows<const S>, Rows<S>, \
                                   Scratch<S>);                                                              \
  instance void gathered_product(const PanelBank<S, const S>&, Index, const Dispatch<S>&, Rows<const S>,     \
                                 Rows<S>, Scratch<S>);                                                       \
  instance void combined_product(const PanelBank<S, const S>&, Index, const Dispatch<S>&, Rows<const S>,     \
                                 Rows<S>, Scratch<S>);

#if defined(MEO_TEST_INSTANCES)
namespace meo::inline MEO_ABI::detail {
MEO_KERNELS_OF_TESTS(extern template, long double)
}  // namespace meo::detail
#endif

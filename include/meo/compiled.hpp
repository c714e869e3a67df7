#pragma once

/// What the target meo::compiled has compiled once for all, for float and double.
///
/// Programs that link it have MEO_COMPILED defined. For them a header ends with declarations of the instances
/// that they find there,
///
///     #define MEO_INSTANCES(instance, Scalar) instance void f(const Scalar*);
///     MEO_KERNEL_INSTANCES(MEO_INSTANCES)
///     #undef MEO_INSTANCES
///
/// where `instance` is `extern template`, or `template` in the source in compiled/ that has them, which says
/// so before it includes anything. Members that are defined in their class are inline, and compilers make
/// instances of those all the same: so what is long is defined below its class, as are copies, moves and
/// destructors of what has many parts.
///
/// All of this is in the namespace MEO_ABI: a program of other flags than the library's does not link.

#include <meo/abi.hpp>

#if defined(MEO_COMPILED)

#if !defined(MEO_FLOAT_KERNELS)
#define MEO_FLOAT_KERNELS extern template
#endif
#if !defined(MEO_DOUBLE_KERNELS)
#define MEO_DOUBLE_KERNELS extern template
#endif
#if !defined(MEO_FLOAT_LAYERS)
#define MEO_FLOAT_LAYERS extern template
#endif
#if !defined(MEO_DOUBLE_LAYERS)
#define MEO_DOUBLE_LAYERS extern template
#endif
#if !defined(MEO_IO)
#define MEO_IO extern template
#endif

/// Of kernels/; of the layers, what they are made of and what trains them; of io/.
#define MEO_KERNEL_INSTANCES(instances) \
  instances(MEO_FLOAT_KERNELS, float) instances(MEO_DOUBLE_KERNELS, double)
#define MEO_LAYER_INSTANCES(instances) instances(MEO_FLOAT_LAYERS, float) instances(MEO_DOUBLE_LAYERS, double)
#define MEO_IO_INSTANCES(instances) instances(MEO_IO, float) instances(MEO_IO, double)

/// Before a function of io/ that is no template: it is inline, and defined where MEO_DEFINES_IO is, or
/// declared here and defined in the library.
#define MEO_IO_INLINE

#else

#define MEO_KERNEL_INSTANCES(instances)
#define MEO_LAYER_INSTANCES(instances)
#define MEO_IO_INSTANCES(instances)
#define MEO_IO_INLINE inline
#define MEO_DEFINES_IO

#endif

// The groups of the reference, one for each folder of include/meo but kernels/, which is no interface; read by
// Doxygen alone.

/// @defgroup distributed Several processes
/// Ranks, what they do in common and how their errors end; the only headers that need MPI.

/// @defgroup io Files
/// Safetensors files, and checkpoints of layers in them; the only headers that need nlohmann_json.

/// @defgroup training Training
/// Parameters as named ranges, optimisers and clipping.

/// @defgroup layers Layers
/// Layers and feed-forward blocks, what they are made from, the memory that they work in and what they give back.

/// @defgroup mixing Mixing
/// From an assignment and experts to outputs, and back to gradients.

/// @defgroup routing Routing
/// From a batch to an assignment: gates, noise, the balance loss, statistics.

/// @defgroup experts Experts
/// Packed experts, one dense projection, activations.

/// @defgroup shared Shared
/// Types, errors, versions, FLOPs.

/// @namespace meo
/// All of the library; what is in a namespace detail is no interface, and not here.

/// @namespace meo::mpi
/// What several processes do together.

/// @namespace meo::io
/// What reads and writes files.
